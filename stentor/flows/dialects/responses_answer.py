"""``POST /v1/responses``: the answer as a response object and as its typed events."""

import time
from typing import Any

import msgspec

from stentor.flows.answer import WireUsage
from stentor.flows.client import AnswerHead
from stentor.flows.dialects.chunks import read_whole
from stentor.flows.dialects.parts import Part
from stentor.flows.dialects.reading import Json
from stentor.flows.dialects.voice import EVENT_STREAM, Occasion, PartsVoice

_encode = msgspec.json.Encoder().encode
_PREFIXES = {"thinking": "rs", "text": "msg", "refusal": "msg", "call": "fc"}
_EVENTS = {"thinking": "reasoning_text", "text": "output_text", "refusal": "refusal", "call": "function_call_arguments"}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesVoice(PartsVoice):
    """One response; every part of the answer is an output item of its own."""

    media_type = EVENT_STREAM
    whole_type = b"application/json"

    def __init__(self, occasion: Occasion, echo: Json) -> None:
        super().__init__(occasion)
        self._echo = echo
        self._number = 0
        self._model = ""
        self._created = int(time.time())
        self._items: list[Json] = []

    # -- stream

    def begin(self, head: AnswerHead) -> bytes:
        self._model = head.model
        response = self._response("in_progress")
        self._event("response.created", response=response)
        self._event("response.in_progress", response=response)
        return b"".join(self._flush())

    def end(self, frames: bytes) -> list[bytes]:
        self.take(frames)
        status = self._finish()
        self._event(f"response.{status}", response=self._response(status))
        return self._flush()

    def failure(self, message: str, envelope: dict[str, Any]) -> bytes | None:
        response = self._response("failed")
        response["error"] = {"code": "server_error", "message": message}
        self._event("response.failed", response=response)
        return b"".join(self._flush())

    def _finish(self) -> str:
        """Close what is open; the response's status."""
        if not self._parts.all:
            self._parts.add_empty_text()
        self._parts.finish()
        return "incomplete" if self._parts.finish_reason in _INCOMPLETE else "completed"

    def _event(self, kind: str, /, **fields: Any) -> None:
        data = _encode({"type": kind, "sequence_number": self._number, **fields})
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
        self._number += 1

    # -- parts

    def opened(self, part: Part) -> None:
        self._event("response.output_item.added", output_index=part.number, item=self._item(part, "in_progress"))
        if part.kind != "call":
            self._part_event("response.content_part.added", part, part=_content_part(part, ""))

    def grew(self, part: Part, text: str, logprobs: list[msgspec.Raw]) -> None:
        more: Json = {"logprobs": logprobs} if part.kind == "text" else {}
        self._part_event(f"response.{_EVENTS[part.kind]}.delta", part, delta=text, **more)

    def closed(self, part: Part) -> None:
        text, kind = part.text, f"response.{_EVENTS[part.kind]}.done"
        if part.kind == "call":
            self._part_event(kind, part, name=part.name, arguments=text)
        else:
            more: Json = {"logprobs": part.logprobs} if part.kind == "text" else {}
            self._part_event(kind, part, **{"refusal" if part.kind == "refusal" else "text": text}, **more)
            self._part_event("response.content_part.done", part, part=_content_part(part, text, part.logprobs))
        last = part is self._parts.all[-1]
        item = self._item(part, "incomplete" if last and self._parts.finish_reason in _INCOMPLETE else "completed")
        self._items.append(item)
        self._event("response.output_item.done", output_index=part.number, item=item)

    def _part_event(self, kind: str, part: Part, /, **fields: Any) -> None:
        if part.kind != "call":
            fields["content_index"] = 0
        self._event(kind, item_id=self._item_id(part), output_index=part.number, **fields)

    def _item_id(self, part: Part) -> str:
        return f"{_PREFIXES[part.kind]}_{self._occasion.name}{part.number:02x}"

    def _item(self, part: Part, status: str) -> Json:
        item: Json = {"id": self._item_id(part), "status": status}
        text = part.text if status != "in_progress" else ""
        if part.kind == "call":
            call_id = part.call_id or f"call_{self._occasion.name}{part.number:02x}"
            return {**item, "type": "function_call", "call_id": call_id, "name": part.name, "arguments": text}
        content = [_content_part(part, text, part.logprobs)] if status != "in_progress" else []
        if part.kind == "thinking":
            return {**item, "type": "reasoning", "summary": [], "content": content}
        return {**item, "type": "message", "role": "assistant", "content": content}

    # -- the whole

    def whole(self, head: AnswerHead, body: bytes) -> bytes:
        self._model = head.model
        self._take(read_whole(body))
        return _encode(self._response(self._finish()))

    def _response(self, status: str) -> Json:
        reason = _INCOMPLETE.get(self._parts.finish_reason or "") if status == "incomplete" else None
        return {
            "id": f"resp_{self._occasion.name}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": reason} if reason is not None else None,
            "model": self._model,
            "output": self._items,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": _usage(self._usage) if status in ("completed", "incomplete") else None,
            **self._echo,
        }


def _content_part(part: Part, text: str, logprobs: list[msgspec.Raw] | None = None) -> Json:
    if part.kind == "thinking":
        return {"type": "reasoning_text", "text": text}
    if part.kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def _usage(usage: WireUsage) -> Json:
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    reasoning = usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else 0
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached or 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning or 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
