"""LMServ's surface, line by line: plain text, a chunk a token, its refusals, and what reaches the engine."""

import json

import pytest

from tests.http.harness import Gate, RawConnection, marked, raw_request
from tests.scripted_engine import DEFAULT_TEXT, script

PATH = "/chat"


@pytest.fixture
def key(each: Gate) -> str:
    """A key that may use one model: LMServ's clients don't name any."""
    return each.make_key(models=["scripted"])["key"]


def test_words_and_nothing_else(each: Gate, key):
    answer = each.ask("POST", PATH, {"prompt": "hi"}, key=key)
    assert (answer.status, answer.body.decode()) == (200, DEFAULT_TEXT)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    event = each.event(answer.request_id)
    assert (event["endpoint"], event["status"], event["output_tokens"]) == (PATH, "completed", 5)


@pytest.mark.parametrize("delay_s", [0, 0.02])
def test_a_chunk_is_a_token(each: Gate, key, delay_s):
    prompt = script({"tokens": 20, "delay_s": delay_s})
    body = json.dumps({"prompt": prompt}).encode()
    headers = {"Host": "localhost", "X-API-Key": key, "Content-Length": str(len(body))}
    with RawConnection(each.port) as connection:
        connection.send(raw_request("POST", PATH, headers, body))
        assert connection.head()[0] == 200
        chunks = [chunk.decode() for chunk in connection.chunks()]
    assert chunks == [f"t{number} " for number in range(20)]


def test_a_whole_answer_in_one_read_is_a_chunk_a_token_all_the_same(each: Gate, key):
    body = json.dumps({"prompt": script({"tokens": 5}, whole=True)}).encode()
    headers = {"Host": "localhost", "X-API-Key": key, "Content-Length": str(len(body))}
    with RawConnection(each.port) as connection:
        connection.send(raw_request("POST", PATH, headers, body))
        connection.head()
        assert len(list(connection.chunks())) == 5


def test_the_defaults(each: Gate, key):
    prompt, mark = marked()
    each.ask("POST", PATH, {"prompt": prompt}, key=key)
    body = each.engine().wait_entry(mark)["body"]
    assert body["messages"] == [{"role": "user", "content": prompt}]
    wanted = {"max_tokens": 256, "temperature": 0.8, "top_p": 0.9, "repeat_penalty": 1.1}
    assert {name: body[name] for name in wanted} == wanted


def test_every_parameter_reaches_the_engine(each: Gate, key):
    prompt, mark = marked()
    wanted = {"max_tokens": 7, "temperature": 0, "top_p": 0.5, "repeat_penalty": 1.5}
    each.ask("POST", PATH, {"prompt": prompt, "system_prompt": "Be brief.", **wanted}, key=key)
    body = each.engine().wait_entry(mark)["body"]
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
    assert {name: body[name] for name in wanted} == wanted


def test_max_tokens_cuts_the_answer(each: Gate, key):
    assert each.ask("POST", PATH, {"prompt": script({"tokens": 50}), "max_tokens": 3}, key=key).body == b"t0 t1 t2 "


@pytest.mark.parametrize("headers", [{}, {"X_API_Key": "sk-wrong"}, {"Authorization": "Bearer sk-wrong"}])
def test_a_bad_key(each: Gate, headers):
    answer = each.ask("POST", PATH, {"prompt": "hi"}, key="", **headers)
    assert (answer.status, answer.json()["detail"]) == (401, "Bad API key")


WRONG = {
    "no prompt": ({}, "prompt"),
    "an empty prompt": ({"prompt": ""}, "prompt"),
    "a number": ({"prompt": 7}, "prompt"),
    "no tokens": ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
    "half a token": ({"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
    "too hot": ({"prompt": "x", "temperature": 2.1}, "temperature"),
    "too cold": ({"prompt": "x", "temperature": -0.1}, "temperature"),
    "too much": ({"prompt": "x", "top_p": 1.1}, "top_p"),
    "a penalty as text": ({"prompt": "x", "repeat_penalty": "high"}, "repeat_penalty"),
    "no penalty": ({"prompt": "x", "repeat_penalty": 0}, "repeat_penalty"),
}


@pytest.mark.parametrize(("body", "word"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(gate: Gate, body, word):
    answer = gate.ask("POST", PATH, body)
    assert answer.status == 400
    assert word in answer.json()["detail"]


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{", b"[" * 5000, b'{"prompt":"\xff"}', b'{"prompt":"\\ud800"}']
)
def test_bodies_that_can_not_be_read(gate: Gate, data):
    assert gate.ask("POST", PATH, data).status == 400


def test_an_engine_that_fails_before_the_first_word(each: Gate, key):
    answer = each.ask("POST", PATH, {"prompt": script(status=500)}, key=key)
    assert (answer.status, answer.json()["code"]) == (502, "engine_failed")


@pytest.mark.parametrize("end", [{"error": "out of memory"}, {"close": True}, {"reset": True}])
def test_an_answer_that_breaks_off_is_seen_to(each: Gate, key, end):
    stream = each.begin({"prompt": script({"say": "so far"}, {"heard": True}, end)}, path=PATH, key=key)
    assert stream.rest() == b"so far"
    assert stream.broken
    event = each.event(stream.request_id)
    assert (event["status"], event["input_tokens"], event["output_tokens"]) == ("failed", 0, 2)


def test_a_revoked_key_ends_a_running_answer(each: Gate):
    key = each.make_key(models=["scripted"])
    stream = each.begin({"prompt": script({"say": "so far"}, {"hang": True})}, path=PATH, key=key["key"])
    assert stream.take(6) == b"so far"
    each.admin("POST", f"/api-keys/{key['id']}/revoke")
    assert stream.rest() == b"so far"
    assert stream.broken
    assert each.event(stream.request_id)["status"] == "cancelled"


def test_a_model_may_be_named(each: Gate):
    answer = each.ask("POST", PATH, {"prompt": "hi", "model": "narrow"})
    assert (answer.status, answer.headers["x-stentor-model"]) == (200, "narrow")


def test_nobody_guesses_among_several(each: Gate):
    answer = each.ask("POST", PATH, {"prompt": "hi"})
    assert (answer.status, answer.json()["code"]) == (404, "model_not_found")
    assert "name one of" in answer.json()["detail"]
