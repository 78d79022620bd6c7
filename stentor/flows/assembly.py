"""A whole answer made of its frames, equal field by field to what the engine answers when it isn't asked to stream."""

import contextlib
from typing import Any

import msgspec

from stentor.core.books import Usage
from stentor.core.errors import UNREADABLE
from stentor.flows.answer import NOTHING, NULL, AnswerMeter, EngineError, EngineRubbish, WireUsage, wire_usage
from stentor.flows.ask import Kind
from stentor.flows.frames import FrameSplitter, frame_data

ANSWER_MAX_BYTES = 256 * 1024 * 1024
_DONE_LF = b"data: [DONE]\n\n"
_DONE_CRLF = b"data: [DONE]\r\n\r\n"


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's and OpenRouter's name for it
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(msgspec.Struct):
    """One entry a token, as conversations have it in ``content``, or as text completions have it in the others."""

    content: list[msgspec.Raw] | None = None
    tokens: list[msgspec.Raw] | None = None
    token_logprobs: list[msgspec.Raw] | None = None
    top_logprobs: list[msgspec.Raw] | None = None
    text_offset: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None
    delta: _Delta | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    id: str | None = None
    created: int | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    timings: msgspec.Raw = NOTHING
    usage: WireUsage | None = None
    prompt_progress: msgspec.Raw = NOTHING
    error: msgspec.Raw = NOTHING


_decode_chunks = msgspec.json.Decoder(list[_Chunk | None]).decode
_encode = msgspec.json.Encoder().encode


class _Answer:
    """One choice as it grows."""

    __slots__ = ("calls", "content", "finish_reason", "logprobs", "reasoning", "refusal")

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.calls: dict[int, dict[str, Any]] = {}
        self.logprobs: dict[str, list[msgspec.Raw]] | None = None
        self.finish_reason: str | None = None

    def take(self, choice: _Choice) -> None:
        if choice.text:
            self.content.append(choice.text)
        delta = choice.delta
        if delta is not None:
            if delta.content:
                self.content.append(delta.content)
            thought = delta.reasoning_content or delta.reasoning
            if thought:
                self.reasoning.append(thought)
            if delta.refusal:
                self.refusal.append(delta.refusal)
            for call in delta.tool_calls or ():
                self._take_call(call)
        if choice.logprobs is not None:
            self._take_logprobs(choice.logprobs)
        if choice.finish_reason is not None:
            self.finish_reason = choice.finish_reason

    def _take_logprobs(self, logprobs: _Logprobs) -> None:
        for name in logprobs.__struct_fields__:
            if entries := getattr(logprobs, name):
                if self.logprobs is None:
                    self.logprobs = {}
                self.logprobs.setdefault(name, []).extend(entries)

    def _take_call(self, call: _ToolCall) -> None:
        known = self.calls.setdefault(
            call.index, {"type": "function", "function": {"name": "", "arguments": ""}, "id": ""}
        )
        if call.id:
            known["id"] = call.id
        if call.type:
            known["type"] = call.type
        if call.function is not None:
            known["function"]["name"] += call.function.name or ""
            known["function"]["arguments"] += call.function.arguments or ""

    def message(self) -> dict[str, Any]:
        content = "".join(self.content)
        message: dict[str, Any] = {"role": "assistant", "content": content if content or not self.calls else None}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.refusal:
            message["refusal"] = "".join(self.refusal)
        if self.calls:
            message["tool_calls"] = [self.calls[index] for index in sorted(self.calls)]
        return message


