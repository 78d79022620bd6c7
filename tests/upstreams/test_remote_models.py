"""Remote models: what reaches them, what comes back, what it costs, and who answers when they fail."""

import concurrent.futures
import json
import socket
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.http.harness import Json, until
from tests.upstreams.conftest import FAR_USD, SPARE_USD, TOKEN, Wide, remote_model

NANO_PER_TOKEN = 1_000  # a USD per million


def usd_cost(event: Json, usd: int) -> int:
    return int(event["input_tokens"] + event["output_tokens"]) * usd * NANO_PER_TOKEN


def text_of(answer: Any) -> str:
    """The answer's text, streamed or not."""
    if answer.headers["content-type"].startswith("application/json"):
        return str(answer.json()["choices"][0]["message"]["content"])
    parts = [event["choices"][0]["delta"].get("content") or "" for event in answer.events()[:-1] if event["choices"]]
    return "".join(parts)


# -- the good way


@pytest.mark.parametrize("stream", [False, True])
def test_a_remote_model_answers_and_is_metered_as_a_local_one(wide: Wide, stream: bool) -> None:
    answer = wide.chat("hello", model="far", stream=stream)
    assert answer.status == 200
    assert "scripted engine" in text_of(answer)
    assert answer.headers["x-stentor-model"] == "far"
    event = wide.event(answer.request_id)
    assert (event["model"], event["engine"], event["status"], event["estimated"]) == (
        "far",
        "openai",
        "completed",
        False,
    )
    assert event["cost_nano"] == usd_cost(event, FAR_USD) > 0
    seen = wide.far.log()[-1]
    assert seen["headers"]["authorization"] == f"Bearer {TOKEN}"
    assert seen["body"]["stream_options"] == {"include_usage": True}
    assert not set(seen["body"]) & {"timings_per_token", "return_progress", "cache_prompt"}
    if not stream:
        assert answer.json()["usage"]["prompt_tokens"] == event["input_tokens"]


def test_what_could_change_the_bill_or_is_not_known_is_not_sent(wide: Wide) -> None:
    fields = {"service_tier": "priority", "web_search_options": None, "store": True, "user": "x", "temperature": 0.5}
    assert wide.chat("hello", model="far", **fields).status == 200
    body = wide.far.log()[-1]["body"]
    assert body["temperature"] == 0.5
    assert not set(body) & {"service_tier", "web_search_options", "store", "user"}
    assert wide.chat("hello", model="far", best_of=5).status == 400


def test_usage_that_an_upstream_leaves_out_is_counted_here(wide: Wide) -> None:
    wide.far.control(default={"do": [{"say": "one two three"}], "usage": False})
    for stream in (False, True):
        answer = wide.chat("count me please", model="far", stream=stream)
        event = wide.event(answer.request_id)
        assert event["estimated"]
        assert (event["input_tokens"], event["output_tokens"]) == (3, 3)
        assert event["cost_nano"] == usd_cost(event, FAR_USD)


def test_usage_beyond_what_was_reserved_is_charged_up_to_what_is_there_and_absorbed(wide: Wide) -> None:
    user = wide.make_user(tier="payg", balance_nano=20_000_000)
    key = wide.make_key(user["id"])["key"]
    wide.far.control(default={"do": [{"say": "hi"}], "usage": {"prompt_tokens": 50_000, "completion_tokens": 2}})
    answer = wide.chat("hello", model="far", max_tokens=5, key=key)
    event = wide.event(answer.request_id)
    assert event["cost_nano"] == 20_000_000
    assert event["absorbed_nano"] == 50_002 * NANO_PER_TOKEN - 20_000_000
    assert wide.balance(user["id"]) == 0


def test_no_more_requests_at_a_time_than_it_may_run(wide: Wide, tmp_path: Path) -> None:
    wide.far.control(default={"do": [{"say": "a b c"}, {"until": str(tmp_path / "go")}]})
    before = wide.far.ask("GET", "/state")["peak"]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(wide.chat, f"hello {n}", model="narrow") for n in range(6)]
        until(lambda: wide.far.ask("GET", "/state")["running"], lambda count: count == 2)
        until(lambda: wide.metric("stentor_queue_depth"), lambda depth: depth == 4)
        (tmp_path / "go").touch()
        answers = [each.result(60) for each in asked]
    assert {answer.status for answer in answers} == {200}
    assert wide.far.ask("GET", "/state")["peak"] == max(2, before)
    assert [wide.event(answer.request_id)["queued_us"] > 0 for answer in answers].count(True) == 4


def test_a_client_that_leaves_ends_the_upstreams_work(wide: Wide) -> None:
    wide.far.control(default={"do": [{"tokens": 500, "delay_s": 0.02}]})
    stream = wide.open("leave me", model="far")
    stream.content()
    stream.leave()
    event = wide.event(stream.request_id)
    assert (event["status"], event["reason"], event["billable"]) == ("cancelled", "client_left", True)
    assert event["output_tokens"] >= 1
    until(lambda: wide.far.log()[-1]["ended"], lambda ended: ended == "client_left")


