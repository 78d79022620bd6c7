"""Engines that break off, hang, die or talk rubbish: what the client hears, what is booked, and that it goes on."""

import itertools
import threading

import pytest

from stentor.accounting.tokens import count_tokens
from stentor.flows.failure import engine_error, refused_by_engine
from tests.http.harness import CHAT, Gate, chat_body, marked, price, until
from tests.scripted_engine import DEFAULT_TEXT, script

SPOKEN = "one two three"
EARLY = ("before_headers", "after_headers")
MIDDLE = ("before_finish", "mid_finish", "before_usage", "mid_usage")
LATE = ("before_done", "before_end")
_mortals = itertools.count()


@pytest.fixture
def mortal(gate: Gate) -> str:
    """A model whose engine may die; each is used by one test."""
    return f"mortal-{next(_mortals)}"


def events_without_end(answer) -> str:
    """The text of a stream that ended in an error, which must look like one."""
    *events, error = answer.events()
    assert error["error"]["code"] == "engine_failed", error
    assert all(choice["finish_reason"] is None for event in events for choice in event["choices"])
    assert b"[DONE]" not in answer.body
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def assert_failed_twice(gate: Gate, answer, *reasons: str) -> None:
    """Nothing reached the client: both attempts are in the books, and neither was charged."""
    assert (answer.status, answer.json()["error"]["code"]) == (502, "engine_failed")
    first, second = gate.events(answer.request_id, 2)
    for event in (first, second):
        assert (event["status"], event["cost_nano"], event["billable"]) == ("failed", 0, False)
        assert (event["input_tokens"], event["output_tokens"]) == (0, 0)
        assert event["reason"] in reasons
    assert (first["attempt"], second["attempt"]) == (1, 2)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("point", EARLY)
def test_before_the_first_byte_a_failure_is_tried_again_and_costs_nothing(each: Gate, point, how, stream):
    answer = each.chat(script({"say": SPOKEN}, at={point: how}), stream=stream)
    assert_failed_twice(each, answer, "engine_unreachable", "engine_broke_off")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_the_second_attempt_answers(each: Gate, how, stream):
    text, mark = marked({"say": SPOKEN}, at={"after_headers": how}, once=True)
    answer = each.chat(text, stream=stream)
    assert answer.status == 200
    assert DEFAULT_TEXT.split()[0].encode() in answer.body
    first, second = each.events(answer.request_id, 2)
    assert (first["status"], first["cost_nano"], first["attempt"]) == ("failed", 0, 1)
    assert (second["status"], second["attempt"]) == ("completed", 2)
    assert second["cost_nano"] == price(second["input_tokens"], second["output_tokens"]) > 0
    assert len(each.engine().entries(mark)) == 2


def test_a_connection_that_the_engine_closed_meanwhile_is_no_failed_attempt(each: Gate):
    assert [each.chat("hello").status for _ in range(4)] == [200] * 4
    text, mark = marked({"say": SPOKEN}, at={"before_headers": "close"}, once=True)
    answer = each.chat(text)
    assert answer.status == 200
    assert each.find_events(answer.request_id)[-1]["status"] == "completed"
    assert len(each.engine().entries(mark)) == 2


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("point", MIDDLE)
def test_within_a_stream_only_what_was_relayed_is_charged(each: Gate, point, how):
    text = script({"say": SPOKEN}, {"heard": True}, at={point: how})
    answer = each.chat(text, stream=True, stream_options={"include_usage": True})
    assert answer.status == 200
    assert events_without_end(answer) == SPOKEN
    event = each.event(answer.request_id)
    assert (event["status"], event["reason"], event["attempt"]) == ("failed", "engine_broke_off", 1)
    assert (event["input_tokens"], event["output_tokens"]) == (0, count_tokens(SPOKEN))
    assert event["cost_nano"] == price(0, count_tokens(SPOKEN))
    assert event["estimated"]


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("point", MIDDLE)
def test_a_whole_answer_that_broke_off_is_tried_again(each: Gate, point, how):
    text, _ = marked({"say": SPOKEN}, at={point: how}, once=True)
    answer = each.chat(text)
    assert answer.json()["choices"][0]["message"]["content"] == DEFAULT_TEXT
    first, second = each.events(answer.request_id, 2)
    assert (first["status"], first["cost_nano"], first["output_tokens"]) == ("failed", 0, 0)
    assert (first["reason"], second["status"]) == ("engine_broke_off", "completed")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("point", LATE)
