"""``POST /v1/messages``: the answer as a message and as its events."""

from typing import Any

import msgspec

from stentor.flows.answer import PromptDetails, WireUsage
from stentor.flows.client import AnswerHead
from stentor.flows.dialects.chunks import read_whole
from stentor.flows.dialects.parts import Part
from stentor.flows.dialects.reading import Json
from stentor.flows.dialects.voice import EVENT_STREAM, PartsVoice

_encode = msgspec.json.Encoder().encode
# What stopped an answer, in their words. Engines don't tell a stop sequence from the end of a turn.
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class MessagesVoice(PartsVoice):
    """One message; every part of the answer is a content block of its own."""

    media_type = EVENT_STREAM
    whole_type = b"application/json"

    # -- stream

    def begin(self, head: AnswerHead) -> bytes:
        if head.prompt is not None:
            self._usage = WireUsage(head.prompt.total, 0, PromptDetails(head.prompt.cache))
        self._event("message_start", message=self._message(head, [], None, _usage(self._usage)))
        self._out.append(_PING)
        return b"".join(self._flush())

    def end(self, frames: bytes) -> list[bytes]:
        self.take(frames)
        self._parts.finish()
        self._event(
            "message_delta",
            delta={"stop_reason": self._stop_reason(), "stop_sequence": None},
            usage=_usage(self._usage),
        )
        self._event("message_stop")
        return self._flush()

    def failure(self, message: str, envelope: dict[str, Any]) -> bytes | None:
        return b"event: error\ndata: %b\n\n" % _encode(envelope)

    def _event(self, kind: str, **fields: Any) -> None:
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields})))

    # -- parts

    def opened(self, part: Part) -> None:
        block = self._block(part, "")
        self._event("content_block_start", index=part.number, content_block=block)

    def grew(self, part: Part, text: str, logprobs: list[msgspec.Raw]) -> None:
        if part.kind == "call":
            delta = {"type": "input_json_delta", "partial_json": text}
        elif part.kind == "thinking":
            delta = {"type": "thinking_delta", "thinking": text}
        else:
            delta = {"type": "text_delta", "text": text}
        self._event("content_block_delta", index=part.number, delta=delta)

    def closed(self, part: Part) -> None:
        if part.kind == "thinking":
            delta = {"type": "signature_delta", "signature": ""}
            self._event("content_block_delta", index=part.number, delta=delta)
        self._event("content_block_stop", index=part.number)

    def _block(self, part: Part, text: str) -> Json:
        if part.kind == "call":
            name = part.call_id or f"toolu_{self._occasion.name}{part.number:02x}"
            return {"type": "tool_use", "id": name, "name": part.name, "input": part.arguments if text else {}}
        if part.kind == "thinking":
            return {"type": "thinking", "thinking": text, "signature": ""}
        return {"type": "text", "text": text}

    # -- the whole

    def whole(self, head: AnswerHead, body: bytes) -> bytes:
        self._take(read_whole(body))
        self._parts.finish()
        content = [self._block(part, part.text) for part in self._parts.all]
        return _encode(self._message(head, content, self._stop_reason(), _usage(self._usage)))

    def _message(self, head: AnswerHead, content: list[Json], stop_reason: str | None, usage: Json) -> Json:
        return {
            "id": f"msg_{self._occasion.name}",
            "type": "message",
            "role": "assistant",
            "model": head.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": usage,
        }

    def _stop_reason(self) -> str:
        return _STOP_REASONS.get(self._parts.finish_reason or "", "end_turn")


def _usage(usage: WireUsage) -> Json:
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    cached = min(cached or 0, usage.prompt_tokens)
    return {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }
