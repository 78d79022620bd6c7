"""Images and sounds inside a request: what they are, told by their own bytes, and how much they would become.

An engine decodes what it is given into plain pixels and samples, whatever the size of the file: a picture of one colour
or a minute of silence is a few bytes and may claim to be gigabytes. So the heads are read here, by the rules of the
decoders in llama.cpp (stb_image, miniaudio), and what is too much is refused before it reaches an engine.
Formats: PNG (RFC 2083), JPEG (T.81), GIF89a, BMP, WebP (RFC 9649), WAVE, MP3 (ISO 11172-3), FLAC (RFC 9639).
"""

import binascii
import struct
from typing import NamedTuple

from stentor.core.errors import Refused
from stentor.core.sound import skip_tag

FILE_MAX_BYTES = 20 * 1024 * 1024
PIXELS_MAX = 64_000_000
REQUEST_PIXELS_MAX = 128_000_000
SECONDS_MAX = 1800.0
_BASE64 = ";base64,"
_JPEG_HEADS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MP3_RATES = ((44100, 48000, 32000), (22050, 24000, 16000), (11025, 12000, 8000))
_MP3_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MP3_LEAST_BYTES_PER_S = 1000
_MP3_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


class Size(NamedTuple):
    """What media become when they are decoded."""

    pixels: int = 0
    seconds: float = 0.0


NO_MEDIA = Size()


class _Unreadable(ValueError):
    """The bytes aren't what they should be; the text ends the sentence «it …»."""


def measure_image(url: str, place: str) -> Size:
    """The size of an image in a ``data:`` address. Raises Refused (400) naming ``place``."""
    if url[:8].lower().startswith(("http:", "https:/")):
        raise _refuse(place, "names an address, and this server fetches none: send the image itself as a 'data:' one")
    head, mark, text = url.partition(_BASE64)
    if not mark or not head.startswith("data:image/"):
        raise _refuse(place, "must be a 'data:image/…;base64,…' address")
    data = _decode(text, place)
    try:
        width, height = _measure_picture(data)
    except (_Unreadable, struct.error, IndexError) as problem:
        raise _refuse(place, f"holds an image that can't be used: it {_words(problem)}") from None
    if not 0 < width * height <= PIXELS_MAX:
        raise _refuse(place, f"holds an image of {width} × {height} pixels; at most {PIXELS_MAX} in all are accepted")
    return Size(pixels=width * height)


def measure_audio(text: str, form: str, place: str) -> Size:
    """The length of a sound in base64 that claims the format ``form``. Raises Refused (400) naming ``place``."""
    if form not in ("wav", "mp3", "flac"):
        raise _refuse(place, f"has the format '{form[:20]}'; 'wav', 'mp3' and 'flac' are understood")
    data = _decode(text, place)
    try:
        seconds = {"wav": _measure_wav, "mp3": _measure_mp3, "flac": _measure_flac}[form](data)
    except (_Unreadable, struct.error, IndexError, ZeroDivisionError) as problem:
        raise _refuse(place, f"holds a sound that can't be used: it {_words(problem)}") from None
    if not 0 < seconds <= SECONDS_MAX:
        raise _refuse(place, f"holds {seconds:.0f} s of sound; it must be more than 0 and at most {SECONDS_MAX:.0f}")
    return Size(seconds=seconds)


def check_total(total: Size) -> None:
    """Whether one request's media are bearable together. Raises Refused (400)."""
    if total.pixels > REQUEST_PIXELS_MAX:
        raise _refuse("messages", f"hold {total.pixels} pixels in all; at most {REQUEST_PIXELS_MAX} are accepted")
    if total.seconds > SECONDS_MAX:
        raise _refuse("messages", f"hold {total.seconds:.0f} s of sound; at most {SECONDS_MAX:.0f} s are accepted")


def _refuse(place: str, problem: str) -> Refused:
    return Refused("invalid_request", f"'{place}' {problem}.", param=place)


def _words(problem: Exception) -> str:
    return str(problem) if isinstance(problem, _Unreadable) else "ends too early"


def _decode(text: str, place: str) -> bytes:
    if len(text) > FILE_MAX_BYTES * 4 // 3 + 4:
        raise _refuse(place, f"holds over {FILE_MAX_BYTES // 2**20} MiB")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise _refuse(place, f"isn't valid base64: {error}") from None


