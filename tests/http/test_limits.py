"""Limits as clients meet them: which status, which words, which headers, and that nothing is booked."""

import contextlib
import json
import threading
import time
from pathlib import Path

import pytest

from stentor.accounting.tokens import count_tokens
from tests.http.harness import (
    CHAT,
    OUTPUT_NANO,
    Gate,
    Stream,
    chat_body,
    check_quick,
    marked,
    price,
    until,
    use_until_its_end,
)
from tests.scripted_engine import script

REVOKED_S = 1.0


def refusal(answer, status: int, code: str):
    """The ``details`` of a refusal that must be this one."""
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (status, code), error
    return error.get("details", {})


# -- rates


def test_requests_per_minute(each: Gate):
    key = each.make_key(limits={"requests_per_minute": 3})
    begun_s = time.time()
    assert [each.chat(key=key["key"]).status for _ in range(3)] == [200] * 3
    answer = each.chat(key=key["key"])
    details = refusal(answer, 429, "rate_limit_exceeded")
    assert (details["rule"], details["limit"], details["left"]) == ("requests_per_minute", 3, 0)
    took_s = time.time() - begun_s
    assert 59 - took_s <= int(answer.headers["retry-after"]) <= 61
    assert answer.headers["x-ratelimit-limit-requests"] == "3"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert begun_s + 59 <= int(answer.headers["x-ratelimit-reset-requests"]) <= begun_s + took_s + 62
    assert "x-should-retry" not in answer.headers
    assert len(each.events_of_key(key["id"])) == 3


def test_a_users_rate_counts_over_all_keys(each: Gate):
    user = each.make_user(tier="payg", balance_nano=10**9)
    keys = [each.make_key(user["id"])["key"] for _ in range(3)]
    statuses = [each.chat(key=keys[number % 3]).status for number in range(27)]
    assert statuses == [200] * 25 + [429] * 2


def test_what_was_never_served_does_not_count_as_a_request(each: Gate):
    key = each.make_key(limits={"requests_per_minute": 2})["key"]
    for _ in range(4):
        assert each.chat(key=key, model="no-such-model").status == 404
    assert [each.chat(key=key).status for _ in range(3)] == [200, 200, 429]


def test_tokens_per_minute(each: Gate):
    key = each.make_key(limits={"tokens_per_minute": 1000})["key"]
    text = script({"say": "x"}, usage={"prompt_tokens": 600, "completion_tokens": 1})
    begun_s = time.monotonic()
    assert each.chat(text, key=key, max_tokens=10).status == 200
    answer = each.chat(text, key=key, max_tokens=500)
    details = refusal(answer, 429, "rate_limit_exceeded")
    assert (details["unit"], details["limit"], details["left"]) == ("tokens", 1000, 399)
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
    assert int(answer.headers["retry-after"]) >= 59 - (time.monotonic() - begun_s)


def test_a_request_that_no_minute_can_hold(each: Gate):
    key = each.make_key(limits={"tokens_per_minute": 1000})["key"]
    answer = each.chat(key=key, max_tokens=5000)
    details = refusal(answer, 429, "rate_limit_exceeded")
    assert 500 < details["affordable_output_tokens"] < 1000
    assert details["left"] == 1000
    assert "retry-after" not in answer.headers
    assert answer.headers["x-should-retry"] == "false"  # no minute is long enough
    assert answer.headers["x-ratelimit-remaining-tokens"] == "1000"
    affordable = details["affordable_output_tokens"]
    assert each.chat(key=key, max_tokens=affordable).status == 200


def test_concurrency(each: Gate):
    key = each.make_key(limits={"concurrency": 2})["key"]
    streams = [each.open(script({"say": "a"}, {"hang": True}), key=key) for _ in range(2)]
    answer = each.chat(key=key)
    details = refusal(answer, 429, "rate_limit_exceeded")
    assert (details["rule"], details["limit"]) == ("concurrency", 2)
    assert answer.headers["retry-after"] == "1"
    streams[0].leave()
    until(lambda: each.chat(key=key).status, lambda status: status == 200)
    streams[1].leave()


