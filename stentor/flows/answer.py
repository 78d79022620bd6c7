"""One answer, followed frame by frame: what to relay, when it is finished, what it used.

Frames are told apart by bytes that can't occur inside a JSON string (a quote in one is always escaped), so that an
ordinary frame is never decoded. Shapes as llama-server and the OpenAI API send them: content frames with
``"finish_reason":null``, one finishing frame an answer, then usage, then ``[DONE]``.
"""

from typing import Any

import msgspec

from stentor.core.books import Usage
from stentor.core.errors import UNREADABLE
from stentor.flows.frames import frame_data

_NOT_FINISHED = b'"finish_reason":null'
_FINISH = b'"finish_reason"'
_USAGE = b'"usage"'
_NO_USAGE = b'"usage":null'
_TIMINGS = b',"timings":{'
_PROGRESS = b'"prompt_progress"'
_ERROR = b'"error"'
_DONE = b"[DONE]"

COUNT_MAX = 2**50
NOTHING = msgspec.Raw()
NULL = msgspec.Raw(b"null")


class EngineRubbish(ValueError):
    """The engine's answer isn't what the protocol says; the text says where."""


class EngineError(ValueError):
    """The engine reported an error inside its answer; the text is the engine's own, for operators."""


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """``usage`` as the OpenAI API has it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Progress(msgspec.Struct):
    """How far an engine is with a prompt: its tokens, and how many of them it had in its cache."""

    total: int = 0
    cache: int = 0


class Timings(msgspec.Struct):
    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class Frame(msgspec.Struct):
    """The parts of a frame that matter to metering."""

    choices: list[_Choice] = []
    usage: WireUsage | None = None
    timings: Timings | None = None
    prompt_progress: Progress | None = None
    error: msgspec.Raw = NOTHING


_decode_frame = msgspec.json.Decoder(Frame).decode
_decode_any = msgspec.json.Decoder(dict[str, Any]).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class AnswerMeter:
    """Follows one streamed answer. ``take`` sorts a frame; the rest are its findings."""

    __slots__ = (
        "_answers", "_finished_answers", "_include_usage", "_last_timings", "_usages",
        "content_frames", "done", "finished", "progress", "usage_frame",
    )  # fmt: skip

    def __init__(self, *, answers: int, include_usage: bool) -> None:
        self._answers = answers
        self._include_usage = include_usage
        self._finished_answers = 0
        self._usages: list[WireUsage] = []
        self.usage_frame = b""
        self._last_timings = b""
        self.progress: Progress | None = None
        self.content_frames = 0
        self.finished = False
        self.done = False

    def take(self, frame: bytes) -> bytes | None:
        """The bytes to relay for this frame, or None to keep it back. Raises EngineError, EngineRubbish.

        From the frame on with which the answer is finished, ``finished`` is set: the caller holds back what it gets
        then until the books are settled.
        """
        if _NOT_FINISHED in frame and _PROGRESS not in frame and _ERROR not in frame:
            if _USAGE in frame and _NO_USAGE not in frame:
                return self._take_slowly(frame)
            if self._answers > 1 and frame.count(_FINISH) > 1:
                return self._take_slowly(frame)
            self.content_frames += 1
            cut = frame.rfind(_TIMINGS)
            if cut < 0:
                return frame
            self._last_timings = frame
            return frame[:cut] + frame[frame.index(b"}", cut) + 1 :]
        return self._take_slowly(frame)

    def _take_slowly(self, frame: bytes) -> bytes | None:
        data = frame_data(frame)
        if data is None or data == b"null":
            return None
        if data == _DONE:
            self.done = True
            return self.closing_frames(frame)
        return self._take_parts(frame, data)

    def _take_parts(self, frame: bytes, data: bytes) -> bytes | None:
        try:
            parts = _decode_frame(data)
        except UNREADABLE as error:
            raise EngineRubbish(f"the engine sent a frame that can't be read: {error}") from None
        if parts.error not in (NOTHING, NULL):
            raise EngineError(bytes(parts.error).decode(errors="replace")[:500])
        if parts.prompt_progress is not None:
            self.progress = parts.prompt_progress
            return None
        if parts.usage is not None:
            self.take_usage(parts.usage)
            if not parts.choices:
                self.usage_frame = data
                return None
            if self._include_usage:
                frame = _without_usage(data)
        for choice in parts.choices:
            if choice.finish_reason is not None:
                self.take_finish()
        if not self.finished:
            self.content_frames += 1
        return frame

    def take_usage(self, usage: WireUsage) -> None:
        """The engine said what one answer used; of a single answer, up to now: the last word counts."""
        if self._answers == 1:
            self._usages.clear()
        self._usages.append(usage)

    def take_finish(self) -> None:
        """One of the answers has its finish reason."""
        self._finished_answers += 1
        self.finished = self._finished_answers >= self._answers

    def closing_frames(self, done: bytes) -> bytes:
        """The usage frame, exactly when the client asked for it, and ``[DONE]``."""
        if not self._include_usage or not self.usage_frame:
            return done
        if len(self._usages) == 1:
            return b"data: " + self.usage_frame + b"\n\n" + done
        try:
            whole = _decode_any(self.usage_frame)
        except UNREADABLE:
            whole = {"choices": []}
        whole["usage"] = wire_usage(self.usage())
        return b"data: " + _encode(whole) + b"\n\n" + done

    @property
    def counted(self) -> bool:
        """Whether the engine itself said what the whole answer used."""
        return bool(self._usages)

    def usage(self) -> Usage:
        """What the answer used, as the engine reported it; each of several answers reports its own output."""
        first = self._usages[0]
        reasoning = 0
        for usage in self._usages:
            details = usage.completion_tokens_details
            reasoning += (details.reasoning_tokens or 0) if details else 0
        cached = first.prompt_tokens_details.cached_tokens if first.prompt_tokens_details else 0
        return Usage(
            input_tokens=_bounded(first.prompt_tokens),
            cached_tokens=_bounded(min(cached or 0, first.prompt_tokens)),
            output_tokens=_bounded(sum(usage.completion_tokens for usage in self._usages)),
            reasoning_tokens=_bounded(reasoning),
        )

    def usage_so_far(self) -> Usage | None:
        """What a cut answer used up to now; None when the engine gave nothing to go by."""
        if self._usages:
            return self.usage()
        timings = self._find_timings()
        if timings is not None:
            output = timings.predicted_n if self._answers == 1 else self.content_frames
            return Usage(
                input_tokens=_bounded(timings.cache_n + timings.prompt_n),
                cached_tokens=_bounded(timings.cache_n),
                output_tokens=_bounded(output),
                estimated=self._answers > 1,
            )
        if self.progress is not None:
            return Usage(
                input_tokens=_bounded(self.progress.total),
                cached_tokens=_bounded(min(self.progress.cache, self.progress.total)),
                output_tokens=self.content_frames,
            )
        return None

    def _find_timings(self) -> Timings | None:
        """The latest that the engine said, where it can be read: ordinary frames are passed on unread."""
        data = frame_data(self._last_timings) if self._last_timings else None
        try:
            return None if data is None else _decode_frame(data).timings or Timings()
        except UNREADABLE:
            return None


def _bounded(count: int) -> int:
    """A count as it can be carried on; whether it is plausible, the books find out."""
    return min(max(0, count), COUNT_MAX)


def _without_usage(data: bytes) -> bytes:
    """A frame that says something else, too: who asked what was used gets one frame for that, and no second word."""
    whole = _decode_fields(data)
    del whole["usage"]
    return b"data: " + _encode(whole) + b"\n\n"


def wire_usage(usage: Usage) -> dict[str, Any]:
    """``usage`` as the OpenAI API has it."""
    known: dict[str, Any] = {
        "completion_tokens": usage.output_tokens,
        "prompt_tokens": usage.input_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.reasoning_tokens:
        known["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return known


def usage_frame(finish_frame: bytes, usage: Usage) -> bytes:
    """The usage frame that an engine left out, with the head of its finishing frame."""
    try:
        whole = _decode_any(frame_data(finish_frame) or b"{}")
    except UNREADABLE:
        whole = {}
    whole["choices"] = []
    whole["usage"] = wire_usage(usage)
    return b"data: " + _encode(whole) + b"\n\n"
