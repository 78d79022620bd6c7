"""Reading sound files that strangers sent: what they are by their content, how long they are, their samples.

FFmpeg (through PyAV) reads far more than sound, some of it dangerous in a stranger's file: playlists and scripts that
name other files or addresses. So the content decides the format among a few, nothing else is probed, only known codecs
are opened, and FFmpeg sees a file that is open already, never a name. Everything is read a piece at a time, and no
more samples come out than were asked for, however small the file is that promises them.
"""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from stentor.core.lazy import load
from stentor.core.sound import HEARD_FORMATS, Container, find_container, skip_tag
from stentor.engines.host import Problem

RATE = 16_000
_HEAD_BYTES = 64
_READ_BYTES = 1 << 16
_RATES = range(4_000, 384_001)
_CHANNELS_MAX = 8
_BROKEN_MAX = 50  # pieces in a row that can't be decoded, in a file whose beginning could be
_CODECS = frozenset(
    {
        "aac", "aac_latm", "alac", "flac", "mp3", "mp3float", "mp2", "mp2float", "mp1", "mp1float", "opus", "libopus",
        "vorbis", "libvorbis", "adpcm_ima_wav", "adpcm_ms", "gsm_ms", "pcm_alaw", "pcm_mulaw",
    }
)  # fmt: skip
# FFmpeg's names of the formats that are read.
_DEMUXERS: dict[Container, str] = {
    "wav": "wav", "mp3": "mp3", "ogg": "ogg", "webm": "matroska", "flac": "flac", "m4a": "mov", "aac": "aac",
}  # fmt: skip


