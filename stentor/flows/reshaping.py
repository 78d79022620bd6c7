"""What llama.cpp answers in a shape of its own, as OpenAI's API has it.

It gives no log probabilities beside tools in a stream: then it is asked for the whole answer, which becomes a stream of
one piece. And its ``/v1/completions`` says log probabilities as conversations do.
"""

from abc import ABC, abstractmethod
from typing import Any

import msgspec

from stentor.core.errors import UNREADABLE
from stentor.egress.engines import EngineAnswer
from stentor.flows.answer import NOTHING, NULL, EngineRubbish
from stentor.flows.ask import Ask, is_answered_whole
from stentor.flows.fields import LLAMA_ENGINES
from stentor.flows.frames import FRAME_MAX_BYTES, FrameSplitter, frame_data

_EVENTS = "text/event-stream"
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class _WholeChoice(msgspec.Struct):
    message: dict[str, Any]
    index: int = 0
    finish_reason: str | None = None
    logprobs: msgspec.Raw = NOTHING


class _Entry(msgspec.Struct):
    """One token, and what might have stood in its place."""

    token: str
    logprob: float | None = None
    top_logprobs: "list[_Entry]" = []


class _Logprobs(msgspec.Struct):
    content: list[_Entry]


_decode_choices = msgspec.json.Decoder(list[_WholeChoice]).decode
_decode_raw_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_logprobs = msgspec.json.Decoder(_Logprobs | None).decode
_decode_index = msgspec.json.Decoder(int).decode


class Reshaped(ABC):
    """An engine's answer, rewritten as it is read."""

    def __init__(self, answer: EngineAnswer) -> None:
        self.status = answer.status
        self.content_type = answer.content_type
        self._answer = answer

    @abstractmethod
    async def read(self) -> bytes:
        """What has come in, rewritten; empty at the end. Raises EngineUnreachable, EngineRubbish."""

    async def error_body(self) -> bytes:
        """As the answer's own."""
        return await self._answer.error_body()

    def release(self) -> None:
        """As the answer's own."""
        self._answer.release()


class StreamOfWhole(Reshaped):
    """A whole chat completion as the stream that would have said the same."""

    def __init__(self, answer: EngineAnswer) -> None:
        super().__init__(answer)
        if self.status == 200 and self.content_type == "application/json":
            self.content_type = _EVENTS
        self._is_read = False

    async def read(self) -> bytes:
        """All of it at once."""
        if self._is_read:
            return b""
        self._is_read = True
        parts: list[bytes] = []
        size = 0
        while chunk := await self._answer.read():
            size += len(chunk)
            if size > FRAME_MAX_BYTES:
                raise EngineRubbish(f"the engine sent an answer of over {FRAME_MAX_BYTES} bytes")
            parts.append(chunk)
        try:
            return write_stream(b"".join(parts))
        except UNREADABLE as error:
            raise EngineRubbish(f"the engine sent an answer that can't be read: {error}") from None


class LegacyLogprobs(Reshaped):
    """A stream of a text completion whose log probabilities are ``tokens``, ``token_logprobs`` and so on."""

    def __init__(self, answer: EngineAnswer) -> None:
        super().__init__(answer)
        self._splitter = FrameSplitter()
        self._offsets: dict[int, int] = {}

    async def read(self) -> bytes:
        """The frames that have come in."""
        while chunk := await self._answer.read():
            frames = b"".join([self._rewrite(frame) for frame in self._splitter.feed(chunk)])
            if frames:
                return frames
        return b""

    def _rewrite(self, frame: bytes) -> bytes:
        data = frame_data(frame)
        if data is None or b'"logprobs"' not in data:
            return frame
        try:
            fields = _decode_fields(data)
            choices = _decode_raw_choices(fields["choices"])
            for choice in choices:
                if (said := _decode_logprobs(choice.get("logprobs", msgspec.Raw(b"null")))) is not None:
                    index = _decode_index(choice.get("index", msgspec.Raw(b"0")))
                    choice["logprobs"] = msgspec.Raw(_encode(self._legacy(index, said.content)))
        except (KeyError, *UNREADABLE):
            return frame  # whoever reads it next says what is wrong with it
        fields["choices"] = msgspec.Raw(_encode(choices))
        return b"data: " + _encode(fields) + b"\n\n"

    def _legacy(self, index: int, entries: list[_Entry]) -> dict[str, Any]:
        offsets = []
        for entry in entries:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(entry.token)
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [{top.token: top.logprob for top in entry.top_logprobs} for entry in entries],
            "text_offset": offsets,
        }


def reshape(ask: Ask, engine: str, answer: EngineAnswer) -> EngineAnswer | Reshaped:
    """The answer of one of our engines as the flow reads it: mostly as it is."""
    if "logprobs" not in ask.fields or engine not in LLAMA_ENGINES:
        return answer
    if is_answered_whole(ask, engine):
        return StreamOfWhole(answer)
    return answer if ask.kind == "chat" or ask.is_translated else LegacyLogprobs(answer)


def write_stream(whole: bytes) -> bytes:
    """The frames of a chat completion. Raises what the decoder raises."""
    fields = _decode_fields(whole)
    choices = _decode_choices(fields.pop("choices", msgspec.Raw(b"[]")))
    usage, timings = fields.pop("usage", None), fields.pop("timings", None)
    head: dict[str, Any] = {**fields, "object": "chat.completion.chunk"}
    frames: list[dict[str, Any]] = []
    for choice in choices:
        delta = choice.message
        calls = delta.get("tool_calls")
        if isinstance(calls, list):
            known = [call for call in calls if isinstance(call, dict)]
            delta["tool_calls"] = [{**call, "index": number} for number, call in enumerate(known)]
        said: dict[str, Any] = {"index": choice.index, "delta": delta, "finish_reason": None}
        if choice.logprobs not in (NOTHING, NULL):
            said["logprobs"] = choice.logprobs
        frames.append({**head, "choices": [said]})
    ends: list[dict[str, Any]] = [
        {"index": choice.index, "delta": {}, "finish_reason": choice.finish_reason} for choice in choices
    ]
    frames += [{**head, "choices": [end]} for end in ends]
    if timings is not None and frames:
        frames[-1]["timings"] = timings
    if usage is not None:
        frames.append({**head, "choices": [], "usage": usage})
    return b"".join([b"data: " + _encode(frame) + b"\n\n" for frame in frames]) + b"data: [DONE]\n\n"
