"""An engine around a recognizer: whole files over HTTP, and speech as it is spoken over a WebSocket."""

import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import msgspec

from stentor.core.lazy import load
from stentor.engines.answer import Answer, Handler
from stentor.engines.hearing.sound import RATE, Sound
from stentor.engines.hearing.streaming import Listener
from stentor.engines.hearing.transcription import (
    Done,
    Ear,
    Failed,
    HearOrder,
    ProbeOrder,
    Progress,
    Recognizer,
)
from stentor.engines.hearing.windows import Cutter, Window
from stentor.engines.host import (
    JSON,
    NDJSON,
    BadModel,
    Problem,
    Socket,
    SpeechConfig,
    read_order,
)

_STEP_S = 30.0


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

    def room_bytes(self, loaded_bytes: int) -> int | None:
        """See :class:`~stentor.engines.host.BoundedEngine`."""
        return self._recognizer.room_bytes(loaded_bytes)

    def check(self) -> None:
        """See :class:`~stentor.engines.host.Engine`."""
        ear = self._recognizer.begin(HearOrder(path="", max_s=1.0))
        numpy = load("numpy")
        list(ear.hear(Window(numpy.zeros(RATE // 2, numpy.float32), 0.0)))

    def handlers(self) -> Mapping[str, Handler]:
        """See :class:`~stentor.engines.host.Engine`."""
        return {"/v1/probe": self._probe, "/v1/transcribe": self._transcribe}

    def sockets(self) -> Mapping[str, Callable[[Socket], Awaitable[None]]]:
        """See :class:`~stentor.engines.host.TalkingEngine`."""
        return {"/v1/listen": lambda socket: Listener(self._recognizer, socket).run()}

    def _probe(self, body: bytes, left: threading.Event) -> Answer:
        order = read_order(body, ProbeOrder)
        with Sound(order.path) as sound:
            duration_s = sound.measure(order.max_s, left)
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
