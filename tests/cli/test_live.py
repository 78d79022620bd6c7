"""The command line beside a real server, and on its data once it has stopped."""

import json
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.http.harness import check_quick, until
from tests.serving import Server, scripted_model

FIELDS = {"base_url", "api_key", "admin_user", "admin_password", "model"}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("live"), scripted_model(aliases=["s"])) as running:
        yield running


def test_ready_is_one_json_line_with_what_scripts_need(server):
    assert set(server.ready) == FIELDS
    assert server.ready["base_url"] == f"http://127.0.0.1:{server.port}/v1"
    assert server.ready["model"] == "scripted"
    assert server.ready["admin_user"] == "admin"
    assert server.ready["api_key"].startswith("sk-")
    assert len(server.ready["admin_password"]) >= 12


def test_usage_lists_the_request_ids_that_clients_saw(server):
    answers = [server.chat(f"hello {number}") for number in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    events = json.loads(server.cli("usage", "--json", "--limit", "3"))
    assert [event["request_id"] for event in events] == [answer.request_id for answer in reversed(answers)]
    assert [event["output_tokens"] for event in reversed(events)] == [
        answer.json()["usage"]["completion_tokens"] for answer in answers
    ]
    assert all(event["status"] == "completed" and event["cost_nano"] > 0 for event in events)


def test_more_usage_than_a_page_comes_whole(server):
    for number in range(5):
        server.chat(str(number))
    everything = json.loads(server.cli("usage", "--json", "--limit", "100000"))
    ids = [event["request_id"] for event in everything]
    assert len(ids) == len(set(ids)) >= 5


def test_the_socket_is_the_owners_alone(server):
    socket_path = server.data_dir / "run" / "admin.sock"
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700


def test_a_key_works_from_its_making_to_its_end(server):
    def live():
        """Seconds that a key worked after its end."""
        made = json.loads(server.cli("keys", "create", "--name", "short", "--json"))
        assert status_of(server, made["key"]) == 200
        assert made["id"] in [row["id"] for row in json.loads(server.cli("keys", "list", "--json"))]
        server.cli("keys", "revoke", made["id"])
        began_s = time.monotonic()
        until(lambda: status_of(server, made["key"]), lambda status: status == 401, 60)
        return time.monotonic() - began_s

    check_quick(live, 1.0)


def status_of(server, key):
    ask = {"model": "scripted", "messages": [{"role": "user", "content": "x"}]}
    return server.ask("POST", "/v1/chat/completions", ask, key=key).status


def test_a_rotated_key_works_for_its_grace(server):
    made = json.loads(server.cli("keys", "create", "--json"))
    fresh = json.loads(server.cli("keys", "rotate", made["id"], "--grace", "1h", "--json"))
    assert server.ask("GET", "/v1/models", key=made["key"]).status == 200
    assert server.ask("GET", "/v1/models", key=fresh["key"]).status == 200
    hard = json.loads(server.cli("keys", "rotate", fresh["id"], "--json"))
    until(lambda: server.ask("GET", "/v1/models", key=fresh["key"]).status, lambda status: status == 401, 60)
    assert server.ask("GET", "/v1/models", key=hard["key"]).status == 200


def test_a_key_is_held_to_its_limits(server):
    made = json.loads(server.cli("keys", "create", "--token-limit", "1", "--json"))
    ask = {"model": "scripted", "messages": [{"role": "user", "content": "x"}]}
    answer = server.ask("POST", "/v1/chat/completions", ask, key=made["key"])
    assert (answer.status, answer.json()["error"]["code"]) == (429, "quota_exceeded")


def test_an_unknown_key_is_one_line(server):
    said = server.cli("keys", "revoke", "nothing", status=1)
    assert "There is no API key with the id 'nothing'" in said
    assert said.count("\n") == 1


def test_users_are_made_and_paid_for(server):
    name = f"ann-{uuid.uuid4().hex[:8]}"
    server.cli("users", "create", name, "--tier", "payg")
    row = json.loads(server.cli("users", "topup", name, "2.50", "--json"))
    assert row["balance_nano"] == 2_500_000_000
    assert "$2.50" in server.cli("users", "list")
    assert name in server.cli("users", "create", name, status=1)


def test_models_are_listed_with_their_engines(server):
    (model,) = json.loads(server.cli("models", "list", "--json"))
    assert (model["id"], model["aliases"], model["state"]) == ("scripted", ["s"], "ready")
    slots = {slot["port"]: slot for slot in json.loads(server.cli("models", "slots", "--json"))}
    slot = slots.pop(server.slot_port)
    assert (slot["model"], slot["state"]) == ("scripted", "ready")
    assert {other["status"] for other in slots.values()} == {"empty"}


def test_a_model_is_stopped_and_started(server):
    server.cli("models", "stop", "scripted")
    assert json.loads(server.cli("models", "list", "--json"))[0]["state"] == "cold"
    server.cli("models", "start", "scripted")
    assert json.loads(server.cli("models", "list", "--json"))[0]["state"] == "ready"


def test_chat_talks_to_it(server):
    assert server.cli("chat", "hello", "--key", server.key, "--model", "s").strip()
    assert "API key" in server.cli("chat", "hello", "--key", "sk-wrong", status=1)


def test_doctor_and_db_look_without_disturbing(server):
    report = json.loads(server.cli("doctor", "--json"))
    assert report["ok"], report
    assert {"store", "books"} <= {check["name"] for check in report["checks"]}
    assert json.loads(server.cli("db", "status", "--json"))["server_pid"] == server.pid
    assert json.loads(server.cli("db", "check", "--json")) == {"ok": True, "problems": []}


def test_a_second_server_on_the_same_data_is_refused_in_one_line(server):
    said = server.cli("up", "--config", str(server.config), "--port", "0", status=1)
    assert f"in use by another Stentor server (process {server.pid})" in said
    assert said.count("\n") == 1
    assert server.chat("still there?").status == 200


def test_a_taken_port_is_refused_in_one_line(server, tmp_path):
    said = server.cli("up", "--data-dir", str(tmp_path / "other"), "--config", str(server.config), status=1)
    assert f"Can't listen on 127.0.0.1:{server.port}" in said
    assert "choose another one with --port" in said


@pytest.mark.timeout(300)  # a dozen programs
def test_keys_made_without_a_server_work_in_the_next_one(tmp_path):
    server = Server(tmp_path, scripted_model())
    with server:
        first = server.key
        server.chat("hello")
    made = json.loads(server.cli("keys", "create", "--name", "offline", "--json"))
    assert [row["name"] for row in json.loads(server.cli("keys", "list", "--json"))] == ["offline", "first"]
    assert len(json.loads(server.cli("usage", "--json"))) == 1
    assert json.loads(server.cli("doctor", "--json"))["ok"]
    assert "was up to date" in server.cli("db", "migrate")
    with server:
        assert server.ready["api_key"] is None
        assert server.ready["admin_password"] is None
        assert server.ask("GET", "/v1/models", key=made["key"]).status == 200
        assert server.ask("GET", "/v1/models", key=first).status == 200


def test_the_first_key_may_be_an_admin_key(tmp_path):
    with Server(tmp_path, scripted_model(), "--admin-key") as server:
        assert server.ask("GET", "/admin/api/api-keys").status == 200


def test_up_says_everything_a_person_needs(tmp_path):
    server = Server(tmp_path, scripted_model())
    process = subprocess.Popen(
        [sys.executable, "-m", "stentor", "up", "--config", str(server.config)],
        cwd=tmp_path,
        env=server.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines: list[str] = []
        while not lines or "Stop with" not in lines[-1]:
            line = process.stdout.readline()
            assert line, "".join(lines)
            lines.append(line)
    finally:
        process.terminate()
        process.wait(60)  # what it still says is little
        process.stdout.close()
    text = "".join(lines)
    for part in (f"http://127.0.0.1:{server.port}/v1", "admin / ", "sk-", "GPU", "curl -N", "shown this once"):
        assert part in text
    assert process.returncode == 0
