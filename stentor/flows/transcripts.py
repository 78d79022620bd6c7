"""What was said, in the forms that OpenAI's API has for it. Pure."""

import math
from typing import Any

import msgspec

from stentor.core.books import Usage
from stentor.flows.languages import name_language

_encode = msgspec.json.Encoder().encode


class SpokenWord(msgspec.Struct):
    """A word, with its beginning and end in seconds."""

    word: str
    start: float
    end: float


class SpokenSegment(msgspec.Struct):
    """A stretch of speech as the engine tells it; the figures are Whisper's own."""

    start: float
    end: float
    text: str
    tokens: list[int] = []
    seek: int = 0
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0
    words: list[SpokenWord] | None = None


class Transcript:
    """All that was said. ``granularities`` of ``word`` and ``segment``, for the verbose form."""

    def __init__(self, task: str, granularities: frozenset[str]) -> None:
        self.segments: list[SpokenSegment] = []
        self.language = ""
        self.duration_s = 0.0
        self.said: str | None = None  # all of it, where somebody else put it together
        self._task = task
        self._granularities = granularities

    def add(self, segment: SpokenSegment) -> str:
        """One more stretch; returns what it adds to the text."""
        text = segment.text if self.segments else segment.text.lstrip()
        self.segments.append(segment)
        return text

    @property
    def text(self) -> str:
        """All of it in one line."""
        said = "".join(segment.text for segment in self.segments) if self.said is None else self.said
        return said.strip()

    def render(self, form: str) -> tuple[bytes, bytes]:
        """Body and media type of the whole in one of the forms."""
        if form == "text":
            return self.text.encode() + b"\n", b"text/plain; charset=utf-8"
        if form == "srt":
            return self._cues("", ",", numbered=True), b"text/plain; charset=utf-8"
        if form == "vtt":
            return self._cues("WEBVTT\n\n", ".", numbered=False), b"text/vtt; charset=utf-8"
        body = self._verbose() if form == "verbose_json" else {"text": self.text, "usage": self._usage()}
        return _encode(body), b"application/json"

    def _usage(self) -> dict[str, Any]:
        return {"type": "duration", "seconds": math.ceil(self.duration_s)}

    def _verbose(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "task": self._task,
            "language": name_language(self.language),
            "duration": round(self.duration_s, 3),
            "text": self.text,
        }
        if "segment" in self._granularities:
            body["segments"] = [_describe(number, segment) for number, segment in enumerate(self.segments)]
        if "word" in self._granularities:
            body["words"] = [word for segment in self.segments for word in segment.words or ()]
        return {**body, "usage": self._usage()}

    def _cues(self, opening: str, point: str, *, numbered: bool) -> bytes:
        lines = [opening]
        for number, segment in enumerate(self.segments, 1):
            start, end = clock_text(segment.start, point), clock_text(segment.end, point)
            head = f"{number}\n" if numbered else ""
            # A blank line would end the cue, and --> would begin another.
            text = " ".join(segment.text.split()).replace("-->", "->")
            lines.append(f"{head}{start} --> {end}\n{text}\n\n")
        return "".join(lines).encode()

    def delta_frame(self, delta: str) -> bytes:
        """An event with a piece of the text."""
        return _frame({"type": "transcript.text.delta", "delta": delta})

    def done_frame(self, usage: Usage) -> bytes:
        """The last event, with all of the text. Its usage is in tokens, as OpenAI's streams have it alone."""
        asked, said = usage.input_tokens, usage.output_tokens
        counts = {"type": "tokens", "input_tokens": asked, "output_tokens": said, "total_tokens": asked + said}
        seconds = math.ceil(self.duration_s)
        return _frame({"type": "transcript.text.done", "text": self.text, "usage": {**counts, "seconds": seconds}})


def clock_text(seconds: float, point: str) -> str:
    """``01:02:03,004``."""
    whole, milliseconds = divmod(max(0, round(seconds * 1000)), 1000)
    minutes, second = divmod(whole, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{second:02d}{point}{milliseconds:03d}"


def _describe(number: int, segment: SpokenSegment) -> dict[str, Any]:
    return {
        "id": number,
        "seek": segment.seek,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def _frame(event: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % _encode(event)
