"""How the engines that hear answer: how long a file is, and what is said in it, line by line as it is found out.

``POST /v1/probe {path, max_s}`` answers ``{"duration_s": …}``. ``POST /v1/transcribe`` answers JSON lines: ``segment``
for each stretch of speech, ``progress`` with the seconds heard so far, at the end ``done``; after the first line an
``error`` line takes the place of the rest. Files are named by their path: gateway and engine share the machine.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol

import msgspec

from stentor.core.lazy import load
from stentor.engines.hearing.sound import RATE, Sound
from stentor.engines.hearing.windows import Cutter, Detector, Window
from stentor.engines.host import JSON, NDJSON, Answer, BadModel, Handler, Problem, SpeechConfig, read_order

_STEP_S = 30.0


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

    def begin(self, order: HearOrder) -> Ear:
        """A listener for one request. Raises Problem for what this model can't do."""
        ...

    def detector(self) -> Detector:
        """A detector of speech for one request."""
        ...


class HearingEngine:
    """An engine around a recognizer."""

    def __init__(self, config: SpeechConfig, recognizer: Recognizer) -> None:
        self._model_path = config.model_path
        self._recognizer = recognizer

    def load(self) -> None:
        """See :class:`~stentor.engines.host.Engine`."""
        if not self._model_path:
            raise BadModel("model_path is missing: this engine needs a model")
        self._recognizer.load()

    def check(self) -> None:
        """See :class:`~stentor.engines.host.Engine`."""
        ear = self._recognizer.begin(HearOrder(path="", max_s=1.0))
        numpy = load("numpy")
        list(ear.hear(Window(numpy.zeros(RATE // 2, numpy.float32), 0.0)))

    def handlers(self) -> Mapping[str, Handler]:
        """See :class:`~stentor.engines.host.Engine`."""
        return {"/v1/probe": self._probe, "/v1/transcribe": self._transcribe}

    def _probe(self, body: bytes, _left: threading.Event) -> Answer:
        order = read_order(body, ProbeOrder)
        with Sound(order.path) as sound:
            duration_s = sound.measure(order.max_s)
        if duration_s <= 0:
            raise Problem("bad_audio", "The file holds no sound: it is zero seconds long.")
        return Answer(JSON, iter([msgspec.json.encode({"duration_s": duration_s})]))

    def _transcribe(self, body: bytes, left: threading.Event) -> Answer:
        order = read_order(body, HearOrder)
        return Answer(NDJSON, _lines(self._hear(order, self._recognizer.begin(order)), left))

    def _hear(self, order: HearOrder, ear: Ear) -> Iterator[list[msgspec.Struct]]:
        cutter = Cutter(self._recognizer.detector())
        told_s = 0.0
        with Sound(order.path) as sound:
            for samples in _in_steps(sound.read(order.max_s)):
                windows = cutter.feed(samples)
                for window in windows:
                    yield [*ear.hear(window), Progress(window.start_s + len(window.samples) / RATE)]
                if not windows and cutter.heard_s - told_s >= _STEP_S:
                    told_s = cutter.heard_s
                    yield [Progress(told_s)]
        for window in cutter.finish():
            yield list(ear.hear(window))
        yield [Done(cutter.heard_s, ear.language, ear.output_tokens)]


def _in_steps(pieces: Iterator[Any]) -> Iterator[Any]:
    """Pieces of about a second: a detector asked for every few milliseconds is slow."""
    held: list[Any] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= RATE:
            yield load("numpy").concatenate(held)
            held, count = [], 0
    if held:
        yield load("numpy").concatenate(held)


def _lines(found: Iterator[list[msgspec.Struct]], left: threading.Event) -> Iterator[bytes]:
    """What is found as lines; trouble after the first of them is one, too."""
    begun = False
    try:
        for each in found:
            if left.is_set():
                return
            yield b"".join(msgspec.json.encode(line) + b"\n" for line in each)
            begun = True
    except Problem as problem:
        if not begun:
            raise
        yield msgspec.json.encode(Failed(problem.code, str(problem))) + b"\n"
