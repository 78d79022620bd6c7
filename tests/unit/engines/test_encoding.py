"""What comes out of the encoders is what FFmpeg reads back: the form, the rate, the length, the sound itself."""

import io
import math
import struct
from array import array
from itertools import pairwise

import av
import pytest

from stentor.core.sound import SPEECH_FORMS, UNKNOWN_LENGTH, wav_head
from stentor.engines.speaking.encoding import choose_rate, make_encoder

CODECS = {"mp3": "mp3float", "opus": "opus", "aac": "aac", "flac": "flac", "wav": "pcm_s16le"}


def sine(rate_hz: int, seconds: float, hertz: float = 440.0) -> "array[int]":
    step = 2 * math.pi * hertz / rate_hz
    return array("h", (round(8000 * math.sin(step * n)) for n in range(round(rate_hz * seconds))))


def encode(form: str, rate_hz: int, *parts: "array[int]") -> list[bytes]:
    encoder = make_encoder(form, rate_hz)
    return [*(encoder.feed(part) for part in parts), encoder.finish()]


def read_back(data: bytes) -> tuple[str, int, list[float]]:
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.audio[0]
        plain = av.AudioResampler(format="s16", layout="mono", rate=stream.rate)
        levels: list[float] = []
        for frame in container.decode(stream):
            for ready in plain.resample(frame):
                levels += array("h", bytes(ready.planes[0])[: 2 * ready.samples])
        return stream.codec_context.name, stream.rate, levels


def pitch(levels: list[float], rate_hz: int) -> float:
    """By its upward crossings of zero, in the middle."""
    middle = levels[len(levels) // 4 : -len(levels) // 4]
    ups = sum(1 for before, after in pairwise(middle) if before < 0 <= after)
    return ups * rate_hz / len(middle)


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 24_000])
@pytest.mark.parametrize("form", sorted(CODECS))
def test_each_form_holds_the_sound_that_went_in(form: str, rate_hz: int) -> None:
    whole = sine(rate_hz, 2.0)
    parts = encode(form, rate_hz, *(whole[start : start + 5000] for start in range(0, len(whole), 5000)))
    codec, rate, levels = read_back(b"".join(parts))
    assert codec == CODECS[form]
    assert len(levels) / rate == pytest.approx(2.0, abs=0.12)
    assert pitch(levels, rate) == pytest.approx(440, abs=4)


@pytest.mark.parametrize("form", SPEECH_FORMS)
def test_bytes_come_out_with_every_sentence(form: str) -> None:
    parts = encode(form, 22_050, *[sine(22_050, 1.0)] * 4)
    assert all(len(part) > 500 for part in parts[:4])


@pytest.mark.parametrize(("rate_hz", "seconds"), [(16_000, 1.5), (22_050, 1.5), (24_000, 1.5)])
def test_pcm_is_24_khz_whatever_the_voice(rate_hz: int, seconds: float) -> None:
    data = b"".join(encode("pcm", rate_hz, sine(rate_hz, 1.0), sine(rate_hz, seconds - 1.0)))
    assert len(data) / 2 / 24_000 == pytest.approx(seconds, abs=0.01)
    assert pitch(list(array("h", data)), 24_000) == pytest.approx(440, abs=4)


def test_a_streamed_wav_says_that_its_length_is_unknown() -> None:
    head = encode("wav", 22_050, sine(22_050, 0.1))[0][:44]
    assert struct.unpack("<4sI4s", head[:12]) == (b"RIFF", UNKNOWN_LENGTH, b"WAVE")
    assert struct.unpack("<I", head[40:44]) == (UNKNOWN_LENGTH,)
    assert struct.unpack("<HHIIHH", head[20:36]) == (1, 1, 22_050, 44_100, 2, 16)


def test_a_whole_wav_has_the_right_sizes() -> None:
    head = wav_head(16_000, 1000)
    assert struct.unpack("<I", head[4:8]) == (1036,)
    assert struct.unpack("<I", head[40:44]) == (1000,)


@pytest.mark.parametrize("form", SPEECH_FORMS)
def test_nothing_to_say_is_no_error(form: str) -> None:
    encode(form, 22_050)
    encode(form, 22_050, array("h"))


def test_a_rate_is_never_lower_than_the_voice_where_there_is_one() -> None:
    assert choose_rate(22_050, (48_000, 24_000, 16_000)) == 24_000
    assert choose_rate(16_000, (48_000, 24_000, 16_000)) == 16_000
    assert choose_rate(96_000, (48_000, 24_000)) == 48_000
