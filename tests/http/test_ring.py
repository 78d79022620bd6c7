"""The LLMRing surface over HTTP: usage, conversations, templates, receipts, registry, each within its project."""

import json
import time
import uuid
from typing import Any

import pytest

from stentor.http.surface import SURFACE
from tests.http.harness import Gate, check_quick, until
from tests.independent_verifier import check_receipt
from tests.serving import Answer

Json = dict[str, Any]
ALIEN = {"role": "alien"}
WHO = {"provider": "p", "model": "m"}
LOG = {**WHO, "input_tokens": 1, "output_tokens": 0}


class Tenant:
    """A key of a project of its own."""

    def __init__(self, gate: Gate, **fields: Any) -> None:
        self.gate = gate
        self.user = gate.make_user()
        self.key = gate.make_key(self.user["id"], **{"scopes": ["ring", "inference"], **fields})["key"]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        return self.gate.ask(method, path, body, key=self.key, **headers)

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status == 200, answer.body
        return answer.json()

    def post(self, path: str, body: Any = None) -> Any:
        answer = self.ask("POST", path, body)
        assert answer.status == 200, answer.body
        return answer.json()

    def log(self, **fields: Any) -> str:
        body = {"model": "gpt-4o", "provider": "openai", "input_tokens": 10, "output_tokens": 5, **fields}
        return str(self.post("/api/v1/log", body)["log_id"])


@pytest.fixture
def ann(each: Gate) -> Tenant:
    return Tenant(each)


@pytest.fixture
def bob(each: Gate) -> Tenant:
    return Tenant(each)


# -- usage


def test_a_log_without_cost_gets_the_registrys_price(ann: Tenant):
    body = {"provider": "openai", "model": "gpt-4o", "input_tokens": 1000, "output_tokens": 10}
    assert ann.post("/api/v1/log", body)["cost"] == 0.0026
    assert ann.post("/api/v1/log", {**body, "cached_input_tokens": 400})["cost"] == 0.0016
    assert ann.post("/api/v1/log", {**body, "cost": 0.5})["cost"] == 0.5
    assert ann.post("/api/v1/log", {**body, "provider": "nobody"})["cost"] == 0
    # This server's own models are in the registry, too.
    assert ann.post("/api/v1/log", {**body, "provider": "stentor", "model": "scripted"})["cost"] == 0.000102


def test_stats_are_exact_and_right_by_every_breakdown(ann: Tenant):
    for _ in range(7):
        ann.log(cost=0.000000003, alias="fast", origin="app")
    for number in range(3):
        ann.log(cost=0.1, model="gpt-4o-mini", alias="cheap" if number else None, origin="job")
    stats = ann.get("/api/v1/stats?start_date=&end_date=")
    assert stats["summary"] == {
        "total_requests": 10, "total_cost": "0.300000021", "total_tokens": 150, "unique_models": 2, "unique_origins": 2,
    }  # fmt: skip
    (day,) = stats["by_day"]
    assert (day["requests"], day["cost"], day["top_model"]) == (10, "0.300000021", "gpt-4o")
    assert stats["by_model"]["gpt-4o-mini"] == {
        "requests": 3, "cost": "0.300000000", "input_tokens": 30, "output_tokens": 15,
    }  # fmt: skip
    assert stats["by_origin"] == {
        "app": {"requests": 7, "cost": "0.000000021"},
        "job": {"requests": 3, "cost": "0.300000000"},
    }
    assert {name: group["requests"] for name, group in stats["by_alias"].items()} == {"cheap": 2, "fast": 7}
    for period in ("week", "month"):
        assert len(ann.get(f"/api/v1/stats?group_by={period}")["by_day"]) == 1
    month = ann.get("/api/v1/stats?group_by=month")["by_day"][0]["date"]
    assert month.endswith("-01")
    assert ann.get("/api/v1/stats?end_date=2001-01-01")["summary"]["total_requests"] == 0


