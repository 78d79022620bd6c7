"""How answers end badly in every dialect: left, failed, revoked, not booked. The books don't care in which words."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from stentor.accounting.tokens import count_tokens
from tests.http.harness import Gate, Stream, marked, price, until, wait_heard
from tests.http.test_store_trouble import locked
from tests.scripted_engine import script
from tests.serving import Server, scripted_model

PROMPT, SPOKEN = 20, "one two three"


class Dialect(NamedTuple):
    """A path, how a text is asked there, and by which bytes a stream's clean end is known."""

    path: str
    body: Callable[[str], dict]
    end: bytes
    whole: bool = True


def messages(text: str) -> dict:
    return {"model": "scripted", "max_tokens": 500, "messages": [{"role": "user", "content": text}]}


DIALECTS = {
    "responses": Dialect("/v1/responses", lambda text: {"model": "scripted", "input": text}, b"response.completed"),
    "messages": Dialect("/v1/messages", messages, b"message_stop"),
    "ollama chat": Dialect("/api/chat", messages, b'"done":true'),
    "ollama generate": Dialect("/api/generate", lambda text: {"model": "scripted", "prompt": text}, b'"done":true'),
    "lmserv": Dialect("/chat", lambda text: {"model": "scripted", "prompt": text}, b"", whole=False),
}
ALL = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
STREAMS = [pytest.param(dialect, stream, id=f"{name}-{'stream' if stream else 'whole'}")
           for name, dialect in DIALECTS.items() for stream in (True, False) if stream or dialect.whole]  # fmt: skip
EACH_WAY = pytest.mark.parametrize(("dialect", "stream"), STREAMS)


def ask(dialect: Dialect, text: str, *, stream: bool = True, **fields) -> dict:
    return {**dialect.body(text), "stream": stream, **fields}


def ends_well(dialect: Dialect, body: bytes, *, broken: bool) -> bool:
    return dialect.end in body if dialect.end else not broken


def counted(output: int) -> dict:
    return {"prompt_tokens": PROMPT, "completion_tokens": output}


@EACH_WAY
def test_one_event_equal_to_what_is_said(each: Gate, dialect, stream):
    text = script({"say": SPOKEN}, usage=counted(3))
    answer = each.ask("POST", dialect.path, ask(dialect, text, stream=stream))
    event = each.event(answer.request_id)
    assert (event["status"], event["endpoint"]) == ("completed", dialect.path)
    assert (event["input_tokens"], event["output_tokens"]) == (PROMPT, 3)
    assert event["cost_nano"] == price(PROMPT, 3)
    assert "".join(SPOKEN.split()) in answer.body.decode().replace(" ", "") or stream
    if not stream:
        assert int(float(answer.headers["x-stentor-cost"]) * 1e9 + 0.5) == event["cost_nano"]
    assert ends_well(dialect, answer.body, broken=False) or not stream


@EACH_WAY
def test_leaving_the_queue_costs_nothing(each: Gate, dialect, stream):
    first, waiting = each.make_key(), each.make_key()
    running = each.open(script({"say": "a"}, {"hang": True}), model="narrow", key=first["key"])
    running.content()
    text, mark = marked({"say": SPOKEN})
    body = ask(dialect, text, stream=stream, model="narrow")
    connection = each.send(body, path=dialect.path, key=waiting["key"])
    until(lambda: each.metric("stentor_queue_depth"), lambda depth: depth == 1)
    connection.close()
    until(lambda: each.metric("stentor_queue_depth"), lambda depth: depth == 0)
    running.leave()
    assert each.events_of_key(waiting["id"]) == []
    assert each.engine("narrow").entries(mark) == []


@EACH_WAY
def test_leaving_after_the_start_costs_what_was_made(each: Gate, dialect, stream):
    key = each.make_key()
    text, mark = marked({"say": "one two "}, {"heard": True}, {"hang": True}, usage=False)
    connection = each.send(ask(dialect, text, stream=stream), path=dialect.path, key=key["key"])
    wait_heard(each.engine(), mark)
    connection.close()
    assert each.engine().wait_entry(mark)["ended"] == "client_left"
    (event,) = until(lambda: each.events_of_key(key["id"]))
    assert (event["status"], event["reason"]) == ("cancelled", "client_left")
    assert event["input_tokens"] > 0
    assert event["output_tokens"] == count_tokens("one two ")
    assert event["cost_nano"] == price(event["input_tokens"], event["output_tokens"])


