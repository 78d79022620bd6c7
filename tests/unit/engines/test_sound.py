"""Sound files, as far as no recognizer is needed for it."""

import io
import threading
import wave
from pathlib import Path

import av
import numpy
import pytest

from stentor.engines.hearing.sound import Sound


def test_measuring_ends_when_nobody_waits_any_more(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(32_000 * 30))
    left = threading.Event()
    with Sound(str(path)) as sound:
        assert sound.measure(60.0, left) == pytest.approx(30.0)
    left.set()
    with Sound(str(path)) as sound:
        assert sound.measure(60.0, left) < 1.0


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("adts", "aac"), ("mp3", "libmp3lame")])
def test_a_note_before_the_sound_is_passed_over(tmp_path: Path, container: str, codec: str) -> None:
    whole = io.BytesIO()
    with av.open(whole, "w", format=container) as file:
        stream: av.AudioStream = file.add_stream(codec, rate=16_000, layout="mono")  # type: ignore[assignment]
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 16_000), "<i2"), "s16", "mono")
        frame.rate = 16_000
        resampler = av.AudioResampler(stream.format.name, "mono", 16_000, frame_size=stream.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    path = tmp_path / "noted"
    path.write_bytes(b"ID3\x03\0\0\0\0\x10\0" + bytes(2048) + whole.getvalue())
    with Sound(str(path)) as sound:
        assert sound.measure(60.0, threading.Event()) == pytest.approx(1.0, abs=0.2)