def test_what_was_metered_here_and_what_a_client_says_are_told_apart(ann: Tenant):
    ann.log(cost=1)
    answer = ann.gate.chat(key=ann.key)
    metered = ann.gate.event(answer.request_id)
    assert [row["metered_by"] for row in ann.get("/api/v1/logs")] == ["client"]
    (own,) = ann.get("/api/v1/logs?metered_by=stentor")
    assert (own["id"], own["cost"]) == (answer.request_id, metered["cost_nano"] / 1e9)
    assert [row["metered_by"] for row in ann.get("/api/v1/logs?metered_by=all")] == ["stentor", "client"]
    sums = {by: ann.get(f"/api/v1/stats?metered_by={by}")["summary"] for by in ("client", "stentor", "all")}
    assert [sums[by]["total_requests"] for by in ("client", "stentor", "all")] == [1, 1, 2]
    assert sums["client"]["total_cost"] == "1.000000000"
    assert sums["stentor"]["total_cost"] == f"0.{metered['cost_nano']:09d}"


def test_logs_are_filtered_and_paged(ann: Tenant):
    ids = [ann.log(alias=f"a{number % 2}", origin="o", metadata={"n": number}) for number in range(6)]
    assert [row["id"] for row in ann.get("/api/v1/logs")] == ids[::-1]
    assert [row["id"] for row in ann.get("/api/v1/logs?limit=2&offset=1")] == [ids[4], ids[3]]
    assert [row["metadata"]["n"] for row in ann.get("/api/v1/logs?alias=a1&model=")] == [5, 3, 1]
    assert ann.get("/api/v1/logs?start_date=2999-01-01") == []
    assert len(ann.get(f"/api/v1/logs?end_date={time.strftime('%Y-%m-%d', time.gmtime())}")) == 6


@pytest.mark.parametrize(
    ("path", "body", "loc"),
    [
        ("/api/v1/log", {}, ["body", "model"]),
        ("/api/v1/log", None, ["body"]),
        ("/api/v1/log", b"{", ["body"]),
        ("/api/v1/log", {**LOG, "input_tokens": -1}, ["body", "input_tokens"]),
        ("/api/v1/log", {**LOG, "cost": -1}, ["body", "cost"]),
        ("/api/v1/log", {**LOG, "model": 1}, ["body", "model"]),
        ("/conversations", {"temperature": 3}, ["body", "temperature"]),
        ("/conversations/log", {"messages": [ALIEN], "response": {}, "metadata": WHO}, ["body", "messages"]),
        ("/templates", {"name": "n"}, ["body", "created_by"]),
        ("/api/v1/receipts/issue", {"id": "x"}, ["body", "timestamp"]),
        ("/api/v1/receipts/issue", {"prompt_tokens": 1}, ["body", "alias"]),
        ("/api/v1/receipts/verify", [], ["body"]),
    ],
)  # fmt: skip
def test_bad_bodies_are_listed(ann: Tenant, path, body, loc):
    answer = ann.ask("POST", path, body)
    assert answer.status == 422, answer.body
    (error,) = answer.json()["detail"]
    assert error["loc"] == loc
    assert set(error) == {"type", "loc", "msg", "input"}


@pytest.mark.parametrize(
    "path",
    ["/api/v1/logs?limit=0", "/api/v1/logs?limit=many", "/api/v1/stats?group_by=year", "/api/v1/logs?start_date=soon",
     "/conversations?offset=-1", "/api/v1/logs?metered_by=god", "/api/v1/logs?metered_by=stentor&offset=10001",
     "/api/v1/logs?metered_by=all&offset=1000000000", "/conversations/search", "/receipts/log/proof",
     "/receipts/log/tiles/zero/0"],
)  # fmt: skip
def test_bad_parameters_are_listed(ann: Tenant, path):
    answer = ann.ask("GET", path)
    assert answer.status == 422
    assert answer.json()["detail"][0]["loc"][0] in ("query", "path")


# -- conversations