def test_an_answer_that_is_finished_and_counted_is_whole(each: Gate, point, how, stream):
    answer = each.chat(script({"say": SPOKEN}, at={point: how}), stream=stream)
    assert answer.status == 200
    if stream:
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert answer.events()[-2]["choices"][0]["finish_reason"] == "stop"
    else:
        assert answer.json()["choices"][0]["message"]["content"] == SPOKEN
    event = each.event(answer.request_id)
    assert (event["status"], event["output_tokens"]) == ("completed", 3)
    assert event["cost_nano"] == price(event["input_tokens"], 3)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("point", [*EARLY, "before_finish", *LATE])
def test_an_engine_that_hangs_is_let_go_when_the_client_leaves(each: Gate, point, stream):
    text, mark = marked({"say": SPOKEN}, at={point: "hang"})
    connection = each.send(chat_body(text, stream=stream))
    each.engine().wait_entry(mark, ended=False)
    until(lambda: each.engine().entries(mark)[0]["frames"], lambda count: point in EARLY or count >= 4)
    connection.close()
    assert each.engine().wait_entry(mark, timeout_s=30.0)["ended"] == "client_left"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("point", ["before_headers", "after_headers"])
def test_an_engine_that_dies_before_its_answer(gate: Gate, mortal, point, stream):
    answer = gate.chat(script({"say": SPOKEN}, at={point: "die"}), model=mortal, stream=stream)
    assert_failed_twice(gate, answer, "engine_unreachable", "engine_broke_off")
    assert gate.chat("are you back?", model=mortal).status == 200
    assert gate.slot(mortal)["restarts"] == 2


@pytest.mark.parametrize("point", ["before_finish", "before_usage"])
def test_an_engine_that_dies_within_its_answer(gate: Gate, mortal, point):
    answer = gate.chat(script({"say": SPOKEN}, {"heard": True}, at={point: "die"}), model=mortal, stream=True)
    assert events_without_end(answer) == SPOKEN
    event = gate.event(answer.request_id)
    assert (event["status"], event["cost_nano"]) == ("failed", price(0, count_tokens(SPOKEN)))
    assert gate.chat("are you back?", model=mortal).status == 200


def test_an_engine_that_dies_after_its_answer(gate: Gate, mortal):
    answer = gate.chat(script({"say": SPOKEN}, {"heard": True}, at={"before_end": "die"}), model=mortal, stream=True)
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert gate.event(answer.request_id)["status"] == "completed"


def test_only_the_streams_of_a_dead_engine_fail(gate: Gate, mortal):
    other = gate.open(script({"say": "still"}, {"sleep": 0.4}, {"say": "here"}))
    neighbour = gate.open(script({"say": "I"}, {"hang": True}), model=mortal)
    assert neighbour.content() == "I"
    failed = gate.chat(script({"say": SPOKEN}, {"heard": True}, {"die": True}), model=mortal, stream=True)
    assert events_without_end(failed) == SPOKEN
    assert events_without_end(neighbour.answer()) == "I"
    assert other.rest().endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("status", [500, 503, 429, 404, 401])
def test_an_engine_that_fails_is_asked_twice(each: Gate, status, stream):
    answer = each.chat(script(status=status, message="scripted trouble"), stream=stream)
    assert_failed_twice(each, answer, "engine_error")
    text, _ = marked({"say": SPOKEN}, status=status, once=True)
    again = each.chat(text, stream=stream)
    assert again.status == 200
    assert [event["status"] for event in each.events(again.request_id, 2)] == ["failed", "completed"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_words_that_an_engine_can_not_read_back_are_tried_again(each: Gate, stream):
    """llama-server's parser of answers refuses some of what its model says; neither is ill, and another try may do."""
    message = "The model produced output that does not match the expected peg-native format"
    text, mark = marked({"say": SPOKEN}, status=500, message=message, type="server_error", once=True)
    answer = each.chat(text, stream=stream)
    assert answer.status == 200
    first, second = each.events(answer.request_id, 2)
    assert (first["status"], first["reason"], first["cost_nano"]) == ("failed", "engine_error", 0)
    assert (second["status"], second["reason"]) == ("completed", "")
    assert len(each.engine().entries(mark)) == 2
    assert_failed_twice(each, each.chat(script(status=500, message=message), stream=stream), "engine_error")


def test_only_some_errors_are_a_sign_of_illness():
    assert engine_error("it failed", "CUDA error: out of memory").suspect
    assert not engine_error("it failed", '{"message":"It does not match the expected peg-native format"}').suspect
    assert not engine_error("it failed", "busy", is_server_error=False).suspect


def test_a_field_that_the_engine_names_is_named_without_its_librarys_words():
    refused = refused_by_engine("Field 'top_p': [json.exception.type_error.302] type must be number, but is string")
    assert refused.param == "top_p"
    assert refused.message.endswith("request: Field 'top_p': type must be number, but is string")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_what_the_engine_refuses_is_the_clients_to_mend(each: Gate, stream):
    text, mark = marked(status=400, message="grammar: unexpected '}'", type="invalid_request_error")
    answer = each.chat(text, stream=stream)
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["type"]) == (400, "invalid_request", "invalid_request_error")
    assert "grammar: unexpected '}'" in error["message"]
    event = each.event(answer.request_id)
    assert (event["status"], event["reason"], event["cost_nano"]) == ("failed", "engine_refused", 0)
    assert len(each.engine().entries(mark)) == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_too_long_a_prompt_is_told_with_both_numbers(each: Gate, stream):
    answer = each.chat(script(exceed_context=[9123, 8192]), stream=stream)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (400, "context_length_exceeded")
    assert "9123" in error["message"]
    assert "8192" in error["message"]
    assert error["details"] == {"prompt_tokens": 9123, "context_size": 8192}
    assert each.event(answer.request_id)["cost_nano"] == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    "how",
    [
        {"rubbish": True},
        {"content_type": "text/html"},
        {"content_type": "application/json"},
        {"do": [{"frame": [1, 2]}]},
        {"do": [{"raw": "data: {half\n\n"}]},
        {"do": [{"frame": {"choices": "none"}}]},
        {"do": [{"raw": "data: " + "[" * 5000 + "]" * 5000 + "\n\n"}]},
    ],
    ids=["rubbish", "html", "json", "a list", "half a frame", "no choices", "nested"],
)
def test_rubbish_is_not_passed_on(each: Gate, how, stream):
    answer = each.chat(script(**{"do": [{"say": SPOKEN}], "whole": True, **how}), stream=stream)
    assert_failed_twice(each, answer, "engine_rubbish", "engine_broke_off")


