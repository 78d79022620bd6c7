"""Sound as Whisper sees it: the logarithm of its loudness in 80 bands of pitch, a hundred times a second.

As described in «Robust Speech Recognition via Large-Scale Weak Supervision» (Radford et al., 2022) and its code: a Hann
window of 25 ms every 10 ms, bands on Slaney's mel scale, the quietest 80 dB below the loudest.
"""

import math
from functools import cache
from typing import Any

from stentor.core.lazy import load
from stentor.engines.hearing.sound import RATE

BANDS = 80
STEP = 160
_WINDOW = 400
_LINEAR_HZ = 1000.0
_HZ_PER_MEL = 200.0 / 3.0
_MELS_PER_E_FOLD = 27.0 / math.log(6.4)


def log_mel(samples: Any) -> Any:
    """float32, 80 × one column for each 160 samples; ``samples`` is float32 from -1 to 1, a whole number of steps."""
    numpy = load("numpy")
    around = numpy.pad(samples, _WINDOW // 2, mode="reflect")
    frames = numpy.lib.stride_tricks.sliding_window_view(around, _WINDOW)[::STEP][: len(samples) // STEP]
    power = numpy.abs(numpy.fft.rfft(frames * _window(), axis=1)) ** 2
    level = numpy.log10(numpy.maximum(_filters() @ power.T, 1e-10))
    level = numpy.maximum(level, level.max() - 8.0)
    return ((level + 4.0) / 4.0).astype(numpy.float32)


@cache
def _window() -> Any:
    numpy = load("numpy")
    return numpy.hanning(_WINDOW + 1)[:-1]


@cache
def _filters() -> Any:
    """Triangles, each over its band and the halves of its neighbours, of equal area."""
    numpy = load("numpy")
    edges = _hertz(numpy.linspace(0.0, _mels(RATE / 2), BANDS + 2))
    places = numpy.linspace(0.0, RATE / 2, _WINDOW // 2 + 1)
    widths = numpy.diff(edges)
    slopes = edges[:, None] - places[None, :]
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    return numpy.maximum(0.0, numpy.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]


def _mels(hertz: float) -> float:
    if hertz < _LINEAR_HZ:
        return hertz / _HZ_PER_MEL
    return _LINEAR_HZ / _HZ_PER_MEL + math.log(hertz / _LINEAR_HZ) * _MELS_PER_E_FOLD


def _hertz(mels: Any) -> Any:
    numpy = load("numpy")
    above = _LINEAR_HZ * numpy.exp((mels - _LINEAR_HZ / _HZ_PER_MEL) / _MELS_PER_E_FOLD)
    return numpy.where(mels * _HZ_PER_MEL < _LINEAR_HZ, mels * _HZ_PER_MEL, above)
