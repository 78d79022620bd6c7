"""How long a packed sound is by its own heads: enough to turn away what is too long, and to guess what nobody measured.

Nothing is decoded. MP3 (ISO 11172-3), FLAC (RFC 9639), Ogg (RFC 3533), MP4 (ISO 14496-12), WebM (RFC 8794, RFC 9559).
A file may lie about itself, so nothing is paid by this where anybody knows better.
"""

import math
import os
import struct
from typing import BinaryIO, NamedTuple

from stentor.core.sound import skip_tag
from stentor.flows.media import claimed_frames, read_mp3_frame

_STEP_BYTES = 64 * 1024
_TAIL_BYTES = 1 << 20
_ATOMS_MAX = 256
# WebM's elements, by their numbers.
_SEGMENT, _INFO, _CLUSTER = 0x18538067, 0x1549A966, 0x1F43B675
_SCALE, _DURATION, _TIMESTAMP = 0x2AD7B1, 0x4489, 0xE7
_NANOSECONDS = 1_000_000  # of a tick, where nothing else is said


def tell_length_s(file: BinaryIO, extension: str) -> float | None:
    """Seconds of an open file of this kind, None where its heads don't say. Reads little of it."""
    tell = {"mp3": _tell_mp3, "flac": _tell_flac, "ogg": _tell_ogg, "m4a": _tell_mp4, "webm": _tell_webm}.get(extension)
    if tell is None:
        return None
    try:
        seconds = tell(file)
    except (struct.error, IndexError, ZeroDivisionError, OverflowError):
        return None
    return seconds if seconds is not None and 0 < seconds < math.inf else None


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _tail(file: BinaryIO, size: int) -> bytes:
    return _read(file, max(0, _size(file) - size), size)


def _tell_mp3(file: BinaryIO) -> float | None:
    """By the encoder's note in the first frame, else as if all of it were like its first frames."""
    begin = skip_tag(_read(file, 0, 10))
    data = _read(file, begin, _STEP_BYTES)
    at, counted_s = 0, 0.0
    while at + 4 <= len(data):
        samples, rate, size = read_mp3_frame(data, at)
        if not size:
            break
        claimed = claimed_frames(data, at, size) if at == 0 else 0
        if claimed:
            return claimed * samples / rate
        counted_s += samples / rate
        at += size
    return counted_s * (_size(file) - begin) / at if at else None


def _tell_flac(file: BinaryIO) -> float | None:
    packed = int.from_bytes(_read(file, 18, 8), "big")
    return (packed & (1 << 36) - 1) / (packed >> 44)


def _tell_ogg(file: BinaryIO) -> float | None:
    """The place of the last page, in samples of the rate that the first one says."""
    head = _read(file, 0, 64)
    words = head[27 + head[26] :]
    if words.startswith(b"OpusHead"):
        rate = 48_000
    elif words.startswith(b"\x01vorbis"):
        rate = struct.unpack("<I", words[12:16])[0]
    else:
        return None
    tail = _tail(file, _STEP_BYTES)
    at = tail.rfind(b"OggS")
    return struct.unpack("<q", tail[at + 6 : at + 14])[0] / rate if at >= 0 else None


class _Atom(NamedTuple):
    name: bytes
    begin: int  # of what is in it
    end: int


def _find_atom(file: BinaryIO, name: bytes, at: int, end: int) -> _Atom | None:
    for _ in range(_ATOMS_MAX):
        if at + 8 > end:
            return None
        size, found = struct.unpack(">I4s", _read(file, at, 8))
        begin = at + 8
        if size == 1:
            size, begin = struct.unpack(">Q", _read(file, at + 8, 8))[0], at + 16
        stop = min(end, at + size if size else end)
        if stop <= at:
            return None
        if found == name:
            return _Atom(found, begin, stop)
        at = stop
    return None


def _tell_mp4(file: BinaryIO) -> float | None:
    moov = _find_atom(file, b"moov", 0, _size(file))
    head = None if moov is None else _find_atom(file, b"mvhd", moov.begin, moov.end)
    if head is None:
        return None
    data = _read(file, head.begin, 32)
    scale, length = struct.unpack(">IQ" if data[0] == 1 else ">II", data[20:32] if data[0] == 1 else data[12:20])
    return float(length / scale)  # 0 where it is written in fragments


class _Element(NamedTuple):
    name: int
    begin: int  # of what is in it
    size: int


def _read_element(data: bytes, at: int) -> _Element:
    """The head of a WebM element. Its size may be unknown, which is a very large one."""
    width = 9 - data[at].bit_length()
    name = int.from_bytes(data[at : at + width], "big")
    at += width
    wide = 9 - data[at].bit_length()
    size = int.from_bytes(data[at : at + wide], "big") & (1 << 7 * wide) - 1
    return _Element(name, at + wide, size)


def _tell_webm(file: BinaryIO) -> float | None:
    """As its head says; a browser, which writes as it records, says where each piece begins: the last one's place."""
    head = _read(file, 0, _STEP_BYTES)
    scale, at = _NANOSECONDS, 0
    while at < len(head):
        element = _read_element(head, at)
        if element.name == _CLUSTER:
            break
        data = head[element.begin : element.begin + element.size]
        if element.name == _SCALE:
            scale = int.from_bytes(data, "big")
        elif element.name == _DURATION:
            return float(struct.unpack(">f" if element.size == 4 else ">d", data)[0]) * scale / 1e9
        at = element.begin if element.name in (_SEGMENT, _INFO) else element.begin + element.size
    tail = _tail(file, _TAIL_BYTES)
    place = tail.rfind(_CLUSTER.to_bytes(4, "big"))
    if place < 0:
        return None
    cluster = _read_element(tail, place)
    stamp = _read_element(tail, cluster.begin)
    if stamp.name != _TIMESTAMP:
        return None
    return int.from_bytes(tail[stamp.begin : stamp.begin + stamp.size], "big") * scale / 1e9
