"""The row of parts: one open at a time, nothing lost, whatever order the pieces come in."""

import json
import random

import msgspec
import pytest

from stentor.flows.dialects.chunks import Choice, Function, Said, ToolCall, read_chunks, read_timings
from stentor.flows.dialects.parts import Part, Parts, is_json


class Witness:
    """Writes down what it hears, and that it is heard in order."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.order: list[int] = []
        self.live: Part | None = None

    def opened(self, part: Part) -> None:
        assert self.live is None
        assert part.number == len(self.said)
        self.live = part
        self.said.append("")

    def grew(self, part: Part, text: str, logprobs: list[msgspec.Raw]) -> None:
        assert self.live is part
        assert text
        self.said[-1] += text

    def closed(self, part: Part) -> None:
        assert self.live is part
        self.live = None


def call(index: int, arguments: str, name: str | None = None) -> Choice:
    known = ToolCall(index, f"id{index}" if name else None, Function(name, arguments))
    return Choice(delta=Said(tool_calls=[known]))


def text(words: str) -> Choice:
    return Choice(delta=Said(content=words))


def played(*choices: Choice) -> tuple[Parts, Witness]:
    witness = Witness()
    parts = Parts(witness)
    for choice in choices:
        parts.take(choice)
    parts.finish()
    assert witness.live is None
    assert witness.said == [part.text for part in parts.all]
    return parts, witness


def test_words_between_calls_are_parts_of_their_own():
    parts, _ = played(text("a"), call(0, '{"x":', "f"), text("b"), call(0, "1}"), call(1, "{}", "g"), text("c"))
    assert [(part.kind, part.text) for part in parts.all] == [
        ("text", "a"), ("call", '{"x":1}'), ("text", "b"), ("call", "{}"), ("text", "c"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_thoughts_under_either_name(name: str):
    said = [{"delta": {name: "hm"}}, {"delta": {name: None, "content": "yes"}}]
    frames = b"".join(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in said)
    parts, _ = played(*(choice for chunk in read_chunks(frames) for choice in chunk.choices))
    assert [(part.kind, part.text) for part in parts.all] == [("thinking", "hm"), ("text", "yes")]


def test_a_call_is_told_as_it_grows():
    witness = Witness()
    parts = Parts(witness)
    parts.take(call(0, "", "f"))
    parts.take(call(0, '{"a'))
    assert witness.said == ['{"a']
    parts.take(call(0, '":1}'))
    parts.take(call(1, "{", "g"))
    assert witness.said == ['{"a":1}', "{"]


def test_white_space_after_a_call_that_is_over_is_dropped():
    parts, _ = played(call(0, "{}", "f"), call(1, "{}", "g"), call(0, "\n"))
    assert [part.text for part in parts.all] == ["{}", "{}"]


def test_a_call_that_never_ends_holds_back_what_follows_until_the_end():
    witness = Witness()
    parts = Parts(witness)
    for choice in (call(0, "{", "f"), call(1, "{}", "g"), text("after")):
        parts.take(choice)
    assert witness.said == ["{"]
    parts.finish()
    assert witness.said == ["{", "{}", "after"]


@pytest.mark.parametrize("seed", range(40))
def test_any_mixture_of_calls_is_put_in_order(seed):
    chance = random.Random(seed)
    wanted = [json.dumps({"n": number, "text": 'é\\"{}[]' * chance.randrange(4)}) for number in range(4)]
    rows = []
    for index, arguments in enumerate(wanted):
        cuts = sorted(chance.sample(range(len(arguments) + 1), min(5, len(arguments))))
        pieces = [arguments[a:b] for a, b in zip([0, *cuts], [*cuts, len(arguments)], strict=True)]
        rows.append([call(index, piece, "f" if not number else None) for number, piece in enumerate(pieces)])
    mixed = []
    while any(rows):
        mixed.append(chance.choice([row for row in rows if row]).pop(0))
    parts, _ = played(*mixed)
    assert sorted(part.text for part in parts.all) == sorted(wanted)
    assert all(part.name == "f" and part.call_id for part in parts.all)
    assert all(json.loads(bytes(part.arguments)) == json.loads(part.text) for part in parts.all)


@pytest.mark.parametrize("arguments", ["", "{", "[1]", '"x"', "7", "null", '{"a":1}}'])
def test_arguments_are_an_object_or_said_to_be_unreadable(arguments):
    parts, _ = played(call(0, arguments, "f"))
    found = parts.all[0].arguments
    if arguments == "":
        assert bytes(found) == b"{}"
    else:
        assert found == {"unreadable_arguments": arguments}


def test_deep_arguments_are_no_json():
    assert not is_json("[" * 100_000)


@pytest.mark.parametrize(
    "frames", [b"", b": ping\n\n", b"data: [DONE]\n\n", b"event: x\n\n", b'data: {"choices":[]}\n\n: x\n\n']
)
def test_frames_without_words(frames):
    assert all(not chunk.choices for chunk in read_chunks(frames))


@pytest.mark.parametrize("timings", ['"fast"', "7", '{"prompt_ms":"x"}', "[" * 50_000, "null"])
def test_a_clock_that_can_not_be_read_is_none(timings):
    assert read_timings(msgspec.Raw(timings.encode())) is None