def test_requests_per_second(strict: Gate):
    key = strict.make_key()["key"]
    begun_s, refused = time.time(), []
    while not refused:
        assert time.time() < begun_s + 60
        waiting = [strict.send(chat_body(), key=key) for _ in range(12)]  # all at once, however slow the machine is
        answers = [Stream(connection, connection.getresponse()).answer() for connection in waiting]
        refused = [answer for answer in answers if answer.status == 429]
    strict.contract.check("POST", CHAT, refused[0])
    details = refusal(refused[0], 429, "rate_limit_exceeded")
    assert (details["rule"], details["limit"]) == ("requests_per_second", 5)
    assert refused[0].headers["x-ratelimit-limit-requests"] == "5"
    assert begun_s <= int(refused[0].headers["x-ratelimit-reset-requests"]) <= time.time() + 2
    assert refused[0].headers["retry-after"] == "1"
    assert strict.chat(key=strict.make_key()["key"]).status == 200


# -- money and tokens


def test_a_balance_that_does_not_cover_what_is_asked(each: Gate):
    user = each.make_user(tier="payg", balance_nano=price(300, 100))
    key = each.make_key(user["id"])["key"]
    answer = each.chat(key=key, max_tokens=999)
    details = refusal(answer, 402, "insufficient_balance")
    assert answer.headers["x-should-retry"] == "false"
    affordable = details["affordable_output_tokens"]
    assert str(affordable) in answer.json()["error"]["message"]
    assert 100 <= affordable < 999
    assert details["left_nano"] == price(300, 100)
    assert each.chat(key=key, max_tokens=affordable + 1).status == 402
    assert each.chat(key=key, max_tokens=affordable).status == 200


def test_an_answer_of_no_asked_length_is_cut_to_what_the_balance_affords(each: Gate):
    user = each.make_user(tier="payg", balance_nano=price(300, 50))
    key = each.make_key(user["id"])["key"]
    text, mark = marked({"tokens": 500})
    answer = each.chat(text, key=key)
    assert answer.status == 200
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    cap = each.engine().wait_entry(mark)["body"]["max_tokens"]
    assert answer.json()["usage"]["completion_tokens"] == cap < 200
    assert each.balance(user["id"]) == user["balance_nano"] - each.event(answer.request_id)["charged_nano"]


def test_an_empty_balance_pays_for_nothing(each: Gate):
    user = each.make_user(tier="payg")
    answer = each.chat(key=each.make_key(user["id"])["key"])
    details = refusal(answer, 402, "insufficient_balance")
    assert (details["left_nano"], details["affordable_output_tokens"]) == (0, 0)
    assert "Even one output token" in answer.json()["error"]["message"]


def test_many_at_once_never_overdraw(each: Gate):
    user = each.make_user(tier="sub")
    paying = each.make_user(tier="payg", balance_nano=price(2500, 0))
    key = each.make_key(paying["id"])["key"]
    text = script({"say": "a b c"}, {"sleep": 0.05}, usage={"prompt_tokens": 250, "completion_tokens": 3})
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(each.chat(text, key=key, max_tokens=3))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status for answer in answers} == {200, 402}
    charged = sum(each.event(answer.request_id)["charged_nano"] for answer in answers if answer.status == 200)
    assert each.balance(paying["id"]) == price(2500, 0) - charged >= 0
    assert user["balance_nano"] == 0


def test_more_than_was_reserved_is_absorbed(each: Gate):
    user = each.make_user(tier="payg", balance_nano=price(400, 20))
    key = each.make_key(user["id"])["key"]
    text = script({"say": "x"}, usage={"prompt_tokens": 5000, "completion_tokens": 10})
    answer = each.chat(text, key=key, max_tokens=5)
    event = each.event(answer.request_id)
    assert event["charged_nano"] == price(400, 20)
    assert event["absorbed_nano"] == price(5000, 10) - price(400, 20)
    assert each.balance(user["id"]) == 0


def test_a_token_limit_is_for_the_whole_life_of_a_key(each: Gate):
    key = each.make_key(limits={"token_limit": 400})["key"]
    text = script({"say": "x"}, usage={"prompt_tokens": 250, "completion_tokens": 1})
    assert each.chat(text, key=key, max_tokens=2).status == 200
    answer = each.chat(text, key=key, max_tokens=2)
    details = refusal(answer, 429, "quota_exceeded")
    assert (details["rule"], details["limit"], details["left"]) == ("token_limit", 400, 149)
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers


def test_a_spending_limit_is_for_the_whole_life_of_a_key(each: Gate):
    key = each.make_key(limits={"spending_limit_nano": price(300, 10)})["key"]
    text = script({"say": "x"}, usage={"prompt_tokens": 200, "completion_tokens": 1})
    assert each.chat(text, key=key, max_tokens=2).status == 200
    answer = each.chat(text, key=key, max_tokens=2)
    details = refusal(answer, 402, "spending_limit")
    assert details["left_nano"] == price(300, 10) - price(200, 1)
    assert answer.headers["x-should-retry"] == "false"