def test_a_second_stentor_is_an_upstream_like_any(wide: Wide) -> None:
    for stream in (False, True):
        answer = wide.chat("hello", model="peer", stream=stream)
        assert answer.status == 200
        assert "scripted engine" in text_of(answer)
        event = wide.event(answer.request_id)
        there = wide.peer.admin("GET", "/usage?limit=1")["data"][0]
        assert [event[name] for name in ("input_tokens", "output_tokens")] == [
            there[name] for name in ("input_tokens", "output_tokens")
        ]
    refused = wide.chat("hello", model="peer", max_tokens=10_000_000, id_slot=1)
    assert refused.status == 400


def test_embeddings_come_from_afar_too(wide: Wide) -> None:
    wide.claude.reset()
    answer = wide.ask("POST", "/v1/embeddings", {"model": "vectors", "input": "three small words"})
    assert answer.status == 200, answer.body
    assert answer.json()["data"][0]["embedding"] == [0.5, -1.0]
    event = wide.event(answer.request_id)
    assert (event["model"], event["input_tokens"], event["cost_nano"]) == ("vectors", 3, 3 * NANO_PER_TOKEN)
    wide.claude.status, wide.claude.body = 500, {"error": {"message": f"at 10.1.2.3 with {TOKEN}"}}
    answer = wide.ask("POST", "/v1/embeddings", {"model": "vectors", "input": "three small words"})
    assert (answer.status, answer.json()["error"]["code"]) == (502, "engine_failed")
    assert TOKEN not in answer.body.decode()
    wide.claude.reset()
    assert wide.chat("hello", model="vectors").json()["error"]["code"] == "missing_ability"


# -- when it fails


BEFORE_THE_FIRST_WORD: dict[str, Json] = {
    "500": {"status": 500},
    "503": {"status": 503},
    "429": {"status": 429},
    "401": {"status": 401},
    "404": {"status": 404},
    "200-then-error": {"do": [{"error": "boom"}]},
    "closed-after-headers": {"at": {"after_headers": "close"}},
    "reset-before-headers": {"at": {"before_headers": "reset"}},
    "rubbish": {"rubbish": True},
    "not-a-stream": {"content_type": "text/html"},
    "silent": {"do": [{"hang": True}]},
    "silent-before-headers": {"at": {"before_headers": "hang"}},
    "pings-alone": {"do": [{"ping": 3}, {"hang": True}]},
    "compressed": {"gzip": True},
    "half-a-frame": {"do": [{"half": "text"}]},
    "empty": {"do": [], "finish": False, "done": False, "usage": False},
}
SILENT = ("silent", "silent-before-headers", "pings-alone")


@pytest.mark.parametrize("fault", BEFORE_THE_FIRST_WORD)
@pytest.mark.parametrize("stream", [False, True])
def test_the_next_of_the_chain_answers_where_nothing_was_sent(wide: Wide, fault: str, stream: bool) -> None:
    model = wide.fresh("quick" if fault in SILENT else "chain")
    wide.far.control(default=BEFORE_THE_FIRST_WORD[fault])
    answer = wide.chat("hello", model=model, stream=stream)
    assert answer.status == 200, answer.body
    assert answer.headers["x-stentor-model"] == "spare"
    first, second = wide.events(answer.request_id, 2)
    assert (first["model"], first["status"], first["cost_nano"], first["billable"]) == (model, "failed", 0, False)
    assert first["reason"].startswith("upstream_")
    assert (second["model"], second["status"], second["attempt"]) == ("spare", "completed", 2)
    assert second["cost_nano"] == usd_cost(second, SPARE_USD)


def test_a_chain_ends_with_a_model_of_this_machine(wide: Wide) -> None:
    wide.spare.control(default={"status": 500})
    answer = wide.chat("hello", model="gone")
    assert answer.headers["x-stentor-model"] == "local"
    assert [event["model"] for event in wide.events(answer.request_id, 3)] == ["gone", "spare", "local"]


def test_what_was_sent_is_not_said_again_by_another(wide: Wide) -> None:
    model = wide.fresh("chain")
    wide.far.control(default={"do": [{"say": "some words "}, {"close": True}]})
    answer = wide.chat("hello", model=model, stream=True)
    events = answer.events()
    assert answer.headers["x-stentor-model"] == model
    assert "error" in events[-1]
    assert "[DONE]" not in events
    event = wide.event(answer.request_id)
    assert (event["status"], event["input_tokens"], event["output_tokens"]) == ("failed", 0, 3)
    # Whoever waits for the whole has seen nothing yet.
    assert wide.chat("hello", model=wide.fresh("chain")).headers["x-stentor-model"] == "spare"


