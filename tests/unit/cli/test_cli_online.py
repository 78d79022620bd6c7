"""Commands while a server runs: they ask it over its socket, and never open the books themselves."""

import json
import os

import pytest

KEY = {
    "id": "k1",
    "name": "phone",
    "hint": "wxyz",
    "scopes": ["inference"],
    "models": [],
    "limits": {"token_limit": 100, "spending_limit_nano": 2_500_000_000},
    "expires_us": None,
    "revoked_us": None,
    "grace_until_us": None,
    "created_us": 1_700_000_000_000_000,
}


def test_keys_are_listed_for_people_and_programs(admin, stentor):
    admin.answers["GET /admin/api/api-keys"] = 200, {"data": [KEY]}
    status, out, _ = stentor("keys", "list")
    assert status == 0
    for part in ("k1", "phone", "…wxyz", "inference", "100 tokens, $2.50", "active"):
        assert part in out
    status, out, _ = stentor("keys", "list", "--json")
    assert json.loads(out) == [KEY]


def test_an_empty_listing_says_what_to_do(admin, stentor):
    admin.answers["GET /admin/api/api-keys"] = 200, []
    status, out, err = stentor("keys", "list")
    assert (status, out) == (0, "")
    assert "stentor keys create" in err
    assert stentor("keys", "list", "--json")[1].strip() == "[]"


def test_listings_follow_the_pages(admin, stentor):
    def answer(path):
        after = path.partition("after=")[2]
        start = int(after or 0)
        rows = [{"request_id": str(number)} for number in range(start, min(start + 2, 5))]
        return 200, {"data": rows, "next": str(start + 2) if start + 2 < 5 else None}

    admin.answers["GET /admin/api/usage"] = answer
    _, out, _ = stentor("usage", "--json", "--limit", "100")
    assert [row["request_id"] for row in json.loads(out)] == ["0", "1", "2", "3", "4"]
    _, out, _ = stentor("usage", "--json", "--limit", "3")
    assert [row["request_id"] for row in json.loads(out)] == ["0", "1", "2"]


def test_usage_filters_travel_as_a_query(admin, stentor):
    admin.answers["GET /admin/api/usage"] = 200, []
    stentor("usage", "--key", "k 1", "--model", "m", "--json")
    assert admin.calls[-1].path == "/admin/api/usage?key=k+1&model=m&limit=20"


def test_usage_shows_tokens_and_cost(admin, stentor):
    event = {"request_id": "0192-abc", "model": "m", "input_tokens": 7, "cached_tokens": 0, "output_tokens": 9}
    event |= {"cost_nano": 2500, "status": "completed", "latency_us": 1_500_000, "settled_us": 1_700_000_000_000_000}
    admin.answers["GET /admin/api/usage"] = 200, {"data": [event]}
    out = stentor("usage")[1]
    for part in ("0192-abc", " 7 ", " 9 ", "$0.0000025", "completed", "1.50 s"):
        assert part in out


def test_a_key_is_made_with_all_that_narrows_it(admin, stentor):
    admin.answers["POST /admin/api/api-keys"] = 200, {**KEY, "key": "sk-new"}
    status, out, err = stentor(
        *("keys", "create", "--name", "phone", "--user", "ann", "--scope", "inference", "--scope", "ring"),
        *("--model", "m", "--token-limit", "100", "--spending-limit", "2.5", "--concurrency", "2"),
    )
    assert (status, out) == (0, "sk-new\n")
    assert "shown this once" in err
    body = admin.calls[-1].body
    assert (body["name"], body["user"], body["scopes"], body["models"]) == (
        "phone",
        "ann",
        ["inference", "ring"],
        ["m"],
    )
    assert body["limits"]["spending_limit_nano"] == 2_500_000_000
    assert body["limits"]["requests_per_minute"] is None


def test_the_socket_carries_no_key(admin, stentor):
    admin.answers["GET /admin/api/users"] = 200, []
    stentor("users", "list")
    assert admin.calls[-1].headers["Authorization"] is None


def test_keys_are_revoked_and_rotated(admin, stentor):
    admin.answers["POST /admin/api/api-keys/k1/revoke"] = 200, KEY
    admin.answers["POST /admin/api/api-keys/k1/rotate"] = 200, {**KEY, "key": "sk-next"}
    assert stentor("keys", "revoke", "k1")[:2] == (0, "Key k1 is revoked.\n")
    assert stentor("keys", "rotate", "k1", "--grace", "24h")[:2] == (0, "sk-next\n")
    assert admin.calls[-1].body == {"grace_s": 86400}


def test_an_id_is_one_segment_of_the_path(admin, stentor):
    status, _, err = stentor("keys", "revoke", "../users?x=1")
    assert status == 1
    assert admin.calls[-1].path == "/admin/api/api-keys/..%2Fusers%3Fx%3D1/revoke"
    assert err == "stentor: no such path\n"


def test_users_are_made_and_topped_up(admin, stentor):
    admin.answers["POST /admin/api/users"] = 200, {"id": "u1", "name": "ann"}
    admin.answers["POST /admin/api/users/ann/topup"] = 200, {"balance_nano": 12_500_000_000}
    assert stentor("users", "create", "ann", "--role", "admin")[:2] == (0, "User ann is made (id u1, tier admin).\n")
    status, out, _ = stentor("users", "topup", "ann", "2.50", "--note", "paid")
    assert (status, out) == (0, "$2.50 booked for ann; the balance is now $12.50.\n")
    assert admin.calls[-1].body == {"amount_nano": 2_500_000_000, "note": "paid"}


def test_models_are_started_and_stopped(admin, stentor):
    admin.answers["POST /admin/api/models/m/start"] = 200, {}
    admin.answers["POST /admin/api/models/m/stop"] = 200, {}
    assert stentor("models", "start", "m", "--instances", "2")[1] == "m is ready.\n"
    assert admin.calls[-1].body == {"instances": 2}
    assert stentor("models", "stop", "m")[1] == "m is stopped.\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, {"detail": "There is no API key with the id 'k9'."}), "There is no API key with the id 'k9'."),
        ((422, {"detail": [{"msg": "too short"}, {"msg": "too long"}]}), "too short; too long"),
        ((500, {}), "The server refused with status 500."),
        ((200, b"<html>"), "The server answered something that is not JSON (status 200)."),
    ],
)
def test_a_refusal_is_one_line_and_status_1(admin, stentor, answer, said):
    admin.answers["POST /admin/api/api-keys/k9/revoke"] = answer
    assert stentor("keys", "revoke", "k9") == (1, "", f"stentor: {said}\n")


def test_a_server_without_its_socket_is_told_and_nothing_is_opened(held, stentor):
    status, out, err = stentor("keys", "list")
    assert (status, out) == (1, "")
    assert "does not answer on" in err
    assert sorted(path.name for path in held.iterdir()) == ["stentor.lock"]


def test_a_data_folder_with_a_long_path_is_reached(tmp_path, stentor, serve_admin):
    data = tmp_path / ("d" * 120)
    server = serve_admin(data)
    server.answers["GET /admin/api/slots"] = 200, [{"port": 4801}]
    assert json.loads(stentor("models", "slots", "--json", "--data-dir", str(data))[1]) == [{"port": 4801}]


def test_commands_that_need_a_server_say_so(stentor):
    status, _, err = stentor("models", "start", "m")
    assert status == 1
    assert "No server is running on" in err
    assert "stentor up" in err


def test_migrate_leaves_a_running_server_alone(held, stentor):
    status, out, _ = stentor("db", "migrate")
    assert status == 0
    assert f"(process {os.getpid()}) is running" in out
