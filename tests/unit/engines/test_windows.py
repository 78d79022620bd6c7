"""Where long sound is cut, with a detector that knows the truth."""

import itertools

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stentor.engines.hearing.sound import RATE
from stentor.engines.hearing.windows import FRAME, Cutter, Loudness, Window


class Loud:
    """How likely it is speech, is how loud it is."""

    def hear(self, samples):
        return numpy.abs(samples.reshape(-1, FRAME)).max(axis=1)


def sound(*stretches: tuple[float, float]):
    """Stretches of seconds and loudness."""
    return numpy.concatenate([numpy.full(int(s * RATE), loud, numpy.float32) for s, loud in stretches])


def cut(samples, step: int = RATE) -> list[Window]:
    cutter = Cutter(Loud())
    windows = [window for at in range(0, len(samples), step) for window in cutter.feed(samples[at : at + step])]
    windows += cutter.finish()
    assert cutter.heard_s == pytest.approx(len(samples) / RATE)
    return windows


def ends(windows: list[Window]) -> list[tuple[float, float]]:
    return [(round(w.start_s, 1), round(w.start_s + len(w.samples) / RATE, 1)) for w in windows]


def test_silence_has_no_windows():
    assert cut(sound((60, 0.0))) == []


def test_a_short_word_has_a_window_with_a_margin():
    (window,) = cut(sound((3, 0), (1, 0.9), (30, 0)))
    assert ends([window]) == [(2.6, 4.4)]


def test_speech_at_the_very_beginning_and_end_is_whole():
    (window,) = cut(sound((2, 0.9)))
    assert len(window.samples) >= 2 * RATE
    assert window.start_s == 0


def test_short_pauses_stay_within_a_window():
    (window,) = cut(sound((4, 0.9), (1.5, 0), (4, 0.9), (1.5, 0), (4, 0.9)))
    assert window.start_s == 0


def test_a_long_pause_ends_a_window():
    windows = cut(sound((4, 0.9), (8, 0), (4, 0.9)))
    assert ends(windows) == [(0.0, 4.4), (11.6, 16.0)]


def test_speech_without_a_pause_is_cut_where_it_is_quietest():
    windows = cut(sound((20, 0.9), (0.5, 0.4), (20, 0.9)))
    assert len(windows) == 2
    assert windows[1].start_s == pytest.approx(20.25, abs=0.2)


def test_speech_without_any_quiet_is_cut_before_it_is_too_long():
    windows = cut(sound((100, 0.9)))
    assert all(len(window.samples) <= 29 * RATE for window in windows)
    assert sum(len(window.samples) for window in windows) >= 99 * RATE


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0.05, 20), st.sampled_from([0.0, 0.2, 0.45, 0.9])), min_size=1, max_size=12),
    st.integers(400, 40_000),
)
def test_no_speech_is_lost_or_heard_twice_however_it_comes_in(stretches, step):
    samples = sound(*stretches)
    windows = cut(samples, step)
    for before, after in itertools.pairwise(windows):
        assert before.start_s + len(before.samples) / RATE <= after.start_s + 0.85
        assert after.start_s > before.start_s
    heard = numpy.zeros(len(samples) + 40 * RATE, bool)
    for window in windows:
        assert len(window.samples) <= 29.5 * RATE
        first = round(window.start_s * RATE)
        heard[first : first + len(window.samples)] = True
    loud = numpy.flatnonzero(samples >= 0.9)
    assert heard[loud].all()
    assert ends(windows) == ends(cut(samples, RATE))


def test_a_detector_by_loudness_hears_a_voice_over_a_hum():
    random = numpy.random.default_rng(1)
    hum = random.normal(0, 0.002, 4 * RATE).astype(numpy.float32)
    voice = random.normal(0, 0.1, RATE).astype(numpy.float32)
    likely = Loudness().hear(numpy.concatenate([hum, voice, hum])[: 9 * RATE // FRAME * FRAME])
    speaking = numpy.flatnonzero(likely > 0.5) * FRAME / RATE
    assert speaking.min() == pytest.approx(4.0, abs=0.1)
    assert speaking.max() == pytest.approx(5.0, abs=0.1)