@pytest.mark.parametrize("prefix", ["", "/api/v1"])
def test_the_life_of_a_conversation(ann: Tenant, prefix):
    made = ann.post(f"{prefix}/conversations/", {"title": "One", "project_id": "label", "api_key_id": "ignored"})
    place = f"{prefix}/conversations/{made['id']}"
    assert (made["model_alias"], made["project_id"]) == ("default", "label")
    for method, title in (("PUT", "Two"), ("PATCH", "Three")):
        assert ann.ask(method, place, {"title": title}).json()["title"] == title
    batch = [
        {"role": "user", "content": "Héllo wörld", "input_tokens": 3},
        {"role": "assistant", "content": "Hi", "output_tokens": 2, "metadata": {"cost": 0.000000001}},
        {"role": "user", "content": [{"type": "text", "text": "in parts"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
    ]
    kept = ann.post(f"{place}/messages/batch", {"conversation_id": made["id"], "messages": batch})
    assert [message["content"] for message in kept] == [message["content"] for message in batch]
    now = ann.get(place)
    assert [message["id"] for message in now["messages"]] == [message["id"] for message in kept]
    assert (now["message_count"], now["total_input_tokens"], now["total_output_tokens"]) == (4, 3, 2)
    assert now["total_cost"] == 1e-9
    assert ann.get(f"{place}/messages?limit=1&offset=1")[0]["content"] == "Hi"
    assert ann.get(f"{place}?include_messages=false")["messages"] == []
    assert [found["id"] for found in ann.get(f"{prefix}/conversations/search?q=hello+world")] == [kept[0]["id"]]
    assert [found["title"] for found in ann.get(f"{prefix}/conversations/search?q=parts")] == ["Three"]
    assert ann.get(f"{prefix}/conversations/search?q=nowhere") == []
    lines = ann.ask("GET", f"{place}/export").body.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [made["id"], *(message["id"] for message in kept)]
    assert ann.ask("DELETE", place).json() == {"message": "Conversation deleted successfully"}
    assert ann.ask("GET", place).status == 404
    assert ann.get(f"{prefix}/conversations/search?q=parts") == []


def test_levels_of_keeping(ann: Tenant):
    place = f"/conversations/{ann.post('/conversations', {})['id']}"
    said = [{"role": "user", "content": "private", "input_tokens": 5}]
    assert ann.post(f"{place}/messages/batch", {"messages": said, "logging_level": "none"}) == []
    (kept,) = ann.post(f"{place}/messages/batch", {"messages": said, "logging_level": "metadata"})
    assert (kept["content"], len(kept["content_hash"])) == (None, 64)
    assert ann.get(place)["total_input_tokens"] == 5
    assert ann.get("/conversations/search?q=private") == []


def test_old_messages_go_for_their_project_alone(ann: Tenant, bob: Tenant):
    places = []
    for one in (ann, bob):
        place = f"/conversations/{one.post('/conversations', {})['id']}"
        one.post(f"{place}/messages", {"role": "user", "content": "old"})
        places.append(place)
    assert ann.ask("DELETE", "/conversations/old-messages").status == 400
    assert ann.ask("DELETE", "/conversations/old-messages?retention_days=1").json()["deleted_count"] == 0
    assert ann.ask("DELETE", "/api/v1/conversations/old-messages?retention_days=0").json() == {
        "deleted_count": 1, "retention_days": 0,
    }  # fmt: skip
    assert ann.get(f"{places[0]}/messages") == []
    assert len(bob.get(f"{places[1]}/messages")) == 1


@pytest.mark.parametrize("store", ["single", "triple"], ids=["sqlite", "postgresql"])
def test_ten_thousand_messages_page_quickly(request: pytest.FixtureRequest, store: str):
    gate: Gate = request.getfixturevalue(store)
    ann = Tenant(gate)
    place = f"/conversations/{ann.post('/conversations', {})['id']}"
    for _ in range(10):
        ann.post(f"{place}/messages/batch", {"messages": [{"role": "user", "content": "word " * 20}] * 1000})
    assert ann.get(place)["message_count"] == 10_000
    took = []
    for offset in (0, 5_000, 9_900) * 5:
        start = time.perf_counter()
        page = gate.server.ask("GET", f"{place}/messages?limit=100&offset={offset}", key=ann.key)
        took.append(time.perf_counter() - start)
        assert len(page.json()) == 100
    print(f"\n{store}: a page of 100 of 10,000 in {min(took) * 1000:.1f} to {max(took) * 1000:.1f} ms")
    assert min(took) < 0.05  # the quickest: others use this machine, too
    lines = ann.ask("GET", f"{place}/export")
    assert len(lines.body.splitlines()) == 5_001
    rest = ann.ask("GET", f"{place}/export?after={lines.headers['x-next-after']}")
    assert len(rest.body.splitlines()) == 5_000


@pytest.mark.parametrize("prefix", ["", "/api/v1"])
def test_the_life_of_a_template(ann: Tenant, prefix):
    own = f"{prefix}/templates"
    made = ann.post(f"{own}/", {"name": "Greeting", "created_by": "ann", "tool_config": {"tools": [1]}})
    assert (made["tool_config"], made["temperature"], made["usage_count"]) == ({"tools": [1]}, 0.7, 0)
    place = f"{own}/{made['id']}"
    assert ann.ask("PUT", place, {"description": "Says hello"}).json()["description"] == "Says hello"
    assert ann.ask("PATCH", place, {"temperature": 0}).json()["temperature"] == 0
    assert ann.post(f"{place}/use")["usage_count"] == 1
    assert [row["usage_count"] for row in ann.get(f"{own}/stats")] == [1]
    assert [row["id"] for row in ann.get(f"{own}?created_by=ann")] == [made["id"]]
    assert ann.get(f"{own}?created_by=somebody") == []
    ann.ask("PUT", place, {"is_active": False})
    assert ann.get(own) == []
    assert ann.ask("DELETE", place).json() == {"message": "Template deleted successfully"}
    assert ann.ask("GET", place).status == 404


# -- chats that are kept


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_kept_in_the_conversation_it_names(ann: Tenant, stream):
    conversation = ann.post("/conversations", {})["id"]
    said: list[Json] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "One"}]
    for text in ("Two", None):
        body = {"model": "scripted", "messages": said, "stream": stream}
        answer = ann.ask("POST", "/v1/chat/completions", body, x_stentor_conversation=conversation)
        assert answer.status == 200
        events = [event for event in answer.events() if event != "[DONE]"] if stream else []
        reply = (
            "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
            if stream
            else answer.json()["choices"][0]["message"]["content"]
        )
        said += [{"role": "assistant", "content": reply}, *([{"role": "user", "content": text}] if text else [])]
    found = until(lambda: ann.get(f"/conversations/{conversation}"), lambda one: one["message_count"] == len(said), 60)
    assert [(message["role"], message["content"]) for message in found["messages"]] == [
        (message["role"], message["content"]) for message in said
    ]


def test_a_chat_is_kept_by_asking_to_store_it(ann: Tenant):
    body = {"model": "scripted", "messages": [{"role": "user", "content": "Remember me"}], "store": True}
    answer = ann.ask("POST", "/v1/chat/completions", body)
    (kept,) = until(lambda: [one for one in ann.get("/conversations") if one["message_count"] == 2], timeout_s=60)
    assert kept["title"] == "Remember me"
    messages = ann.get(f"/conversations/{kept['id']}/messages")
    assert messages[1]["metadata"]["request_id"] == answer.request_id
    assert kept["total_output_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert ann.gate.event(answer.request_id)["cost_nano"] == round(kept["total_cost"] * 1e9)


def test_nobody_keeps_a_chat_in_anothers_conversation(ann: Tenant, bob: Tenant):
    conversation = ann.post("/conversations", {})["id"]
    body = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
    for name in (conversation, "no-such-one", "../logs"):
        assert bob.ask("POST", "/v1/chat/completions", body, x_stentor_conversation=name).status == 404
    plain = Tenant(ann.gate, scopes=["inference"])
    assert plain.ask("POST", "/v1/chat/completions", body, x_stentor_conversation=conversation).status == 403
    assert plain.ask("POST", "/v1/chat/completions", {**body, "store": True}).status == 200


# -- receipts


def receipt_of(ann: Tenant) -> Json:
    answer = ann.gate.chat(key=ann.key)
    name = f"rcpt_{answer.request_id}_1"
    return until(lambda: ann.get(f"/api/v1/receipts/{name}"), lambda receipt: "log" in receipt, 60)


def test_a_receipt_is_soon_in_the_log(ann: Tenant):
    def wait_s() -> float:
        start = time.monotonic()
        receipt_of(ann)
        return time.monotonic() - start

    check_quick(wait_s, 3.0)


def test_every_request_has_a_receipt_that_an_outsider_verifies(ann: Tenant):
    receipt = receipt_of(ann)
    keys = ann.gate.ask("GET", "/receipts/public-keys.json", key="").json()
    assert check_receipt(receipt, keys)
    assert ann.gate.ask("POST", "/api/v1/receipts/verify", receipt, key="").json()["log"] == "included"
    forged = {**receipt, "cost": {**receipt["cost"], "amount": "0.000000001"}}
    verdict = ann.gate.ask("POST", "/api/v1/receipts/verify", forged, key="").json()
    assert (verdict["valid"], verdict["problem"]) == (False, "the signature doesn't fit the content")
    assert ann.post("/api/v1/receipts/", {"receipt": receipt})["status"] == "verified"
    refused = ann.ask("POST", "/api/v1/receipts/", {"receipt": forged})
    assert (refused.status, refused.json()["detail"]) == (400, "Invalid receipt signature")
    assert [one["id"] for one in ann.get("/api/v1/receipts/")["receipts"]] == [receipt["id"]]


def test_a_batch_is_signed_with_everything_in_it(ann: Tenant):
    ids = [ann.log(cost=cost, alias="a") for cost in (0.1, 0.2, 0.000000007)]
    before = ann.post("/api/v1/receipts/preview", {"log_ids": ids})
    assert (before["total_logs"], before["total_cost"], before["receipt_type"]) == (3, 0.300000007, "batch")
    made = ann.post("/api/v1/receipts/generate", {"log_ids": ids, "description": "March", "tags": ["x"]})
    assert made["certified_count"] == 3
    receipt = made["receipt"]
    assert (receipt["cost"]["amount"], receipt["metered_by"]) == ("0.300000007", "client")
    assert set(receipt["batch_summary"]["log_ids"]) == set(ids)
    kept = until(lambda: ann.get(f"/api/v1/receipts/{receipt['receipt_id']}"), lambda one: "log" in one, 60)
    keys = ann.gate.ask("GET", "/receipts/public-keys.json", key="").json()
    assert check_receipt(kept, keys)
    for change in ({"description": "April"}, {"tags": []}, {"batch_summary": {}}, {"total_cost": 0.1}):
        assert not check_receipt({**kept, **change}, keys)
        assert not ann.post("/api/v1/receipts/verify", {**kept, **change})["valid"]
    assert {row["id"] for row in ann.get(f"/api/v1/receipts/{receipt['receipt_id']}/logs")["logs"]} == set(ids)


def test_each_way_of_choosing_logs(ann: Tenant):
    assert ann.ask("POST", "/api/v1/receipts/generate", {}).status == 400
    nothing = ann.ask("POST", "/api/v1/receipts/generate", {"since_last_receipt": True})
    assert (nothing.status, nothing.json()["detail"]) == (400, "No logs found matching the criteria")
    assert ann.post("/api/v1/receipts/preview", {"since_last_receipt": True})["message"]
    conversation = str(uuid.uuid4())
    first = ann.log(metadata={"conversation_id": conversation})
    second = ann.log()
    ways = [
        ({"conversation_id": conversation}, [first]),
        ({"start_date": "2020-01-01"}, [first, second]),
        ({"start_date": "2020-01-01", "end_date": "2020-01-02"}, []),
        ({"log_ids": [second, str(uuid.uuid4())]}, [second]),
    ]
    for body, wanted in ways:
        assert ann.post("/api/v1/receipts/preview", body)["total_logs"] == len(wanted)
    made = ann.post("/api/v1/receipts/generate", {"log_ids": [first]})["receipt"]
    assert made["receipt_type"] == "single"
    assert [row["id"] for row in ann.get("/api/v1/receipts/uncertified")["logs"]] == [second]
    rest = ann.post("/api/v1/receipts/generate", {"since_last_receipt": True})["receipt"]
    assert rest["batch_summary"]["log_ids"] == [second]
    assert ann.get("/api/v1/receipts/uncertified")["total"] == 0
    answer = ann.gate.chat(key=ann.key)
    ann.gate.event(answer.request_id)
    assert [row["id"] for row in ann.get("/api/v1/receipts/uncertified?metered_by=stentor")["logs"]] == [
        answer.request_id
    ]
    body = {"log_ids": [answer.request_id], "metered_by": "stentor"}
    assert ann.post("/api/v1/receipts/generate", body)["receipt"]["metered_by"] == "stentor"
    assert ann.get("/api/v1/receipts/uncertified?metered_by=stentor")["total"] == 0


def test_both_shapes_are_issued_as_the_clients_word(ann: Tenant):
    nested = {
        "id": "n1", "timestamp": "2026-01-01T00:00:00Z", "registry_version": "7", "model": "openai:gpt-4o",
        "alias": "fast", "lock_digest": "d", "key_id": "default", "tokens": {"input": 1, "output": 2},
        "cost": {"amount": 0.25, "calculation": "guess"},
    }  # fmt: skip
    flat = {
        "alias": "fast", "provider": "openai", "model": "gpt-4o", "prompt_tokens": 1, "completion_tokens": 2,
        "total_tokens": 3, "input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.3,
    }  # fmt: skip
    keys = ann.gate.ask("GET", "/receipts/public-keys.json", key="").json()
    for body in (nested, flat):
        issued = ann.post("/api/v1/receipts/issue", body)
        assert issued["metered_by"] == "client"
        assert check_receipt(issued, keys)
        name = issued.get("id") or issued["receipt_id"]
        kept = until(lambda name=name: ann.get(f"/api/v1/receipts/{name}"), lambda one: "log" in one, 60)
        assert check_receipt(kept, keys)
    assert ann.ask("POST", "/api/v1/receipts/issue", nested).status == 409
    assert ann.gate.ask("POST", "/api/v1/receipts/issue", flat, key="").status == 401


def test_the_log_shows_proofs_to_all_and_contents_to_their_owners(ann: Tenant, bob: Tenant):
    receipt = receipt_of(ann)
    index = receipt["log"]["index"]
    ask = ann.gate.ask
    note = ask("GET", "/receipts/log/checkpoint", key="").body.decode()
    size = int(note.split("\n")[1])
    assert size > index
    proof = ask("GET", f"/receipts/log/proof?index={index}&size={size}", key="").json()
    assert (proof["index"], proof["size"]) == (index, size)
    assert ask("GET", f"/receipts/log/consistency?first=1&second={size}", key="").status == 200
    tile = ask("GET", f"/receipts/log/tiles/0/{index // 256}", key="").body
    assert len(tile) % 32 == 0
    for owner, content in ((ann, True), (bob, False)):
        (entry,) = owner.get(f"/receipts/log/entries?start={index}&limit=1")["entries"]
        assert (entry["leaf_hash"], entry["content"] is not None) == (proof["leaf_hash"], content)
    assert ask("GET", "/receipts/log/entries", key="").status == 401
    for path in (f"/receipts/log/proof?index={size + 1000}", "/receipts/log/tiles/0/99999", "/receipts/log/tiles/9/0",
                 f"/receipts/log/consistency?first={size + 1000}", "/receipts/log/checkpoint?log=nowhere"):  # fmt: skip
        assert ask("GET", path, key="").status == 404


def test_the_log_is_measured_and_examined(each: Gate, ann: Tenant):
    receipt_of(ann)
    until(lambda: each.metric("stentor_receipt_log_waiting"), lambda count: count == 0, 60)
    size = ann.get("/receipts/log/entries?limit=1")["size"]
    leaves = each.metric("stentor_receipt_log_leaves")
    assert leaves >= size > 0
    assert each.metric("stentor_receipt_log_leading") == 1
    assert each.metric("stentor_receipt_leaves_appended_total") >= leaves
    assert each.metric("stentor_receipt_checkpoint_timestamp_seconds") > 1.7e9
    found = {row["name"]: row for row in each.admin("GET", "/doctor")["data"]}
    for name in ("receipt log", "receipt entries", "receipt checkpoint", "receipt keys"):
        assert found[name]["ok"], found[name]


def test_public_keys_in_every_form(each: Gate):
    pem = each.ask("GET", "/receipts/public-key.pem", key="").body
    assert pem.startswith(b"-----BEGIN PUBLIC KEY-----\nMCow")
    jwk = each.ask("GET", "/receipts/public-key.jwk", key="").json()
    listed = each.ask("GET", "/receipts/public-keys.json", key="").json()
    assert listed[0]["x"] == jwk["x"]
    assert {key["purpose"] for key in listed} == {"receipt", "checkpoint"}
    raw = each.ask("GET", "/api/v1/receipts/public-keys.json", key="").json()
    assert raw["current_key_id"] == listed[0]["kid"]
    assert each.ask("GET", "/api/v1/receipts/public-key.pem", key="").body == pem


# -- registry


def test_the_registry_is_cached_by_its_tag_and_filtered(each: Gate):
    whole = each.ask("GET", "/registry", key="")
    assert each.ask("GET", "/registry/", key="").body == each.ask("GET", "/registry.json", key="").body == whole.body
    tag = whole.headers["etag"]
    assert tag == f'"{whole.json()["version"]}"'
    assert each.server.ask("GET", "/registry", key="", If_None_Match=tag).status == 304
    assert each.ask("GET", "/registry", key="", If_None_Match='"other"').status == 200
    some = each.ask("GET", "/registry?providers=openai,stentor&capabilities=vision,function_calling", key="").json()
    assert {model["provider"] for model in some["models"].values()} == {"openai"}
    old = each.ask("GET", f"/registry/v/{whole.json()['version']}/registry.json", key="")
    assert old.json()["models"] == whole.json()["models"]
    assert "immutable" in old.headers["cache-control"]
    own = each.ask("GET", "/registry/stentor/models.json", key="").json()["models"]["stentor:scripted"]
    assert (own["dollars_per_million_tokens_input"], own["dollars_per_million_tokens_output"]) == (0.1, 0.2)
    for path in ("/registry/nobody/models.json", "/registry/openai/v/999/models.json", "/registry/v/0/registry.json",
                 "/registry/openai/v/x/models.json"):  # fmt: skip
        assert each.ask("GET", path, key="").status == 404


# -- isolation


def test_no_key_reaches_anothers_data_by_any_route(ann: Tenant, bob: Tenant):
    conversation = ann.post("/conversations", {"title": "mine"})["id"]
    ann.post(f"/conversations/{conversation}/messages", {"role": "user", "content": "confidential"})
    template = ann.post("/templates", {"name": "mine", "created_by": "ann"})["id"]
    log = ann.log(alias="confidential")
    batch = ann.post("/api/v1/receipts/generate", {"log_ids": [log]})["receipt"]["receipt_id"]
    own = receipt_of(ann)["id"]
    ids = {"conversations": [conversation], "templates": [template], "receipts": [batch, own]}
    bodies: Json = {
        "ring_add_message": {"role": "user", "content": "x"},
        "ring_add_messages": {"messages": []},
        "ring_update_conversation": {"title": "theirs"},
        "ring_update_template": {"name": "theirs"},
    }
    walked = 0
    for route in SURFACE:
        if route.scope != "ring" or "{id}" not in route.path:
            continue
        kind = next(kind for kind in ids if f"/{kind}/" in route.path)
        for name in ids[kind]:
            answer = bob.ask(route.method, route.path.replace("{id}", name), bodies.get(route.handler))
            assert answer.status == 404, (route, answer.body)
            walked += 1
    assert walked >= 20
    _walk_lists(ann, bob, [*ids["conversations"], *ids["templates"], *ids["receipts"], log])
    assert bob.get("/api/v1/stats?metered_by=all")["summary"]["total_requests"] == 0
    assert bob.get("/api/v1/receipts")["total"] == bob.get("/api/v1/receipts/uncertified")["total"] == 0
    for body in ({"log_ids": [log]}, {"start_date": "2020-01-01"}, {"since_last_receipt": True}):
        assert bob.post("/api/v1/receipts/preview", body)["total_logs"] == 0
    assert ann.get(f"/conversations/{conversation}")["title"] == "mine"
    assert ann.get(f"/conversations/{conversation}")["message_count"] == 1


def _walk_lists(ann: Tenant, bob: Tenant, names: list[str]) -> None:
    """Every route that lists: what is in it for its owner is in no stranger's."""
    more = {"search_messages": "q=confidential", "logs": "metered_by=all", "uncertified_logs": "metered_by=stentor"}
    shown = set()
    for route in SURFACE:
        if route.scope != "ring" or route.method != "GET" or "{" in route.path:
            continue
        words = more.get(route.handler.removeprefix("ring_"), "")
        own, theirs = ann.ask("GET", f"{route.path}?{words}"), bob.ask("GET", f"{route.path}?{words}")
        assert (own.status, theirs.status) == (200, 200), (route, own.body, theirs.body)
        if any(name.encode() in own.body for name in names):
            shown.add(route.path)
        assert not any(name.encode() in theirs.body for name in [*names, "confidential"]), (route, theirs.body)
    assert shown >= {"/conversations", "/api/v1/templates", "/templates", "/api/v1/receipts", "/api/v1/logs"}


def test_two_keys_of_a_project_share_it(ann: Tenant):
    other = ann.gate.make_key(ann.user["id"], scopes=["ring"])["key"]
    conversation = ann.post("/conversations", {})["id"]
    assert ann.gate.ask("GET", f"/conversations/{conversation}", key=other).status == 200


def test_a_path_of_many_slashes_is_nowhere(gate: Gate) -> None:
    assert gate.ask("GET", "/conversations" + "/" * 5000).status == 404
