"""Sound for tests: the twenty sentences as a real voice speaks them, and files of every kind and defect."""

import fcntl
import hashlib
import io
import os
import wave
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy
from piper import PiperVoice, SynthesisConfig

from stentor.runtime.offers import OFFERS
from tests.kinds.models import CACHE, fetch

SENTENCES = Path(__file__).with_name("sentences.txt").read_text("utf-8").splitlines()
SPOKEN_RATE = 22_050
# Without the voice's chance: the same words sound the same on every machine.
STEADY = SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0)
# Container and codec by what people call the format.
FORMATS = {
    "wav": ("wav", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
    "ogg": ("ogg", "libopus"),
    "webm": ("webm", "libopus"),
    "flac": ("flac", "flac"),
    "m4a": ("mp4", "aac"),
}


@cache
def _voice() -> Any:
    folder = fetch(OFFERS["piper-joe"].source)
    return PiperVoice.load(folder / "en_US-joe-medium.onnx", folder / "en_US-joe-medium.onnx.json")


def speak(text: str) -> Path:
    """A WAV file of the text, spoken once and kept."""
    folder = CACHE / "spoken"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"steady-joe-{hashlib.sha256(text.encode()).hexdigest()[:16]}.wav"
    if not path.exists():
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two workers of pytest needn't speak the same
            if not path.exists():
                _speak(text, path)
    return path


def _speak(text: str, path: Path) -> None:
    fresh = path.with_suffix(f".{os.getpid()}.new")
    with wave.open(str(fresh), "wb") as file:
        _voice().synthesize_wav(text, file, STEADY)
    fresh.replace(path)


def samples_of(path: Path) -> "numpy.ndarray[Any, numpy.dtype[numpy.int16]]":
    """The samples of a WAV file."""
    with wave.open(str(path), "rb") as file:
        return numpy.frombuffer(file.readframes(file.getnframes()), numpy.int16)


def wav(samples: Any, rate: int = SPOKEN_RATE) -> bytes:
    """A WAV file of these samples."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(numpy.asarray(samples, numpy.int16).tobytes())
    return out.getvalue()


def silence(seconds: float, rate: int = SPOKEN_RATE) -> Any:
    """Samples of nothing."""
    return numpy.zeros(int(seconds * rate), numpy.int16)


def join(sentences: list[str], pause_s: float = 0.5) -> Any:
    """Samples of sentences with pauses between them."""
    pieces: list[Any] = []
    for sentence in sentences:
        pieces += [samples_of(speak(sentence)), silence(pause_s)]
    return numpy.concatenate(pieces)


def encode(samples: Any, form: str, rate: int = SPOKEN_RATE) -> bytes:
    """Samples in one of the formats, through FFmpeg."""
    container_name, codec = FORMATS[form]
    out = io.BytesIO()
    container = av.open(out, "w", format=container_name)
    stream = container.add_stream(codec, rate=48_000 if codec == "libopus" else rate)
    resampler = av.AudioResampler(stream.format.name, "mono", stream.rate, frame_size=stream.frame_size or 1024)
    frame = av.AudioFrame.from_ndarray(numpy.asarray(samples, numpy.int16).reshape(1, -1), "s16", "mono")
    frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))
    container.close()
    return out.getvalue()
