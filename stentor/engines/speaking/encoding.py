"""Sound in the form that a client asked for, made as the samples come: WAV, PCM, MP3, Opus in Ogg, AAC in ADTS, FLAC.

Every encoder takes mono s16 samples and hands out bytes that can be sent on at once. WAV needs no library and keeps the
voice's own rate; the others are FFmpeg's, through PyAV, which is loaded when the first of them is made.
"""

import struct
from array import array
from typing import Any, NamedTuple, Protocol

from stentor.core.lazy import load
from stentor.core.sound import SpeechForm, wav_head

PCM_RATE_HZ = 24_000


class Encoder(Protocol):
    """Samples in, bytes out. ``finish`` once, at the end."""

    def feed(self, samples: "array[int]") -> bytes:
        """The bytes that ``samples`` (s16, mono) complete; may be none."""
        ...

    def finish(self) -> bytes:
        """The rest."""
        ...


class _Form(NamedTuple):
    container: str
    codec: str
    rates: tuple[int, ...]  # that the codec takes; empty: any
    bits_per_s: int
    muxer: dict[str, str]
    codec_options: dict[str, str]


_FORMS: dict[str, _Form] = {
    "mp3": _Form(
        "mp3",
        "libmp3lame",
        (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000),
        64_000,
        {"write_xing": "0", "id3v2_version": "0"},
        {"reservoir": "0"},
    ),
    "opus": _Form(
        "ogg", "libopus", (48_000, 24_000, 16_000, 12_000, 8_000), 48_000, {"page_duration": "200000"},
        {"application": "audio"},
    ),
    "aac": _Form(
        "adts", "aac", (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000), 64_000, {}, {}
    ),
    "flac": _Form("flac", "flac", (), 0, {}, {}),
}  # fmt: skip


def make_encoder(form: SpeechForm, rate_hz: int) -> Encoder:
    """An encoder of samples at ``rate_hz``. Raises ImportError where ``form`` needs PyAV and it isn't installed."""
    if form == "wav":
        return _Wav(rate_hz)
    if form == "pcm":
        return _Pcm(rate_hz)
    return _Muxed(_FORMS[form], rate_hz)


def little_endian(samples: "array[int]") -> bytes:
    """s16le, whatever this machine's own order."""
    if struct.pack("=H", 1) == b"\1\0":
        return samples.tobytes()
    swapped = array("h", samples)
    swapped.byteswap()
    return swapped.tobytes()


class _Wav:
    def __init__(self, rate_hz: int) -> None:
        self._head = wav_head(rate_hz)

    def feed(self, samples: "array[int]") -> bytes:
        head, self._head = self._head, b""
        return head + little_endian(samples)

    def finish(self) -> bytes:
        return self.feed(array("h"))


class _Pcm:
    """s16le at 24 kHz, as OpenAI's."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._resampler = None if rate_hz == PCM_RATE_HZ else _Resampler(rate_hz, PCM_RATE_HZ, "s16")

    def feed(self, samples: "array[int]") -> bytes:
        if self._resampler is None:
            return little_endian(samples)
        return b"".join(_plane(frame) for frame in self._resampler.feed(samples))

    def finish(self) -> bytes:
        return b"" if self._resampler is None else b"".join(_plane(frame) for frame in self._resampler.finish())


class _Resampler:
    """Samples as frames of another rate and form (FFmpeg's swresample)."""

    def __init__(self, from_hz: int, to_hz: int, form: str) -> None:
        self._av: Any = load("av")
        self._from_hz = from_hz
        self._resampler = self._av.AudioResampler(format=form, layout="mono", rate=to_hz)
        self._sent = False

    def feed(self, samples: "array[int]") -> list[Any]:
        if not samples:
            return []
        self._sent = True
        frame = self._av.AudioFrame(format="s16", layout="mono", samples=len(samples))
        frame.sample_rate = self._from_hz
        frame.planes[0].update(samples.tobytes())
        return list(self._resampler.resample(frame))

    def finish(self) -> list[Any]:
        return list(self._resampler.resample(None)) if self._sent else []


def _plane(frame: Any) -> bytes:
    return bytes(frame.planes[0])[: 2 * frame.samples]


class _Sink:
    """What a muxer writes to: bytes are taken away as they come, so there is nothing to go back to."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class _Muxed:
    """A codec of FFmpeg in a container of FFmpeg."""

    def __init__(self, form: _Form, rate_hz: int) -> None:
        av: Any = load("av")
        self._rate_hz = choose_rate(rate_hz, form.rates) if form.rates else rate_hz
        self._sink = _Sink()
        self._container = av.open(
            self._sink, mode="w", format=form.container, container_options={"flush_packets": "1", **form.muxer}
        )
        self._stream = self._container.add_stream(
            form.codec, rate=self._rate_hz, layout="mono", options=form.codec_options
        )
        if form.bits_per_s:
            self._stream.bit_rate = form.bits_per_s
        context = self._stream.codec_context
        context.open()
        self._size = context.frame_size or 4096
        self._resampler = _Resampler(rate_hz, self._rate_hz, context.format.name)
        self._fifo = av.AudioFifo()
        self._place = 0

    def feed(self, samples: "array[int]") -> bytes:
        self._queue(self._resampler.feed(samples))
        self._encode(partly=False)
        return self._sink.take()

    def finish(self) -> bytes:
        self._queue(self._resampler.finish())
        self._encode(partly=True)
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take()

    def _queue(self, frames: list[Any]) -> None:
        for frame in frames:
            frame.pts = None
            self._fifo.write(frame)

    def _encode(self, *, partly: bool) -> None:
        while True:
            frame = self._fifo.read(self._size, partial=partly)
            if frame is None:
                return
            frame.pts = self._place
            frame.time_base = self._stream.codec_context.time_base
            self._place += frame.samples
            self._container.mux(self._stream.encode(frame))


def choose_rate(rate_hz: int, rates: tuple[int, ...]) -> int:
    """The least of ``rates`` (dearest first) that loses nothing of ``rate_hz``; the highest if all do."""
    enough = [rate for rate in rates if rate >= rate_hz]
    return min(enough) if enough else max(rates)
