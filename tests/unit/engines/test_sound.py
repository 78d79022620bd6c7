"""Sound files, as far as no recognizer is needed for it."""

import threading
import wave
from pathlib import Path

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