@EACH_WAY
def test_a_failure_before_the_first_word_is_tried_again(each: Gate, dialect, stream):
    text, _ = marked({"say": SPOKEN}, status=500, once=True)
    answer = each.ask("POST", dialect.path, ask(dialect, text, stream=stream))
    assert answer.status == 200
    failed, completed = each.events(answer.request_id, attempts=2)
    assert (failed["status"], failed["cost_nano"], completed["status"]) == ("failed", 0, "completed")


@EACH_WAY
@pytest.mark.parametrize("how", [{"status": 500}, {"rubbish": True}, {"at": {"after_headers": "close"}}])
def test_two_failures_before_the_first_word_are_an_error(gate: Gate, dialect, stream, how):
    text = script({"say": SPOKEN}, **how)
    answer = gate.ask("POST", dialect.path, ask(dialect, text, stream=stream))
    assert (answer.status, answer.headers["content-type"]) == (502, "application/json")
    assert [event["cost_nano"] for event in gate.events(answer.request_id, attempts=2)] == [0, 0]


@ALL
@pytest.mark.parametrize(
    "end", [{"error": "out of memory"}, {"close": True}, {"reset": True}, {"half": "x"}, {"raw": "data: {]\n\n"}]
)
def test_a_failure_after_the_first_word_has_no_clean_end(gate: Gate, dialect, end):
    stream = gate.begin(ask(dialect, script({"say": "one two"}, {"heard": True}, end)), path=dialect.path)
    assert stream.status == 200
    body = stream.rest()
    assert b"two" in body
    assert not ends_well(dialect, body, broken=stream.broken)
    assert b"out of memory" not in body
    event = gate.event(stream.request_id)
    assert (event["status"], event["input_tokens"], event["output_tokens"]) == ("failed", 0, 2)


@ALL
def test_a_chunk_of_another_shape_is_the_engines_failure(each: Gate, dialect):
    """What the chat passes on unread, a dialect has to understand."""
    odd = {"choices": [{"index": 0, "finish_reason": None, "delta": {"content": {"not": "a text"}}}]}
    stream = each.begin(ask(dialect, script({"say": "one two"}, {"heard": True}, {"frame": odd})), path=dialect.path)
    body = stream.rest()
    assert not ends_well(dialect, body, broken=stream.broken)
    event = each.event(stream.request_id)
    assert (event["status"], event["reason"], event["input_tokens"]) == ("failed", "engine_rubbish", 0)


@ALL
def test_a_revoked_key_ends_it(each: Gate, dialect):
    key = each.make_key()
    text = script({"say": "one two"}, {"hang": True})
    stream = each.begin(ask(dialect, text), path=dialect.path, key=key["key"])
    assert stream.status == 200
    each.admin("POST", f"/api-keys/{key['id']}/revoke")
    body = stream.rest()
    assert not ends_well(dialect, body, broken=stream.broken)
    assert each.event(stream.request_id)["status"] == "cancelled"


def test_what_can_not_be_booked_has_no_clean_end(each: Gate, tmp_path: Path):
    key = each.make_key()
    assert each.chat(key=key["key"]).status == 200
    text = script({"say": "one two"}, {"until": str(tmp_path / "go")})
    streams = {name: each.begin(ask(own, text), path=own.path, key=key["key"]) for name, own in DIALECTS.items()}
    assert {stream.status for stream in streams.values()} == {200}
    with locked(each):
        (tmp_path / "go").touch()
        bodies = {name: stream.rest() for name, stream in streams.items()}
    for name, dialect in DIALECTS.items():
        assert not ends_well(dialect, bodies[name], broken=streams[name].broken), name
        assert each.find_events(streams[name].request_id) == [], name


