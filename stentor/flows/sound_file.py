"""What an uploaded sound is, told by its first bytes: for upstreams elsewhere, which aren't sent what isn't sound.

How long it is, is read from a WAVE file (RFC 2361). Of the others the heads say how long they are, or else the size how
long about, and the size how long at most.
"""

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from stentor.core.sound import HEARD_FORMATS, Container, find_container
from stentor.flows.sound_length import tell_length_s

STEP_BYTES = 256 * 1024
_CHUNKS_MAX = 64
# PCM, IEEE float, and either with its own format in the rest of the chunk.
_PLAIN = frozenset({1, 3, 0xFFFE})
# Speech that is squeezed harder than this isn't understood any more.
_LEAST_BYTES_PER_S = 500


class _Kind(NamedTuple):
    extension: str
    media_type: str
    bytes_per_s: int  # as recordings of speech have it


_KINDS: dict[Container, _Kind] = {
    "wav": _Kind("wav", "audio/wav", 32_000),
    "mp3": _Kind("mp3", "audio/mpeg", 12_000),
    "flac": _Kind("flac", "audio/flac", 32_000),
    "ogg": _Kind("ogg", "audio/ogg", 4_000),
    "webm": _Kind("webm", "audio/webm", 4_000),
    "m4a": _Kind("m4a", "audio/mp4", 8_000),
}


class NoSound(ValueError):
    """It can't be used; the text ends the sentence «The file …»."""


class SoundFile(NamedTuple):
    """A file of sound, ``duration_s`` long or about, at most ``most_s``.

    ``measured``: by its samples; ``told``: by its own word, if not by its samples.
    """

    path: Path
    size_bytes: int
    extension: str
    media_type: str
    duration_s: float
    most_s: float
    measured: bool
    told: bool

    async def pieces(self) -> AsyncIterator[bytes]:
        """Its bytes, read as they are asked for. Raises OSError."""
        file = await asyncio.to_thread(self.path.open, "rb")
        try:
            while piece := await asyncio.to_thread(file.read, STEP_BYTES):
                yield piece
        finally:
            file.close()


def look_at_sound(path: Path) -> SoundFile:
    """What the file is. Reads its head. Raises NoSound."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        kind = _find_kind(file.read(16))
        if kind is None:
            raise NoSound(f"is no sound that is known here: send {HEARD_FORMATS}")
        lengths = _measure_wav(file, size_bytes) if kind.extension == "wav" else None
        told_s = None if lengths is not None else tell_length_s(file, kind.extension)
    measured = lengths is not None
    length_s, most_s = lengths or (told_s or size_bytes / kind.bytes_per_s, size_bytes / _LEAST_BYTES_PER_S)
    told = measured or told_s is not None
    return SoundFile(path, size_bytes, kind.extension, kind.media_type, length_s, most_s, measured, told)


def _find_kind(head: bytes) -> _Kind | None:
    if head.startswith(b"RF64"):
        return None  # nobody elsewhere reads it
    found = find_container(head)
    return None if found is None else _KINDS.get(found)


def _measure_wav(file: BinaryIO, size_bytes: int) -> tuple[float, float] | None:
    """Seconds that it says it has, and seconds that there are bytes for; None where it isn't plain samples."""
    at, second_bytes = 12, None
    for _ in range(_CHUNKS_MAX):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            break
        name, size = struct.unpack("<4sI", head)
        if name == b"fmt ":
            second_bytes = _second_bytes(file.read(16))
            if second_bytes is None:
                return None
        elif name == b"data":
            if not second_bytes:
                raise NoSound("is a WAVE file that doesn't say how its samples are written")
            there = size_bytes - at - 8
            # Streams are begun before anybody knows their length; and what was cut off isn't there.
            said = size if 0 < size <= there else there
            return said / second_bytes, there / second_bytes
        at += 8 + size + size % 2
    raise NoSound("is a WAVE file without samples")


def _second_bytes(form: bytes) -> int | None:
    if len(form) < 16:
        return 0
    tag, _, rate, _, frame_bytes, _ = struct.unpack("<HHIIHH", form)
    return rate * frame_bytes if tag in _PLAIN else None
