"""Anthropic's events as frames of a chat completion, however the network cuts them, and whatever else comes."""

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stentor.flows.answer import AnswerMeter, EngineError
from stentor.flows.frames import FrameSplitter, FrameTooLarge
from stentor.flows.upstreams.anthropic_stream import MessageStream
from tests.upstreams.anthropic_upstream import answer

BLOCKS = [
    {"type": "thinking", "thinking": "Hm\u2026"},
    {"type": "text", "text": "Quite so, indeed."},
    {"type": "tool_use", "id": "t1", "name": "look", "input": {"q": "\n\n data: x"}},
]


def wire(events: list[Any]) -> bytes:
    return b"".join(f"event: {kind}\ndata: {json.dumps(value)}\n\n".encode() for kind, value in events)


WHOLE = wire(answer(*BLOCKS, reason="tool_use", prompt=11, cached=4, output=9))


def frames(pieces: list[bytes]) -> list[bytes]:
    stream = MessageStream("m")
    stream._head["created"] = 0
    return FrameSplitter().feed(b"".join(stream.feed(piece) for piece in pieces))


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_the_cuts_of_the_network_change_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(WHOLE)]
    pieces = [WHOLE[start:end] for start, end in itertools.pairwise(edges)]
    assert frames(pieces) == frames([WHOLE])


def test_the_meter_reads_what_was_used_and_that_it_is_finished() -> None:
    meter = AnswerMeter(answers=1, include_usage=True)
    for frame in frames([WHOLE]):
        meter.take(frame)
    assert meter.finished
    assert meter.done
    usage = meter.usage()
    assert (usage.input_tokens, usage.cached_tokens, usage.output_tokens) == (15, 4, 9)


@given(
    st.lists(
        st.one_of(st.binary(max_size=60), st.sampled_from([WHOLE, b"data: [DONE]\n\n", b"data: {}\n\n"])), max_size=8
    )
)
def test_rubbish_ends_the_answer_or_says_nothing(pieces: list[bytes]) -> None:
    stream, meter = MessageStream("m"), AnswerMeter(answers=1, include_usage=False)
    try:
        for piece in pieces:
            for frame in FrameSplitter().feed(stream.feed(piece + b"\n\n")):
                meter.take(frame)
    except (EngineError, FrameTooLarge):
        return


def test_other_events_than_those_known_are_passed_over() -> None:
    events = answer({"type": "text", "text": "a"})
    more = [*events[:3], ("new_kind", {"type": "new_kind", "x": 1}), *events[3:]]
    assert frames([wire(more)]) == frames([wire(events)])