class Assembly:
    """Collects a stream as it comes in; it is read once, when it has ended.

    ``done`` says that the end has come. Reading frame by frame as for a relayed stream would cost twice as much.
    """

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._chunks: list[bytes] = []
        self._size = 0
        self._answers: dict[int, _Answer] = {}
        self._head: _Chunk | None = None
        self._timings: msgspec.Raw | None = None
        self.done = False

    def feed(self, chunk: bytes) -> None:
        """Take in some bytes of the stream. Raises EngineRubbish past 256 MiB."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > ANSWER_MAX_BYTES:
            raise EngineRubbish(f"the engine sent an answer of over {ANSWER_MAX_BYTES} bytes")
        # The mark may be cut in two; then the stream's own end is waited for.
        self.done = chunk.endswith((_DONE_LF, _DONE_CRLF))

    def frames(self) -> list[bytes]:
        """Every whole frame so far."""
        splitter = FrameSplitter()
        return [frame for chunk in self._chunks for frame in splitter.feed(chunk)]

    def read(self, meter: AnswerMeter) -> None:
        """Read the answer, and let ``meter`` know what it used. Raises EngineError, EngineRubbish."""
        for chunk in self._decode():
            if chunk is not None and chunk.prompt_progress is NOTHING:
                self._take(chunk, meter)

    def _decode(self) -> list[_Chunk | None]:
        whole = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        if whole.startswith(b"data: ") and whole.endswith(_DONE_LF):
            # The ordinary stream is a JSON array but for the words between its items.
            try:
                return _decode_chunks(b"[" + whole[6 : -len(_DONE_LF) - 2].replace(b"\n\ndata: ", b",") + b"]")
            except UNREADABLE:
                pass  # comments or other line ends between the frames: read them one by one
        datas = [data for frame in self.frames() if (data := frame_data(frame)) is not None]
        if datas and datas[-1] == b"[DONE]":
            datas.pop()
        try:
            return _decode_chunks(b"[" + b",".join(datas) + b"]")
        except UNREADABLE as error:
            raise EngineRubbish(f"the engine sent a frame that can't be read: {error}") from None

    def _take(self, chunk: _Chunk, meter: AnswerMeter) -> None:
        if chunk.error is not NOTHING and chunk.error != NULL:
            raise EngineError(bytes(chunk.error).decode(errors="replace")[:500])
        if self._head is None:
            self._head = chunk
        if chunk.timings is not NOTHING:
            self._timings = chunk.timings
        if chunk.usage is not None:
            meter.take_usage(chunk.usage)
        for choice in chunk.choices:
            answer = self._answers.get(choice.index)
            if answer is None:
                answer = self._answers[choice.index] = _Answer()
            answer.take(choice)
            if choice.finish_reason is not None:
                meter.take_finish()

    def text(self) -> str:
        """All that was generated so far, for counting; nothing where it can't be read."""
        if not self._answers:
            with contextlib.suppress(EngineError, EngineRubbish):
                self.read(AnswerMeter(answers=1, include_usage=False))
        parts: list[str] = []
        for answer in self._answers.values():
            parts += answer.reasoning + answer.content
            parts += [call["function"]["name"] + call["function"]["arguments"] for call in answer.calls.values()]
        return "".join(parts)

    def body(self, usage: Usage) -> bytes:
        """The answer as ``chat.completion`` or ``text_completion`` JSON."""
        head = self._head or _Chunk()
        choices = []
        for index in sorted(self._answers):
            answer = self._answers[index]
            choice: dict[str, Any] = {"finish_reason": answer.finish_reason, "index": index}
            logprobs = answer.logprobs
            if self._kind == "chat":
                choice["message"] = answer.message()
                if logprobs is not None:
                    choice["logprobs"] = logprobs
            else:
                choice["text"] = "".join(answer.content)
                choice["logprobs"] = logprobs
            choices.append(choice)
        whole: dict[str, Any] = {
            "id": head.id,
            "object": "chat.completion" if self._kind == "chat" else "text_completion",
            "created": head.created,
            "model": head.model,
            "choices": choices,
            "usage": wire_usage(usage),
        }
        if head.system_fingerprint is not None:
            whole["system_fingerprint"] = head.system_fingerprint
        if self._timings is not None:
            whole["timings"] = self._timings
        return _encode(whole)