def test_an_error_within_a_stream_ends_it(each: Gate):
    answer = each.chat(script({"say": SPOKEN}, {"heard": True}, {"error": "out of memory"}), stream=True)
    assert events_without_end(answer) == SPOKEN
    event = each.event(answer.request_id)
    assert (event["status"], event["reason"]) == ("failed", "engine_error")
    assert event["cost_nano"] == price(0, count_tokens(SPOKEN))


def test_an_error_within_a_whole_answer_is_tried_again(each: Gate):
    answer = each.chat(script({"say": SPOKEN}, {"error": "out of memory"}))
    assert_failed_twice(each, answer, "engine_error")


def test_words_that_come_together_with_an_error_reach_a_begun_stream(each: Gate):
    together = (
        'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"two"}}]}\n\ndata: {"error":{}}\n\n'
    )
    answer = each.chat(script({"say": "one "}, {"heard": True}, {"raw": together}), stream=True)
    assert events_without_end(answer) == "one two"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_answer_without_usage_is_counted_here(each: Gate, stream):
    text = script({"think": "hm"}, {"say": SPOKEN}, usage=False)
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = each.chat(text, stream=stream, **options)
    usage = answer.events()[-2]["usage"] if stream else answer.json()["usage"]
    event = each.event(answer.request_id)
    assert (event["status"], event["estimated"]) == ("completed", True)
    assert event["input_tokens"] == count_tokens(text) == usage["prompt_tokens"]
    assert event["output_tokens"] == count_tokens("hm" + SPOKEN) == usage["completion_tokens"]
    assert event["cost_nano"] == price(event["input_tokens"], event["output_tokens"])
    if stream:
        assert answer.events()[-2]["choices"] == []
        assert answer.events()[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_answer_without_a_done_mark_gets_one(each: Gate, stream):
    answer = each.chat(script({"say": SPOKEN}, done=False), stream=stream)
    assert answer.status == 200
    assert not stream or answer.body.endswith(b"data: [DONE]\n\n")
    assert each.event(answer.request_id)["status"] == "completed"


def test_an_answer_without_an_end_is_none(each: Gate):
    streamed = each.chat(script({"say": SPOKEN}, {"heard": True}, finish=False), stream=True)
    assert events_without_end(streamed) == SPOKEN
    assert each.event(streamed.request_id)["status"] == "failed"
    whole = each.chat(script({"say": SPOKEN}, finish=False))
    assert_failed_twice(each, whole, "engine_broke_off")


def test_a_failed_engine_does_not_slow_down_the_others(each: Gate):
    """A suspect instance is looked at before it gets more work, and then serves again."""
    stop = threading.Event()
    statuses: list[int] = []

    def go_on() -> None:
        while not stop.is_set():
            statuses.append(each.chat("hello").status)

    thread = threading.Thread(target=go_on)
    thread.start()
    for _ in range(5):
        each.ask("POST", CHAT, chat_body(script(status=500)))
    stop.set()
    thread.join()
    assert set(statuses) == {200}
