"""Images and sounds made on the spot, some of which claim to be far more than they are."""

import base64
import io
import math
import struct
import wave
import zlib
from typing import Any


def png(width: int = 4, height: int = 4, claimed: tuple[int, int] | None = None) -> bytes:
    """A red picture; ``claimed`` is what its head says."""
    rows = b"".join(b"\0" + b"\xff\x00\x00" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", *(claimed or (width, height)), 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def jpeg_head(width: int, height: int) -> bytes:
    """The beginning of a JPEG, up to its size."""
    app = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0" + b"\0" * 9
    return b"\xff\xd8" + app + b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\0" * 9


def gif_head(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0" * 3


def bmp_head(width: int, height: int) -> bytes:
    return b"BM" + b"\0" * 12 + struct.pack("<Iii", 40, width, height) + b"\0" * 28


def webp_head(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + b"\0" * 4 + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + size


def wav(seconds: float = 1.0, rate: int = 16_000) -> bytes:
    """A tone."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(at / 5))) for at in range(int(rate * seconds))))
    return file.getvalue()


def flac_head(samples: int, rate: int = 16_000) -> bytes:
    """A FLAC file's first block, which says how long it is."""
    packed = rate << 44 | 15 << 36 | samples
    return (
        b"fLaC" + b"\x80\0\0\x22" + struct.pack(">HH", 4096, 4096) + b"\0" * 6 + packed.to_bytes(8, "big") + b"\0" * 16
    )


def mp3(frames: int, claimed: int | None = None) -> bytes:
    """Silent frames of 64 kbit/s and 1152/44100 s; ``claimed`` is the number that the first one notes."""
    size = 144 * 64_000 // 44_100
    frame = b"\xff\xfb\x50\xc0" + b"\0" * (size - 4)
    if claimed is None:
        return frame * frames
    note = b"Xing" + struct.pack(">II", 1, claimed)
    return frame[:21] + note + frame[21 + len(note) :] + frame * (frames - 1)


def image_part(data: bytes, kind: str = "png") -> dict[str, Any]:
    """A part of a chat message."""
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}


def audio_part(data: bytes, form: str = "wav") -> dict[str, Any]:
    """A part of a chat message."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}}