def test_a_request_that_is_wrong_is_wrong_everywhere(wide: Wide) -> None:
    text = f"Unknown field, key {TOKEN} at {wide.far.url}/v1 is fine"
    wide.far.control(default={"status": 400, "body": {"error": {"message": text, "type": "invalid_request_error"}}})
    answer = wide.chat("hello", model=wide.fresh("chain"))
    assert answer.status == 400
    assert "Unknown field" in answer.json()["error"]["message"]
    for hidden in (TOKEN, "127.0.0.1", wide.far.url):
        assert hidden not in answer.body.decode()
    assert len(wide.events(answer.request_id)) == 1
    wide.far.control(default={"exceed_context": [9000, 8192]})
    assert wide.chat("hello", model="far").json()["error"]["code"] == "context_length_exceeded"


def test_a_chain_reserves_its_dearest_member(wide: Wide) -> None:
    """Enough for the first, not for the one that might have to answer in its place."""
    model = wide.fresh("chain")
    user = wide.make_user(tier="payg", balance_nano=2_000 * NANO_PER_TOKEN * FAR_USD)
    key = wide.make_key(user["id"])["key"]
    refused = wide.chat("hello", model=model, max_tokens=1_000, key=key)
    assert (refused.status, refused.json()["error"]["code"]) == (402, "insufficient_balance")
    answer = wide.chat("hello", model="far", max_tokens=1_000, key=key)
    assert answer.status == 200
    wide.admin("POST", f"/users/{user['id']}/topup", {"amount_nano": 20_000 * NANO_PER_TOKEN * FAR_USD})
    answer = wide.chat("hello", model=model, max_tokens=1_000, key=key)
    assert wide.event(answer.request_id)["cost_nano"] == usd_cost(wide.event(answer.request_id), FAR_USD)


def test_a_key_that_may_not_use_a_fallback_does_not_get_it(wide: Wide) -> None:
    model = wide.fresh("chain")
    key = wide.make_key(models=[model, "local"])["key"]
    wide.far.control(default={"status": 500})
    assert wide.chat("hello", model=model, key=key).headers["x-stentor-model"] == "local"


def test_when_all_fail_the_first_trouble_is_told(wide: Wide) -> None:
    model = wide.fresh("chain")
    key = wide.make_key(models=[model])["key"]
    body = {"error": {"message": f"internal: db at 10.1.2.3 refused {TOKEN}", "type": "server_error"}}
    wide.far.control(default={"status": 500, "body": body})
    answer = wide.chat("hello", model=model, key=key)
    assert (answer.status, answer.json()["error"]["code"]) == (502, "engine_failed")
    for hidden in (TOKEN, "10.1.2.3", "127.0.0.1", "db at"):
        assert hidden not in answer.body.decode()
        if hidden != "127.0.0.1":
            assert hidden not in wide.server.log.decode()


def test_being_asked_to_wait_is_passed_on_and_respected(wide: Wide) -> None:
    model = wide.fresh()
    wide.far.control(default={"status": 429, "headers": {"Retry-After": "7"}})
    answer = wide.chat("hello", model=model)
    assert (answer.status, answer.json()["error"]["code"], answer.headers["retry-after"]) == (503, "overloaded", "7")
    asked = len(wide.far.log())
    again = wide.chat("hello", model=model)
    assert again.status == 503
    assert 1 <= int(again.headers["retry-after"]) <= 7
    assert len(wide.far.log()) == asked


def refuses_unasked(wide: Wide, model: str) -> bool:
    """Whether a request is refused and its upstream left alone; not if a look has just found that it lives."""
    asked = len([entry for entry in wide.far.log() if entry["method"] == "POST"])
    refused = wide.chat("hello", model=model)
    assert refused.status == 503
    left_alone = len([entry for entry in wide.far.log() if entry["method"] == "POST"]) == asked
    return left_alone and refused.json()["error"]["code"] == "model_unavailable" and "retry-after" in refused.headers


def test_an_upstream_that_keeps_failing_is_left_alone_and_tried_again_when_it_lives(wide: Wide) -> None:
    wide.far.control(default={"status": 500})
    for _ in range(3):  # each is tried twice
        wide.chat("hello", model="watched")
    until(lambda: refuses_unasked(wide, "watched"))
    until(lambda: b"upstream_changed" in wide.server.log)
    wide.far.control()
    # The look at its models sees it alive long before the pause is over; one trial closes the circuit.
    until(lambda: wide.chat("hello", model="watched").status, lambda status: status == 200, 60)
    cards = {card["id"]: card for card in wide.admin("GET", "/models")["data"]}
    assert (cards["watched"]["state"], cards["watched"]["engine"]) == ("ready", "openai")


