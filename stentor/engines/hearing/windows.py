"""Cutting long sound at its silences, into windows that a recognizer hears at once.

Whisper always hears half a minute, however little of it is speech: so windows are filled as far as speech goes on, and
end where it is quietest. What is silent all along never reaches the recognizer, which would make up words for it.
"""

from typing import Any, NamedTuple, Protocol

from stentor.core.lazy import load
from stentor.engines.hearing.sound import RATE

FRAME = 512  # samples, 32 ms: what the detector of speech looks at
_PER_S = RATE / FRAME
_BEGIN, _STAY = 0.5, 0.35  # likelihood of speech to begin, and to go on
_PAD = round(0.4 * _PER_S)
_MOST = round(28.8 * _PER_S)
_SEARCH = round(14 * _PER_S)  # where the best place for a cut is looked for, back from the end
_QUIET = round(0.2 * _PER_S)  # how long the quiet at a cut should be
_PAUSE, _PAUSE_AFTER = round(2 * _PER_S), round(15 * _PER_S)
_LONG_PAUSE = round(5 * _PER_S)


class Window(NamedTuple):
    """Samples to be heard at once; ``start_s`` is where they begin in the whole."""

    samples: Any
    start_s: float


class Detector(Protocol):
    """Tells speech from other sound."""

    def hear(self, samples: Any) -> Any:
        """How likely each frame of 512 samples holds speech, 0 to 1; goes on from the last call."""
        ...


class Cutter:
    """Takes sound as it comes and gives out windows. Holds no more than one window of it."""

    def __init__(self, detector: Detector) -> None:
        self._numpy = load("numpy")
        self._detector = detector
        self._sound = self._numpy.zeros(0, self._numpy.float32)
        self._likely: list[float] = []
        self._first = 0  # number of the first frame that is held
        self._speaking = False
        self._begun: int | None = None  # first frame of the window
        self._last = 0  # last frame with speech
        self.heard_s = 0.0

    def feed(self, samples: Any) -> list[Window]:
        """More sound; the windows that are complete by it."""
        known = len(self._likely)
        self._sound = self._numpy.concatenate((self._sound, samples))
        self.heard_s += len(samples) / RATE
        whole = len(self._sound) // FRAME
        if whole > known:
            fresh = self._sound[known * FRAME : whole * FRAME]
            self._likely += [float(each) for each in self._detector.hear(fresh)]
        return self._look(known)

    def finish(self) -> list[Window]:
        """The sound is over; what is left of it."""
        rest = -len(self._sound) % FRAME
        heard_s = self.heard_s
        windows = self.feed(self._numpy.zeros(rest, self._numpy.float32)) if rest else []
        self.heard_s = heard_s
        if self._begun is not None:
            windows.append(self._take(min(self._last + _PAD, self._first + len(self._likely))))
        return windows

    def _look(self, known: int) -> list[Window]:
        windows = []
        for place in range(self._first + known, self._first + len(self._likely)):
            likely = self._likely[place - self._first]
            self._speaking = likely >= (_STAY if self._speaking else _BEGIN)
            if self._speaking:
                self._last = place
                if self._begun is None:
                    self._begun = max(place - _PAD, self._first)
            if self._begun is not None and self._is_over(place):
                windows.append(self._cut(place))
        self._forget()
        return windows

    def _is_over(self, place: int) -> bool:
        assert self._begun is not None
        length, silent = place + 1 - self._begun, place - self._last
        return length >= _MOST or silent >= _LONG_PAUSE or (silent >= _PAUSE and length >= _PAUSE_AFTER)

    def _cut(self, place: int) -> Window:
        """The window up to its pause; one without a pause up to where it is quietest."""
        assert self._begun is not None
        if place - self._last >= _PAUSE:
            return self._take(self._last + _PAD)
        since = max(self._begun + _QUIET, place - _SEARCH)
        likely = self._likely[since - self._first : place + 1 - self._first]
        sums = [sum(likely[number : number + _QUIET]) for number in range(len(likely) - _QUIET + 1)]
        # Of places as quiet the latest: a fuller window costs no more.
        best = min(range(len(sums)), key=lambda number: (round(sums[number], 2), -number))
        end = since + best + _QUIET // 2
        window = self._take(end)
        if any(each >= _BEGIN for each in self._likely[end - self._first : place + 1 - self._first]):
            self._begun = end
        return window

    def _take(self, end: int) -> Window:
        assert self._begun is not None
        begun = self._begun
        samples = self._sound[(begun - self._first) * FRAME : (end - self._first) * FRAME]
        self._begun = None
        return Window(samples, begun * FRAME / RATE)

    def _forget(self) -> None:
        """Let go of what no window can need any more."""
        held = self._first + len(self._likely) - _PAD if self._begun is None else self._begun
        count = held - self._first
        if count > 0:
            self._sound = self._sound[count * FRAME :]
            del self._likely[:count]
            self._first = held


class Loudness:
    """A detector that knows no more than how loud it is, for engines that come without a better one."""

    def __init__(self) -> None:
        self._floor = 0.0

    def hear(self, samples: Any) -> Any:
        """See :class:`Detector`."""
        numpy = load("numpy")
        loud = numpy.sqrt(numpy.mean(samples.reshape(-1, FRAME) ** 2, axis=1))
        likely = numpy.zeros(len(loud), numpy.float32)
        for number, each in enumerate(loud):
            # The floor falls at once and rises slowly.
            self._floor = min(float(each), self._floor * 1.01 + 1e-6) if self._floor else float(each) + 1e-6
            likely[number] = 1.0 if each > max(0.004, 3 * self._floor) else 0.0
        return likely
