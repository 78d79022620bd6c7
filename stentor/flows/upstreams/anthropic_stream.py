"""The events of an Anthropic message, as the frames of a chat completion.

https://docs.anthropic.com/en/docs/build-with-claude/streaming: ``message_start``, then per block
``content_block_start``, ``content_block_delta`` and ``content_block_stop``, ``message_delta`` with the reason and the
usage, ``message_stop``.
"""

import time
from typing import Any

import msgspec

from stentor.core.errors import UNREADABLE
from stentor.flows.frames import FrameSplitter, frame_data

_encode = msgspec.json.Encoder().encode
_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}

Json = dict[str, Any]


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None


class _Message(msgspec.Struct):
    id: str = ""
    model: str = ""
    usage: _Usage | None = None


class _Block(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_decode = msgspec.json.Decoder(_Event).decode


class MessageStream:
    """Translates one stream as it comes. What can't be read becomes an error frame, which ends the answer."""

    def __init__(self, model: str) -> None:
        self._splitter = FrameSplitter()
        self._head: Json = {"id": "", "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
        self._calls: dict[int, int] = {}
        self._usage = _Usage()

    def feed(self, chunk: bytes) -> bytes:
        """The frames that ``chunk`` completes; may be empty. Raises FrameTooLarge."""
        return b"".join([self._translate(frame) for frame in self._splitter.feed(chunk)])

    def _translate(self, frame: bytes) -> bytes:
        data = frame_data(frame)
        if data is None:
            return b""
        try:
            event = _decode(data)
        except UNREADABLE:
            return _frame({"error": {"message": "the upstream sent an event that can't be read"}})
        if event.type == "error":
            return _frame({"error": {"message": "the upstream reported an error"}})
        if event.usage is not None:
            self._note(event.usage)
        if event.type == "message_start" and event.message is not None:
            return self._begin(event.message)
        if event.type == "content_block_start" and event.content_block is not None:
            return self._open_block(event.index, event.content_block)
        if event.type == "content_block_delta" and event.delta is not None:
            return self._extend_block(event.index, event.delta)
        if event.type == "message_delta" and event.delta is not None and event.delta.stop_reason is not None:
            return self._chunk({}, _REASONS.get(event.delta.stop_reason, "stop"))
        return self._end() if event.type == "message_stop" else b""

    def _note(self, usage: _Usage) -> None:
        """The last word on each number counts."""
        for field in usage.__struct_fields__:
            value = getattr(usage, field)
            if value is not None:
                setattr(self._usage, field, value)

    def _begin(self, message: _Message) -> bytes:
        self._head["id"] = message.id
        self._head["model"] = message.model or self._head["model"]
        if message.usage is not None:
            self._note(message.usage)
        return self._chunk({"role": "assistant", "content": ""})

    def _open_block(self, index: int, block: _Block) -> bytes:
        if block.type == "tool_use":
            number = self._calls.setdefault(index, len(self._calls))
            function = {"name": block.name, "arguments": ""}
            return self._chunk(
                {"tool_calls": [{"index": number, "id": block.id, "type": "function", "function": function}]}
            )
        if block.text:
            return self._chunk({"content": block.text})
        return self._chunk({"reasoning_content": block.thinking}) if block.thinking else b""

    def _extend_block(self, index: int, delta: _Delta) -> bytes:
        if delta.type == "text_delta" and delta.text:
            return self._chunk({"content": delta.text})
        if delta.type == "thinking_delta" and delta.thinking:
            return self._chunk({"reasoning_content": delta.thinking})
        if delta.type == "input_json_delta" and delta.partial_json and index in self._calls:
            call = {"index": self._calls[index], "function": {"arguments": delta.partial_json}}
            return self._chunk({"tool_calls": [call]})
        return b""

    def _chunk(self, delta: Json, finish_reason: str | None = None) -> bytes:
        return _frame({**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    def _end(self) -> bytes:
        usage = self._usage
        if usage.input_tokens is None or usage.output_tokens is None:
            return b"data: [DONE]\n\n"
        cached = usage.cache_read_input_tokens or 0
        prompt = usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0)
        said = {
            "prompt_tokens": prompt,
            "completion_tokens": usage.output_tokens,
            "total_tokens": prompt + usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        return _frame({**self._head, "choices": [], "usage": said}) + b"data: [DONE]\n\n"


def _frame(value: Json) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"
