"""An answer is followed frame by frame: relayed byte for byte, held from its finish on, and counted."""

import json
from typing import Any

import pytest

from stentor.core.books import Usage
from stentor.flows.answer import AnswerMeter, EngineError, EngineRubbish, usage_frame
from stentor.flows.assembly import Assembly


def frame(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def content(text: str, index: int = 0, **more: Any) -> bytes:
    return frame(choices=[{"finish_reason": None, "index": index, "delta": {"content": text}}], id="c", **more)


def finish(index: int = 0, reason: str = "stop", **more: Any) -> bytes:
    return frame(choices=[{"finish_reason": reason, "index": index, "delta": {}}], id="c", **more)


def usage(prompt: int, output: int, cached: int = 0) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}


def counted(prompt: int, output: int, cached: int = 0) -> bytes:
    return frame(choices=[], id="c", usage=usage(prompt, output, cached))


DONE = b"data: [DONE]\n\n"
TIMINGS = {"cache_n": 3, "prompt_n": 7, "predicted_n": 2, "predicted_ms": 1.5}


def meter(answers: int = 1, include_usage: bool = False) -> AnswerMeter:
    return AnswerMeter(answers=answers, include_usage=include_usage)


def test_relays_content_byte_for_byte() -> None:
    one = meter()
    word = content('said "finish_reason":"stop" and "usage":{} and "error"')
    assert one.take(word) == word
    assert not one.finished


def test_is_finished_with_the_finish_frame_and_not_before() -> None:
    one = meter()
    one.take(content("a"))
    assert not one.finished
    one.take(finish())
    assert one.finished
    assert not one.done


def test_a_spaced_null_is_not_a_finish() -> None:
    one = meter()
    assert one.take(b'data: {"choices": [{"index": 0, "finish_reason": null, "delta": {"content": "x"}}]}\n\n')
    assert not one.finished


def test_several_answers_are_finished_together_and_their_outputs_added() -> None:
    two = meter(answers=2, include_usage=True)
    two.take(finish(0))
    assert not two.finished
    two.take(counted(10, 4, 2))
    two.take(finish(1))
    assert two.finished
    two.take(counted(10, 5, 2))
    assert two.usage() == Usage(input_tokens=10, cached_tokens=2, output_tokens=9)
    closing = two.take(DONE)
    assert closing is not None
    assert json.loads(closing.split(b"\n\n")[0][6:])["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize("asked", [True, False])
def test_shows_the_usage_frame_exactly_when_asked(asked: bool) -> None:
    one = meter(include_usage=asked)
    one.take(finish())
    assert one.take(counted(10, 4)) is None
    closing = one.take(DONE)
    assert closing == (counted(10, 4) + DONE if asked else DONE)


def test_leaves_usage_inside_a_finish_frame_alone() -> None:
    one = meter()
    last = finish(usage=usage(5, 2))
    assert one.take(last) == last
    assert one.usage() == Usage(input_tokens=5, output_tokens=2)


def test_takes_its_own_timings_out_again() -> None:
    one = meter()
    assert one.take(content("x", timings=TIMINGS)) == content("x")
    assert one.usage_so_far() == Usage(input_tokens=10, cached_tokens=3, output_tokens=2)


def test_keeps_prompt_progress_to_itself_and_counts_by_it() -> None:
    one = meter()
    progress = {"total": 35, "cache": 4, "processed": 20, "time_ms": 9}
    assert one.take(content("", prompt_progress=progress, timings=TIMINGS)) is None
    assert one.usage_so_far() == Usage(input_tokens=35, cached_tokens=4, output_tokens=0)


def test_knows_nothing_of_a_silent_engine() -> None:
    assert meter().usage_so_far() is None


@pytest.mark.parametrize("junk", [b": ping\n\n", b"\n\n", b"data: null\n\n"])
def test_drops_what_says_nothing(junk: bytes) -> None:
    assert meter().take(junk) is None


def test_an_error_frame_is_an_error() -> None:
    with pytest.raises(EngineError, match="boom"):
        meter().take(frame(error={"message": "boom", "code": 500}))


@pytest.mark.parametrize(
    "junk", [b"data: <html>\n\n", b"data: [1]\n\n", b"data: " + b"[" * 5000 + b"\n\n", b"data: \xff\n\n"]
)
def test_rubbish_is_rubbish(junk: bytes) -> None:
    with pytest.raises(EngineRubbish):
        meter().take(junk)


def test_makes_the_usage_frame_that_an_engine_left_out() -> None:
    made = json.loads(usage_frame(finish(), Usage(input_tokens=3, output_tokens=4))[6:])
    assert made["choices"] == []
    assert made["id"] == "c"
    assert made["usage"]["total_tokens"] == 7


def assemble(*frames: bytes, answers: int = 1, pieces: int = 10_000) -> tuple[dict[str, Any], AnswerMeter]:
    whole = Assembly("chat")
    stream = b"".join(frames)
    for at in range(0, len(stream), pieces):
        whole.feed(stream[at : at + pieces])
    its = meter(answers=answers)
    whole.read(its)
    return json.loads(whole.body(its.usage() if its.counted else Usage())), its


@pytest.mark.parametrize("pieces", [1, 7, 10_000])
@pytest.mark.parametrize("ping", [b"", b": ping\n\n"])
def test_assembles_a_whole_answer(pieces: int, ping: bytes) -> None:
    frames = [content("Hel"), ping, content("lo"), finish(), counted(3, 2), DONE]
    answer, its = assemble(*frames, pieces=pieces)
    assert answer["choices"] == [
        {"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": "Hello"}}
    ]
    assert answer["usage"]["total_tokens"] == 5
    assert its.finished


