"""Chat completions as a voice reads them: the chunks of a stream, and whole answers."""

import msgspec

from stentor.core.errors import UNREADABLE
from stentor.flows.answer import NOTHING, EngineRubbish, WireUsage
from stentor.flows.frames import frame_data


class Function(msgspec.Struct):
    """Name and arguments (a JSON text, or a piece of one) of a call."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A call, or a piece of one; ``index`` says of which."""

    index: int = 0
    id: str | None = None
    function: Function | None = None


class Said(msgspec.Struct):
    """What was said: a delta of a stream, or the message of a whole answer."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's and OpenRouter's name for it
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None

    @property
    def thought(self) -> str | None:
        """What was thought, under whichever name."""
        return self.reasoning_content or self.reasoning


class Logprobs(msgspec.Struct):
    """One entry a token, as the engine says it."""

    content: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct):
    """One answer; dialects ask for one alone."""

    index: int = 0
    finish_reason: str | None = None
    delta: Said | None = None
    message: Said | None = None
    text: str | None = None
    logprobs: Logprobs | None = None

    @property
    def said(self) -> Said:
        """Whatever it says, however it came."""
        return self.delta or self.message or Said(content=self.text)


class Timings(msgspec.Struct):
    """How long the engine took, in milliseconds."""

    prompt_ms: float | None = None
    predicted_ms: float | None = None


class Chunk(msgspec.Struct):
    """A chunk of a stream, or a whole answer."""

    choices: list[Choice] = []
    usage: WireUsage | None = None
    timings: msgspec.Raw = NOTHING


_decode = msgspec.json.Decoder(Chunk).decode
_decode_timings = msgspec.json.Decoder(Timings | None).decode


def read_chunks(frames: bytes) -> list[Chunk]:
    """The chunks in some whole frames. Raises EngineRubbish for one that can't be read."""
    chunks = []
    for frame in frames.split(b"\n\n"):
        data = frame_data(frame + b"\n\n")
        if data and data != b"[DONE]":
            chunks.append(read_whole(data))
    return chunks


def read_timings(raw: msgspec.Raw) -> Timings | None:
    """The engine's own clock, where it has one that can be read: nobody is billed by it."""
    try:
        return _decode_timings(raw) if raw else None
    except UNREADABLE:
        return None


def read_whole(body: bytes) -> Chunk:
    """A whole answer. Raises EngineRubbish if it can't be read."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineRubbish(f"the engine sent a frame that can't be read: {error}") from None
