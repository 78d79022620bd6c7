"""Silero's detector of speech, as ONNX Runtime has it: how likely each frame of 32 ms holds speech.

Two exports are about: the project's own takes a frame at a time, with a ``state`` and the rate; faster-whisper's takes
any number of frames, with the state in two parts. From version 5 on, both want the last 64 samples before each frame.
"""

from typing import Any

from stentor.core.lazy import load
from stentor.engines.hearing.sound import RATE
from stentor.engines.hearing.windows import FRAME

_CONTEXT_SAMPLES = 64
_PARTED = ("input", "h", "c")
_WHOLE = ("input", "state", "sr")


def knows(session: Any) -> bool:
    """Whether a loaded model is one of the two exports."""
    names = sorted(each.name for each in session.get_inputs())
    return names in (sorted(_PARTED), sorted(_WHOLE))


class Silero:
    """A detector, going on where it stopped. ``session`` is the loaded model, shared by all."""

    def __init__(self, session: Any) -> None:
        self._numpy = load("numpy")
        self._session = session
        self._parted = any(each.name == "h" for each in session.get_inputs())
        shapes = ((1, 1, 128), (1, 1, 128)) if self._parted else ((2, 1, 128),)
        self._state = tuple(self._numpy.zeros(shape, self._numpy.float32) for shape in shapes)
        self._context = self._numpy.zeros(_CONTEXT_SAMPLES, self._numpy.float32)

    def hear(self, samples: Any) -> Any:
        """See :class:`~stentor.engines.hearing.windows.Detector`."""
        whole = self._numpy.concatenate((self._context, samples))
        frames = self._numpy.lib.stride_tricks.sliding_window_view(whole, FRAME + _CONTEXT_SAMPLES)[::FRAME]
        self._context = samples[-_CONTEXT_SAMPLES:]
        return self._hear_all(frames) if self._parted else self._hear_each(frames)

    def _hear_all(self, frames: Any) -> Any:
        h, c = self._state
        wanted = {"input": self._numpy.ascontiguousarray(frames), "h": h, "c": c}
        likely, *self._state = self._session.run(None, wanted)
        return likely.reshape(-1)

    def _hear_each(self, frames: Any) -> Any:
        rate = self._numpy.array(RATE, self._numpy.int64)
        likely = self._numpy.zeros(len(frames), self._numpy.float32)
        for number in range(len(frames)):
            frame = self._numpy.ascontiguousarray(frames[number : number + 1])
            found, *self._state = self._session.run(None, {"input": frame, "state": self._state[0], "sr": rate})
            likely[number] = found.reshape(-1)[0]
        return likely