class Sound:
    """One sound file, open. Use it as a context; every trouble with the file is a Problem."""

    def __init__(self, path: str) -> None:
        self._av = load("av")
        self._file: BinaryIO = _open(Path(path))
        try:
            self._container = self._open_container()
            self._stream = self._choose_stream()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Sound":
        return self

    def __exit__(self, *_details: object) -> None:
        self._container.close()
        self._file.close()

    def _open_container(self) -> Any:
        head = self._read_head()
        if not head:
            raise Problem("bad_audio", "The file is empty.")
        found = find_container(head)
        if found is None:
            raise Problem("bad_audio", f"The file is not sound that can be read: send {HEARD_FORMATS}.")
        try:
            return self._av.open(
                self._file,
                format=_DEMUXERS[found],
                buffer_size=_READ_BYTES,
                options={"protocol_whitelist": "none"},
                metadata_errors="ignore",
            )
        except (self._av.FFmpegError, ValueError, OSError, MemoryError):
            raise _broken(f"{_DEMUXERS[found]} file") from None

    def _read_head(self) -> bytes:
        """How it begins; behind the note that people's programs put before FLAC and AAC, too, as they do with MP3."""
        head = self._file.read(_HEAD_BYTES)
        if notes_bytes := skip_tag(head):
            self._file.seek(notes_bytes)
            behind = self._file.read(_HEAD_BYTES)
            head = behind if find_container(behind) in ("flac", "aac") else head
        self._file.seek(0)
        return head

    def _choose_stream(self) -> Any:
        streams = self._container.streams.audio
        if not streams:
            raise Problem("bad_audio", "The file has no sound in it.")
        stream = streams[0]
        context = stream.codec_context
        if context is None or not (context.name in _CODECS or context.name.startswith(("pcm_s", "pcm_u", "pcm_f"))):
            name = "unknown" if context is None else context.name
            raise Problem("bad_audio", f"The sound is packed as '{name[:40]}', which isn't read: send {HEARD_FORMATS}.")
        if context.sample_rate not in _RATES or not 1 <= context.channels <= _CHANNELS_MAX:
            raise Problem(
                "bad_audio",
                f"The sound has {context.channels} channels at {context.sample_rate} Hz; {_RATES[0]} to {_RATES[-1]} "
                f"Hz and at most {_CHANNELS_MAX} channels are read.",
            )
        return stream

    def measure(self, max_s: float, left: threading.Event) -> float:
        """Its length in seconds, by the lengths of its packets; by its samples where they don't say.

        Raises Problem ``too_long`` beyond ``max_s``; ends early when ``left`` is set. The file has been read then.
        """
        total_s = 0.0
        try:
            for packet in self._container.demux(self._stream):
                if left.is_set():
                    break
                if packet.size == 0:
                    continue
                if not packet.duration or packet.time_base is None:
                    return self._count(max_s, left)
                total_s += float(packet.duration * packet.time_base)
                _check_length(total_s, max_s)
        except (self._av.FFmpegError, OverflowError, MemoryError):
            if total_s == 0.0:
                raise _broken("file") from None
        return total_s

    def _count(self, max_s: float, left: threading.Event) -> float:
        self._container.seek(0)
        pieces = itertools.takewhile(lambda _: not left.is_set(), self.read(max_s))
        return sum(len(samples) for samples in pieces) / RATE

    def read(self, max_s: float) -> Iterator[Any]:
        """Its samples as 16 kHz mono, float32 from -1 to 1, a piece at a time.

        Raises Problem: ``too_long`` beyond ``max_s``, ``bad_audio`` where nothing of it can be decoded.
        """
        resampler = self._av.AudioResampler(format="s16", layout="mono", rate=RATE)
        most, count = int(max_s * RATE), 0
        for frame in self._frames():
            for samples in self._resample(resampler, frame):
                count += len(samples)
                if count > most:
                    raise _too_long(count / RATE, max_s)
                yield samples
        for samples in self._resample(resampler, None):
            yield samples[: max(0, most - count)]

    def _frames(self) -> Iterator[Any]:
        """Decoded frames. What is broken in the middle is left out; a file of which nothing can be read is refused."""
        broken, found = 0, False
        for packet in self._packets():
            try:
                frames = self._stream.codec_context.decode(packet)
            except (self._av.FFmpegError, MemoryError):
                broken += 1
                if broken > _BROKEN_MAX or (not found and packet.size == 0):
                    raise _broken("file") from None
                continue
            for frame in frames:
                if frame.sample_rate not in _RATES:
                    raise Problem("bad_audio", f"The sound changes to {frame.sample_rate} Hz, which isn't read.")
                broken, found = 0, True
                yield frame
        if not found:
            raise Problem("bad_audio", "The file holds no sound that can be decoded: it is damaged, or has no length.")

    def _packets(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (self._av.FFmpegError, MemoryError):
                return  # cut off in the middle: what came before is read
            if packet is None:
                return
            yield packet

    def _resample(self, resampler: Any, frame: Any) -> Iterator[Any]:
        numpy = load("numpy")
        try:
            pieces = resampler.resample(frame)
        except (self._av.FFmpegError, ValueError, MemoryError):
            raise _broken("file") from None
        for piece in pieces:
            yield piece.to_ndarray().reshape(-1).astype(numpy.float32) / 32768.0


def read_samples(data: bytes) -> Any:
    """Samples of s16le, float32 from -1 to 1. Raises Problem."""
    check_whole(data)
    numpy = load("numpy")
    return numpy.frombuffer(data, "<i2").astype(numpy.float32) / 32768.0


def check_whole(data: bytes) -> None:
    """Raises Problem where the bytes are no whole number of samples."""
    if len(data) % 2:
        raise Problem("invalid_request", f"A sample has two bytes; {len(data)} bytes are no whole number of samples.")


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise Problem("gone", f"The upload is not there any more: {error.strerror}.", 500) from None


def _check_length(seconds: float, max_s: float) -> None:
    if seconds > max_s:
        raise _too_long(seconds, max_s)


def _too_long(seconds: float, max_s: float) -> Problem:
    return Problem(
        "too_long",
        f"The sound is longer than the {max_s:g} s that are heard at once, or than the file itself says "
        f"({seconds:.0f} s or more).",
    )


def _broken(what: str) -> Problem:
    return Problem("bad_audio", f"The {what} is damaged or cut off: it can't be read as sound.")