# -- pictures


def _measure_picture(data: bytes) -> tuple[int, int]:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        if data[12:16] != b"IHDR":
            raise _Unreadable("is a PNG without its head")
        return struct.unpack(">II", data[16:24])
    if data.startswith(b"\xff\xd8\xff"):
        return _measure_jpeg(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return struct.unpack("<HH", data[6:10])
    if data.startswith(b"BM"):
        width, height = struct.unpack("<ii", data[18:26])
        return abs(width), abs(height)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _measure_webp(data)
    raise _Unreadable("is no PNG, JPEG, GIF, BMP or WebP image")


def _measure_jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise _Unreadable("is a damaged JPEG")
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        if marker in _JPEG_HEADS:
            height, width = struct.unpack(">HH", data[at + 4 : at + 8])
            return width, height
        if marker in (0xD9, 0xDA):
            raise _Unreadable("is a JPEG without a head")
        at += 1 + struct.unpack(">H", data[at + 1 : at + 3])[0]


def _measure_webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack("<I", data[21:25])[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise _Unreadable("is a damaged WebP")


# -- sounds


def _measure_wav(data: bytes) -> float:
    if not (data.startswith(b"RIFF") and data[8:12] == b"WAVE"):
        raise _Unreadable("is no WAVE file")
    at, second_bytes = 12, 0
    while at + 8 <= len(data):
        name, size = struct.unpack("<4sI", data[at : at + 8])
        if name == b"fmt ":
            rate, frame_bytes = struct.unpack("<I4xH", data[at + 12 : at + 22])
            second_bytes = rate * frame_bytes
        elif name == b"data":
            # The larger of what it claims and what is there: decoders differ in whom they believe.
            claimed = size if size != 0xFFFFFFFF else 0
            return float(max(claimed, len(data) - at - 8) / second_bytes)
        at += 8 + size + size % 2
    raise _Unreadable("is a WAVE file without samples")


def _measure_flac(data: bytes) -> float:
    if not data.startswith(b"fLaC") or data[4] & 0x7F:
        raise _Unreadable("is no FLAC file")
    packed = int.from_bytes(data[18:26], "big")
    rate, samples = packed >> 44, packed & (1 << 36) - 1
    if not samples:
        raise _Unreadable("doesn't say how long it is")
    return samples / rate


def _measure_mp3(data: bytes) -> float:
    """Frame by frame: a head may lie about the rest, and each frame may have another length."""
    at = start = skip_tag(data)
    claimed = counted = 0.0
    while at + 4 <= len(data) and counted <= SECONDS_MAX:
        samples, rate, size = read_mp3_frame(data, at)
        if not size:
            break
        if at == start:
            claimed = claimed_frames(data, at, size) * samples / rate
        counted += samples / rate
        at += size
    if not counted:
        raise _Unreadable("is no MP3 file")
    # Decoders skip what follows until something looks like a frame again: the worst that it can be.
    return max(claimed, counted + max(0, len(data) - at) / _MP3_LEAST_BYTES_PER_S)


def read_mp3_frame(data: bytes, at: int) -> tuple[int, int, int]:
    """Samples, rate, and bytes of the frame that begins here; 0 bytes where none does."""
    first, second, third = data[at], data[at + 1], data[at + 2]
    version, layer = second >> 3 & 3, second >> 1 & 3
    kbits, rate_index = third >> 4, third >> 2 & 3
    if first != 0xFF or second < 0xE0 or version == 1 or layer != 1 or kbits in (0, 15) or rate_index == 3:
        return 0, 1, 0
    rate = _MP3_RATES[{3: 0, 2: 1, 0: 2}[version]][rate_index]
    samples = 1152 if version == 3 else 576
    bits = (_MP3_KBITS_1 if version == 3 else _MP3_KBITS_2)[kbits] * 1000
    return samples, rate, samples // 8 * bits // rate + (third >> 1 & 1)


def claimed_frames(data: bytes, at: int, size: int) -> int:
    """The number of frames that an encoder's note in the first frame claims, or 0."""
    frame = data[at : at + size]
    for name in (b"Xing", b"Info"):
        place = frame.find(name, 4, 64)
        if place >= 0 and len(frame) >= place + 12 and frame[place + 7] & 1:
            return int.from_bytes(frame[place + 8 : place + 12], "big")
    return 0
