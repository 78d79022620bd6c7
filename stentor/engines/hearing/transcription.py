"""How the engines that hear answer: how long a file is, and what is said in it, line by line as it is found out.

``POST /v1/probe {path, max_s}`` answers ``{"duration_s": …}``. ``POST /v1/transcribe`` answers JSON lines: ``segment``
for each stretch of speech, ``progress`` with the seconds heard so far, at the end ``done``; after the first line an
``error`` line takes the place of the rest. Files are named by their path: gateway and engine share the machine.
"""

from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec

from stentor.engines.hearing.windows import Detector, Window


class ProbeOrder(msgspec.Struct, kw_only=True):
    """How long is the sound at ``path``? Beyond ``max_s`` it is refused."""

    path: str
    max_s: float


class HearOrder(msgspec.Struct, kw_only=True):
    """What is said in the sound at ``path``?

    ``language`` empty: find out; ``temperature`` None or 0: as the engine likes.
    """

    path: str
    max_s: float
    task: Literal["transcribe", "translate"] = "transcribe"
    language: str = ""
    prompt: str = ""
    temperature: float | None = None
    words: bool = False


class Word(msgspec.Struct):
    """One word and when it is said, in seconds."""

    word: str
    start: float
    end: float
    probability: float = 1.0


class Segment(msgspec.Struct, tag_field="event", tag="segment"):
    """One stretch of speech, times in seconds from the beginning; the figures are Whisper's."""

    start: float
    end: float
    text: str
    tokens: list[int] = []
    seek: int = 0
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0
    words: list[Word] | None = None


class Progress(msgspec.Struct, tag_field="event", tag="progress"):
    """How much was heard so far."""

    heard_s: float


class Done(msgspec.Struct, tag_field="event", tag="done"):
    """The end: how long it was, in which language, and how many tokens the text has (None: not counted)."""

    duration_s: float
    language: str
    output_tokens: int | None


class Failed(msgspec.Struct, tag_field="event", tag="error"):
    """It ended early."""

    code: str
    message: str


class Ear(Protocol):
    """One request's listener; keeps what it learned from one window for the next."""

    language: str
    output_tokens: int | None

    def hear(self, window: Window) -> Iterable[Segment]:
        """What is said in a window, times from the beginning of the whole."""
        ...


class Recognizer(Protocol):
    """A loaded model."""

    def load(self) -> None:
        """Load it. Raises BadModel."""
        ...

    def room_bytes(self, loaded_bytes: int) -> int | None:
        """See :class:`~stentor.engines.host.BoundedEngine`."""
        ...

    def begin(self, order: HearOrder) -> Ear:
        """A listener for one request. Raises Problem for what this model can't do."""
        ...

    def detector(self) -> Detector:
        """A detector of speech for one request."""
        ...