def test_every_surface_names_the_rule_and_its_numbers(each: Gate):
    key = each.make_key(limits={"spending_limit_nano": 7}, models=["scripted"])["key"]
    ollama = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
    for path, body in (("/chat", {"prompt": "hi"}), ("/api/chat", ollama)):
        answer = each.ask("POST", path, body, key=key).json()
        assert (answer["code"], answer["details"]["limit_nano"], answer["details"]["left_nano"]) == (
            "spending_limit", 7, 7,
        )  # fmt: skip
    answer = each.ask("POST", "/v1/messages", {**ollama, "max_tokens": 9}, key=key).json()
    assert "$0.000000007 of $0.000000007 left" in answer["error"]["message"]


def test_the_prompt_is_priced_with_its_cached_part(each: Gate):
    text = script({"say": "x"}, usage={"prompt_tokens": 100, "cached_tokens": 60, "completion_tokens": 7})
    event = each.event(each.chat(text).request_id)
    assert (event["input_tokens"], event["cached_tokens"], event["cost_nano"]) == (100, 60, price(100, 7))


def test_the_reservation_counts_every_answer(each: Gate):
    user = each.make_user(tier="payg", balance_nano=price(400, 0) + 100 * OUTPUT_NANO)
    key = each.make_key(user["id"])["key"]
    assert each.chat(key=key, max_tokens=90).status == 200
    assert refusal(each.chat(key=key, max_tokens=90, n=8), 402, "insufficient_balance")


# -- the queue


@contextlib.contextmanager
def narrow_is_taken(gate: Gate):
    holder = gate.open(script({"say": "mine"}, {"hang": True}), model="narrow")
    assert holder.content() == "mine"
    try:
        yield holder
    finally:
        holder.leave()


def test_one_who_waits_is_served_next(each: Gate):
    answers = []
    with narrow_is_taken(each):
        thread = threading.Thread(target=lambda: answers.append(each.chat(model="narrow")))
        thread.start()
        until(lambda: each.metric("stentor_queue_depth"), lambda depth: depth == 1)
    thread.join()
    assert answers[0].status == 200
    assert each.event(answers[0].request_id)["queued_us"] > 0


def test_a_full_queue_refuses(each: Gate):
    with narrow_is_taken(each):
        waiting = [each.send(chat_body(model="narrow")) for _ in range(4)]
        until(lambda: each.metric("stentor_queue_depth"), lambda depth: depth == 4)
        answer = each.chat(model="narrow")
        assert refusal(answer, 503, "overloaded") == {"queue_limit": 4}
        assert int(answer.headers["retry-after"]) >= 1
        assert each.find_events(answer.request_id) == []
    for connection in waiting:
        assert connection.getresponse().status == 200
        connection.close()


def test_waiting_has_an_end(strict: Gate):
    with narrow_is_taken(strict):
        start = time.monotonic()
        answer = strict.chat(model="narrow", key=strict.make_key()["key"])
        assert 0.4 < time.monotonic() - start < 50
    assert refusal(answer, 503, "overloaded") == {"queue_timeout_s": 0.5}
    assert int(answer.headers["retry-after"]) >= 1


# -- revocation


def test_a_revoked_key_stops_within_a_second_with_all_it_runs(each: Gate):
    check_quick(lambda: revoke_once(each), REVOKED_S)


def revoke_once(each: Gate) -> float:
    """Revoke a key with much that runs; how long it takes until nothing goes any more."""
    key = each.make_key()
    text = script({"say": "so far"}, {"hang": True})
    streams = [each.open(text, key=key["key"]) for _ in range(12)]
    assert {stream.content() + stream.content() for stream in streams} == {"so far"}
    wholes = [each.send(chat_body(script({"sleep": 30})), key=key["key"]) for _ in range(4)]
    assert until(each.running, lambda count: count == 16)
    start = time.monotonic()
    each.admin("POST", f"/api-keys/{key['id']}/revoke")
    for stream in streams:
        answer = stream.answer()
        assert answer.events()[-1]["error"]["code"] == "invalid_api_key"
        assert b"[DONE]" not in answer.body
    for connection in wholes:
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["error"]["code"]) == (401, "invalid_api_key")
        connection.close()
    for _ in range(16):
        assert each.chat(key=key["key"]).status == 401
    took_s = time.monotonic() - start
    events = until(lambda: each.events_of_key(key["id"]), lambda rows: len(rows) == 16)
    assert {(event["status"], event["reason"]) for event in events} == {("cancelled", "key_revoked")}
    streamed = [event for event in events if event["stream"]]
    assert {event["cost_nano"] for event in streamed} == {price(count_tokens(text), count_tokens("so far"))}
    return took_s


