"""Ollama's answers: lines of JSON, or one; durations in nanoseconds."""

import datetime
import time
from typing import Any

import msgspec

from stentor.flows.answer import WireUsage
from stentor.flows.client import AnswerHead
from stentor.flows.dialects.chunks import Chunk, Timings, read_timings, read_whole
from stentor.flows.dialects.parts import Part
from stentor.flows.dialects.reading import Json
from stentor.flows.dialects.voice import Occasion, PartsVoice

_encode = msgspec.json.Encoder().encode


def now_text() -> str:
    """This moment as Ollama writes it: RFC 3339, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")


class OllamaVoice(PartsVoice):
    """One answer of ``/api/chat`` (``chat``) or ``/api/generate``; ``model`` is what the client calls the model."""

    media_type = b"application/x-ndjson"
    whole_type = b"application/json; charset=utf-8"

    def __init__(self, occasion: Occasion, model: str, *, chat: bool) -> None:
        super().__init__(occasion)
        self._model = model
        self._chat = chat
        self._timings = Timings()
        self._first_s: float | None = None

    # -- stream

    def begin(self, head: AnswerHead) -> bytes:
        self._first_s = time.monotonic()
        return b""

    def end(self, frames: bytes) -> list[bytes]:
        self.take(frames)
        self._parts.finish()
        self._line(self._said(), done=True)
        return self._flush()

    def failure(self, message: str, envelope: dict[str, Any]) -> bytes | None:
        return _encode(envelope) + b"\n"

    def _take(self, chunk: Chunk) -> None:
        super()._take(chunk)
        self._timings = read_timings(chunk.timings) or self._timings

    def _line(self, said: Json, *, done: bool = False, logprobs: list[msgspec.Raw] | None = None) -> None:
        self._out.append(_encode(self._object(said, done=done, logprobs=logprobs)) + b"\n")

    # -- parts

    def opened(self, part: Part) -> None:
        """Nothing is said before there is something to say."""

    def grew(self, part: Part, text: str, logprobs: list[msgspec.Raw]) -> None:
        if part.kind == "thinking":
            self._line(self._said(thinking=text))
        elif part.kind != "call":
            self._line(self._said(text), logprobs=logprobs)

    def closed(self, part: Part) -> None:
        if part.kind == "call" and self._is_whole_call(part):
            self._line(self._said(calls=[self._call(part)]))

    def _is_whole_call(self, part: Part) -> bool:
        """A call that was cut by the cap is none."""
        return self._parts.finish_reason != "length" or part.is_complete() or part is not self._parts.all[-1]

    def _call(self, part: Part) -> Json:
        index = sum(each.kind == "call" for each in self._parts.all[: part.number])
        function = {"index": index, "name": part.name, "arguments": part.arguments}
        return {"id": part.call_id, "function": function} if part.call_id else {"function": function}

    def _said(self, text: str = "", *, thinking: str = "", calls: list[Json] | None = None) -> Json:
        said: Json = {"role": "assistant", "content": text} if self._chat else {"response": text}
        if thinking:
            said["thinking"] = thinking
        if calls:
            said["tool_calls"] = calls
        return {"message": said} if self._chat else said

    # -- the whole

    def whole(self, head: AnswerHead, body: bytes) -> bytes:
        self._take(read_whole(body))
        self._parts.finish()
        texts, thoughts, calls, logprobs = [], [], [], []
        for part in self._parts.all:
            if part.kind == "call":
                calls += [self._call(part)] if self._is_whole_call(part) else []
            elif part.kind == "thinking":
                thoughts.append(part.text)
            else:
                texts.append(part.text)
                logprobs += part.logprobs
        said = self._said("".join(texts), thinking="".join(thoughts), calls=calls)
        return _encode(self._object(said, done=True, logprobs=logprobs))

    def _object(self, said: Json, *, done: bool, logprobs: list[msgspec.Raw] | None) -> Json:
        whole: Json = {"model": self._model, "created_at": now_text(), **said, "done": done}
        if logprobs:
            whole["logprobs"] = logprobs
        if done:
            whole["done_reason"] = "length" if self._parts.finish_reason == "length" else "stop"
            whole |= self._counts()
        return whole

    def _counts(self) -> Json:
        """Tokens and durations; where the engine says nothing of its time, the clock on the wall does."""
        now_s, received_s = time.monotonic(), self._occasion.received_s
        first_s = self._first_s or now_s
        prompt_ms, predicted_ms = self._timings.prompt_ms, self._timings.predicted_ms
        return {
            "total_duration": _ns(now_s - received_s),
            "load_duration": 0,
            "prompt_eval_count": self._usage.prompt_tokens,
            "prompt_eval_duration": _ns(first_s - received_s if prompt_ms is None else prompt_ms / 1000),
            "eval_count": self._usage.completion_tokens,
            "eval_duration": _ns(now_s - first_s if predicted_ms is None else predicted_ms / 1000),
        }


def _ns(seconds: float) -> int:
    return max(0, int(seconds * 1_000_000_000))


def preloaded(model: str, *, chat: bool, leave: bool) -> Json:
    """The answer to a question without words."""
    said: Json = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    reason = "unload" if leave else "load"
    return {"model": model, "created_at": now_text(), **said, "done": True, "done_reason": reason}


class _Item(msgspec.Struct):
    embedding: msgspec.Raw


class _Vectors(msgspec.Struct):
    data: list[_Item]
    usage: WireUsage


_decode_vectors = msgspec.json.Decoder(_Vectors).decode


def embed_answer(body: bytes, occasion: Occasion, model: str) -> bytes:
    """The answer of ``/api/embed``, made of that of ``/v1/embeddings``."""
    vectors = _decode_vectors(body)
    return _encode(
        {
            "model": model,
            "embeddings": [item.embedding for item in vectors.data],
            "total_duration": _ns(time.monotonic() - occasion.received_s),
            "load_duration": 0,
            "prompt_eval_count": vectors.usage.prompt_tokens,
        }
    )


def old_embeddings_answer(body: bytes) -> bytes:
    """The answer of ``/api/embeddings``, made of that of ``/v1/embeddings``."""
    return _encode({"embedding": _decode_vectors(body).data[0].embedding})