def test_a_whole_answer_that_can_not_be_booked_is_refused(each: Gate):
    key = each.make_key()
    assert each.chat(key=key["key"]).status == 200
    whole = [dialect for dialect in DIALECTS.values() if dialect.whole]
    with locked(each):
        asked = [
            each.send(ask(dialect, script({"say": SPOKEN}), stream=False), path=dialect.path, key=key["key"])
            for dialect in whole
        ]
        for dialect, connection in zip(whole, asked, strict=True):
            answer = Stream(connection, connection.getresponse()).answer()
            each.contract.check("POST", dialect.path, answer)
            assert answer.status == 503, dialect.path
            assert b"one" not in answer.body, dialect.path


@EACH_WAY
def test_odd_wires_make_no_difference(gate: Gate, dialect, stream):
    said = [
        gate.ask("POST", dialect.path, ask(dialect, script({"say": SPOKEN}, **how), stream=stream)).body
        for how in ({}, {"crlf": True}, {"piece": 3}, {"whole": True}, {"done": False})
    ]
    words = [texts_of(dialect, body, stream=stream) for body in said]
    assert words == [SPOKEN] * len(said)


def texts_of(dialect: Dialect, body: bytes, *, stream: bool) -> str:
    """The words of an answer."""
    text = body.decode()
    if dialect.path == "/chat":
        return text
    if dialect.path.startswith("/api"):
        found = [json.loads(line) for line in text.splitlines()]
        return "".join(line.get("response") or line.get("message", {}).get("content", "") for line in found)
    if not stream:
        whole = json.loads(text)
        parts = whole["output"][0]["content"] if "output" in whole else whole["content"]
        return "".join(part["text"] for part in parts)
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    deltas = [event["delta"] for event in events if event["type"].endswith((".delta", "block_delta"))]
    return "".join(delta if isinstance(delta, str) else delta["text"] for delta in deltas)


@ALL
def test_a_context_that_is_too_small_is_told_with_both_numbers(gate: Gate, dialect):
    answer = gate.ask("POST", dialect.path, ask(dialect, script(exceed_context=[9000, 8192])))
    assert answer.status == 400
    assert b"9000" in answer.body
    assert b"8192" in answer.body


@ALL
def test_a_body_over_the_limit(strict: Gate, dialect):
    answer = strict.ask("POST", dialect.path, b"x" * 1_100_000, key=strict.make_key()["key"])
    assert answer.status == 413


@ALL
def test_a_key_for_other_endpoints_or_models(gate: Gate, dialect):
    elsewhere = gate.make_key(endpoints=["/v1/chat/completions"])["key"]
    assert gate.ask("POST", dialect.path, ask(dialect, "hi"), key=elsewhere).status == 403
    here = gate.make_key(endpoints=[dialect.path])["key"]
    assert gate.ask("POST", dialect.path, ask(dialect, "hi"), key=here).status == 200
    other = gate.make_key(models=["narrow"])["key"]
    assert gate.ask("POST", dialect.path, ask(dialect, "hi"), key=other).status == 404


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_that_ends_says_so(tmp_path: Path, workers):
    server = Server(tmp_path, scripted_model(), "--admin-key", DURABILITY="process", DRAIN_S="0.3",
                    GATEWAY_WORKERS=workers)  # fmt: skip
    with server:
        gate = Gate(server)
        text, mark = marked({"say": "one two"}, {"heard": True}, {"hang": True})
        streams = {name: gate.begin(ask(each, text), path=each.path) for name, each in DIALECTS.items()}
        until(lambda: [entry["heard"] for entry in gate.engine().entries(mark)], lambda found: sum(found) == 5)
        ended = threading.Thread(target=server.stop)
        ended.start()
        bodies = {name: stream.rest() for name, stream in streams.items()}
        ended.join(60)
    for name, dialect in DIALECTS.items():
        assert b"one" in bodies[name], name
        assert not ends_well(dialect, bodies[name], broken=streams[name].broken), name
        assert dialect.path == "/chat" or b"shutting down" in bodies[name], name
    assert b"request_crashed" not in server.log