def test_a_key_that_may_do_more_goes_on_with_what_it_runs(each: Gate, tmp_path: Path):
    key = each.make_key(endpoints=[CHAT], models=["scripted"])
    go_on = tmp_path / "go-on"
    stream = each.open(script({"say": "so far"}, {"until": str(go_on)}, {"say": "and on"}), key=key["key"])
    assert stream.content() == "so "
    assert each.ask("GET", "/v1/models", key=key["key"]).status == 403
    change = {"endpoints": [], "models": [], "expires_us": time.time_ns() // 1000 + 10**9}
    each.admin("PATCH", f"/api-keys/{key['id']}", change)
    until(lambda: each.ask("GET", "/v1/models", key=key["key"]).status, lambda status: status == 200)
    go_on.touch()
    assert stream.answer().body.endswith(b"data: [DONE]\n\n")


def test_a_revoked_key_leaves_the_queue(each: Gate):
    key = each.make_key()
    with narrow_is_taken(each):
        waiting = each.send(chat_body(model="narrow"), key=key["key"])
        until(lambda: each.metric("stentor_queue_depth"), lambda depth: depth == 1)
        each.admin("POST", f"/api-keys/{key['id']}/revoke")
        response = waiting.getresponse()
        assert (response.status, json.loads(response.read())["error"]["code"]) == (401, "invalid_api_key")
        waiting.close()
    assert each.events_of_key(key["id"]) == []


def test_revoking_one_key_leaves_the_others_running(each: Gate):
    ended, going = each.make_key(), each.make_key()
    stream: Stream = each.open(script({"say": "a"}, {"sleep": 0.3}, {"say": "b"}), key=going["key"])
    assert stream.content() == "a"
    each.admin("POST", f"/api-keys/{ended['id']}/revoke")
    assert stream.rest().endswith(b"data: [DONE]\n\n")


def test_an_expired_key_is_not_cut_short(each: Gate, tmp_path: Path):
    text = script({"say": "a"}, {"until": str(tmp_path / "go")}, {"say": "b"})
    key, stream = use_until_its_end(each, lambda key: each.open(text, key=key))
    assert stream.content() == "a"
    (tmp_path / "go").touch()
    assert stream.rest().endswith(b"data: [DONE]\n\n")
    assert each.chat(key=key).status == 401


# -- other settings


def test_a_smaller_body_limit_is_named(strict: Gate):
    answer = strict.ask("POST", CHAT, json.dumps(chat_body("x" * 1_100_000)).encode(), key=strict.make_key()["key"])
    assert refusal(answer, 413, "body_too_large") == {}
    assert "1 MiB" in answer.json()["error"]["message"]


@pytest.mark.parametrize("host", ["gate.example", "GATE.example:8443", "a.inner.example", "b.a.inner.example"])
def test_allowed_hosts_are_known(strict: Gate, host):
    assert strict.ask("GET", "/health", key="", Host=host).status == 200


@pytest.mark.parametrize("host", ["inner.example", "notgate.example", "gate.example.org", "xinner.example"])
def test_other_hosts_are_not(strict: Gate, host):
    assert strict.ask("GET", "/health", key="", Host=host).json()["code"] == "host_not_allowed"


def test_known_origins_may_ask(strict: Gate):
    origin = "https://app.example"
    answer = strict.ask("GET", "/v1/models", key=strict.make_key()["key"], Origin=origin)
    assert answer.headers["access-control-allow-origin"] == origin
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "x-next", "x-next-after", "x-ratelimit-limit-parallel"} <= set(exposed)
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers
    refused = strict.ask("GET", "/v1/models", key="", Origin=origin)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, origin)


def test_a_preflight_is_answered_without_a_key(strict: Gate):
    asked = {"Origin": "http://localhost:3000", "Access_Control_Request_Method": "POST"}
    answer = strict.server.ask("OPTIONS", CHAT, key="", **asked)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "Authorization" in answer.headers["access-control-allow-headers"]


@pytest.mark.parametrize("origin", ["https://evil.example", "https://app.example.evil", "null", "http://app.example"])
def test_other_origins_get_nothing(strict: Gate, origin):
    answer = strict.ask("GET", "/health", key="", Origin=origin)
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers
    preflight = strict.server.ask("OPTIONS", CHAT, key="", Origin=origin, Access_Control_Request_Method="POST")
    assert "access-control-allow-origin" not in preflight.headers