def test_assembles_tool_calls_of_their_fragments() -> None:
    def call(index: int, **fields: Any) -> bytes:
        delta = {"tool_calls": [{"index": index, **fields}]}
        return frame(choices=[{"finish_reason": None, "index": 0, "delta": delta}])

    answer, _ = assemble(
        call(0, id="a", type="function", function={"name": "f", "arguments": '{"x'}),
        call(1, id="b", type="function", function={"name": "g", "arguments": "{}"}),
        call(0, function={"arguments": '":1}'}),
        finish(reason="tool_calls"),
    )
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "f", "arguments": '{"x":1}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("both", [False, True])
def test_assembles_thoughts_under_either_name(both: bool) -> None:
    thought = {"reasoning": "hm", **({"reasoning_content": "hm"} if both else {})}
    answer, _ = assemble(frame(choices=[{"finish_reason": None, "index": 0, "delta": thought}]), content("a"), finish())
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "a", "reasoning_content": "hm"}


def test_assembles_reasoning_logprobs_and_several_answers() -> None:
    def choice(index: int, **fields: Any) -> bytes:
        return frame(choices=[{"finish_reason": None, "index": index, **fields}])

    answer, _ = assemble(
        choice(1, delta={"reasoning_content": "hm"}),
        choice(0, delta={"content": "a"}, logprobs={"content": [{"token": "a", "logprob": -0.5}]}),
        choice(0, delta={"content": "b"}, logprobs={"content": [{"token": "b", "logprob": -1.5}]}),
        choice(1, delta={"content": "c"}),
        finish(1),
        finish(0, "length"),
        answers=2,
    )
    first, second = answer["choices"]
    assert [entry["token"] for entry in first["logprobs"]["content"]] == ["a", "b"]
    assert first["finish_reason"] == "length"
    assert second["message"] == {"role": "assistant", "content": "c", "reasoning_content": "hm"}


NO_TEXT = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"\xff"}}]}\n\n'
NO_REASON = b'data: {"choices":[{"finish_reason":"\xff","index":0,"delta":{}}]}\n\n'
NO_TIMINGS = b'data: {"choices":[{"finish_reason":null}],"timings":{"predicted_n":"\xff"}}\n\n'
DEEP = b'data: {"usage":' + b"[" * 5000 + b"]" * 5000 + b"}\n\n"


@pytest.mark.parametrize("bad", [NO_TEXT, NO_REASON, DEEP], ids=["text", "reason", "deep"])
@pytest.mark.parametrize("ping", [b"", b": ping\n\n"])
def test_a_whole_of_what_is_no_text_is_rubbish(bad: bytes, ping: bytes) -> None:
    with pytest.raises(EngineRubbish):
        assemble(content("a"), ping, bad, finish(), counted(3, 2), DONE)
    assert Assembly("chat").text() == ""


@pytest.mark.parametrize("bad", [NO_REASON, DEEP], ids=["reason", "deep"])
def test_a_frame_that_is_no_text_is_rubbish(bad: bytes) -> None:
    with pytest.raises(EngineRubbish):
        meter().take(bad)


def test_timings_that_can_not_be_read_say_nothing() -> None:
    one = meter()
    one.take(NO_TIMINGS)
    assert one.usage_so_far() is None


def test_a_finish_that_is_no_text_gets_its_usage_all_the_same() -> None:
    told = usage_frame(b'data: {"id":"\xff","choices":[{"finish_reason":"stop"}]}\n\n', Usage(3, 0, 2))
    assert json.loads(told.removeprefix(b"data: "))["usage"]["total_tokens"] == 5


def test_numbers_beyond_all_measure_are_no_usage() -> None:
    """They have to reach the authority, over a line that carries 64 bits."""
    one = meter()
    for taken in (finish(), counted(10**30, 10**25, 10**24), DONE):
        one.take(taken)
    used = one.usage()
    assert max(used.input_tokens, used.cached_tokens, used.output_tokens) < 2**53
    cut = meter()
    cut.take(content("a", timings={"cache_n": 10**30, "prompt_n": 10**30, "predicted_n": 10**30}))
    so_far = cut.usage_so_far()
    assert so_far is not None
    assert max(so_far.input_tokens, so_far.cached_tokens, so_far.output_tokens) < 2**53
