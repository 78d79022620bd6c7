"""Where speech begins and ends, out of how likely each frame of 32 ms holds speech. Pure."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from stentor.engines.hearing.sound import RATE
from stentor.engines.hearing.windows import FRAME

_HYSTERESIS = 0.15  # how far the likelihood has to fall below what begins speech to be silence
_START_FRAMES = 3  # 96 ms: a click is no speech


class Started(NamedTuple):
    """Somebody speaks since ``sample``."""

    sample: int


class Paused(NamedTuple):
    """Speech went until ``sample``; it may go on."""

    sample: int


class Ended(NamedTuple):
    """Speech is over since ``sample``."""

    sample: int


Mark = Started | Paused | Ended


class Activity:
    """Follows one stream. ``threshold`` is the likelihood at which speech begins; it is paused after ``pause_ms`` of
    silence and over after ``silence_ms``. Samples are counted from the beginning of the stream."""

    def __init__(self, threshold: float, pause_ms: int, silence_ms: int) -> None:
        self._begin = threshold
        self._stay = max(0.01, threshold - _HYSTERESIS)
        self._pause = min(pause_ms, silence_ms) * RATE // 1000
        self._silence = silence_ms * RATE // 1000
        self._sample = 0
        self._since: int | None = None  # where frames began to be likely, speech not being told yet
        self._last = 0  # where the last frame of speech ended
        self._paused = False
        self.speaking = False

    def follow(self, likely: Iterable[float]) -> Iterator[Mark]:
        """What the next frames change."""
        for each in likely:
            start, self._sample = self._sample, self._sample + FRAME
            mark = self._go_on(each) if self.speaking else self._begin_at(start, each)
            if mark is not None:
                yield mark

    def _begin_at(self, start: int, likely: float) -> Mark | None:
        if likely < self._begin:
            self._since = None
            return None
        if self._since is None:
            self._since = start
        if self._sample - self._since < _START_FRAMES * FRAME:
            return None
        mark = Started(self._since)
        self.speaking, self._paused, self._since, self._last = True, False, None, self._sample
        return mark

    def _go_on(self, likely: float) -> Mark | None:
        if likely >= self._stay:
            # A pause is over by speech as likely as at a beginning; what is between the two prolongs what there is.
            self._paused = self._paused and likely < self._begin
            if not self._paused:
                self._last = self._sample
            return None
        silent = self._sample - self._last
        if silent >= self._pause and not self._paused:
            self._paused = True
            return Paused(self._last)
        if silent >= self._silence:
            self.speaking = False
            return Ended(self._last)
        return None