def test_stopping_a_remote_model_stops_it(wide: Wide) -> None:
    model = wide.fresh()
    wide.admin("POST", f"/models/{model}/stop")
    assert wide.chat("hello", model=model).json()["error"]["code"] == "model_unavailable"
    wide.admin("POST", f"/models/{model}/start")
    assert wide.chat("hello", model=model).status == 200


def test_a_providers_address_is_guarded_whatever_was_written_before(wide: Wide) -> None:
    """The operator's own address is trusted; one that came over the API is checked when it is connected to."""
    for url in ("http://127.0.0.1:8000", "http://localhost:8000/v1", "http://169.254.169.254/v1"):
        ask = {"name": "inside", "kind": "openai", "base_url": url, "credential": TOKEN}
        answer = wide.operate("POST", "/admin/api/providers", ask)
        assert (answer.status, answer.json()["code"]) == (400, "address_not_allowed")
    here = f"http://{socket.gethostname()}:{wide.port}/v1"
    wide.admin("POST", "/providers", {"name": "inside", "kind": "openai", "base_url": here})
    try:
        answer = wide.chat("hello", model="inside")
    finally:
        wide.admin("DELETE", "/providers/inside")
    assert answer.status == 502
    assert "isn't public" in answer.body.decode() or "can't be looked up" in answer.body.decode()
    assert {event["cost_nano"] for event in wide.find_events(answer.request_id)} == {0}


# -- registered over the API


def register(wide: Wide, **fields: Any) -> Any:
    return wide.operate("POST", "/admin/api/models", fields)


def test_a_remote_model_is_registered_with_a_provider_and_a_price(wide: Wide) -> None:
    price = {"input": 3, "output": 6}
    name = f"new-remote-{uuid.uuid4().int % 10**8:08}"
    made = register(wide, id=name, remote={"provider": "acme", "price": price}, ctx=4096, aliases=[f"{name}-too"])
    assert made.status == 200, made.body
    assert made.json()["definition"]["remote"]["provider"] == "acme"
    prices = wide.admin("GET", f"/pricing/{name}")["data"]
    assert (prices[0]["input_nano"], prices[0]["output_nano"]) == (3_000_000_000, 6_000_000_000)
    changed = wide.operate(
        "PATCH", f"/admin/api/models/{name}", {"remote": {"provider": "acme", "price": {"request": 0.01}}}
    )
    assert changed.status == 200, changed.body
    prices = wide.admin("GET", f"/pricing/{name}")["data"]
    assert (prices[0]["input_nano"], prices[0]["request_nano"]) == (0, 10_000_000 * 1_000_000)
    assert wide.operate("DELETE", f"/admin/api/models/{name}").status == 200
    assert wide.chat("hello", model=name).status == 404


@pytest.mark.parametrize(
    ("remote", "words"),
    [
        ({"provider": "acme"}, "price"),
        ({"provider": "acme", "price": {}}, "must be known"),
        ({"provider": "nobody", "price": {"request": 1}}, "no provider"),
        ({"provider": "acme", "base_url": "https://evil.example", "price": {"request": 1}}, "its own address alone"),
        ({"base_url": "http://127.0.0.1:9", "price": {"request": 1}}, "isn't public"),
        ({"base_url": "http://127.0.0.1:9", "price": {"request": 1}, "trusted": True}, "isn't public"),
        ({"base_url": "http://0x7f.1/", "price": {"request": 1}}, "usual spelling"),
        ({"price": {"request": 1}}, "neither"),
        ("acme", "object"),
    ],
)
def test_a_remote_model_that_must_not_be_is_refused(wide: Wide, remote: Any, words: str) -> None:
    answer = register(wide, id="bad-remote", remote=remote)
    assert answer.status == 400
    assert words in answer.json()["detail"]
    assert "bad-remote" not in json.dumps(wide.admin("GET", "/models"))


def test_a_remote_model_comes_and_changes_its_price_with_the_settings_file(wide: Wide) -> None:
    config = wide.server.config
    before = config.read_text()
    for usd in (3, 4):
        fresh = config.with_suffix(".new")
        fresh.write_text(before + remote_model("arriving", wide.spare.url, usd=usd))
        fresh.replace(config)
        until(lambda: price_of(wide, "arriving"), lambda found, usd=usd: found == usd * 1_000_000_000, 60)
        answer = until(lambda: wide.chat("hello", model="arriving"), lambda given: given.status == 200, 60)
        event = wide.event(answer.request_id)
        assert event["cost_nano"] == usd_cost(event, usd)
    config.write_text(before)
    until(lambda: wide.chat("hello", model="arriving").status, lambda status: status == 404, 60)


def price_of(wide: Wide, model: str) -> int:
    answer = wide.operate("GET", f"/admin/api/pricing/{model}")
    return int(answer.json()["data"][0]["input_nano"]) if answer.status == 200 else 0
