"""Sound as both sides of an engine know it: the forms of speech, and what a file is by its first bytes. Pure."""

import struct
from typing import Literal, get_args

SpeechForm = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
SPEECH_FORMS: tuple[SpeechForm, ...] = get_args(SpeechForm)
Container = Literal["wav", "mp3", "ogg", "webm", "flac", "m4a", "aac"]
HEARD_FORMATS = "wav, mp3, ogg, webm, flac or m4a"
# The length that a WAV header gives where nobody knows it yet, as streams have it.
UNKNOWN_LENGTH = 0xFFFFFFFF
WAV_HEAD_BYTES = 44


def find_container(head: bytes) -> Container | None:
    """What a file is that begins so (12 bytes are enough), or None if it is none that is heard.

    ``aac`` are AAC's own frames, which only engines here read.
    """
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "webm"
    if head[4:8] == b"ftyp":
        return "m4a"
    if head[:3] == b"ID3":
        return "mp3"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        # The sync word of MPEG audio: layer bits 00 are AAC in its own frames.
        return "mp3" if head[1] & 0x06 else "aac"
    return None


def skip_tag(head: bytes) -> int:
    """How many bytes of notes (ID3v2, as MP3 files have them) a file begins with, by its first ten."""
    if not head.startswith(b"ID3"):
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def wav_head(rate_hz: int, data_bytes: int | None = None) -> bytes:
    """The 44 bytes before mono s16 samples; ``data_bytes`` None where their number isn't known yet."""
    size = UNKNOWN_LENGTH if data_bytes is None else data_bytes
    whole = UNKNOWN_LENGTH if data_bytes is None else data_bytes + WAV_HEAD_BYTES - 8
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", whole, b"WAVE", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16, b"data", size
    )


def with_sizes(wav: bytes) -> bytes:
    """A whole WAV whose header (of :func:`wav_head`) says so, in place of the unknown length that streams have."""
    if len(wav) < WAV_HEAD_BYTES or wav[:4] != b"RIFF" or wav[36:40] != b"data":
        return wav
    data_bytes = len(wav) - WAV_HEAD_BYTES
    whole, data = struct.pack("<I", data_bytes + WAV_HEAD_BYTES - 8), struct.pack("<I", data_bytes)
    return wav[:4] + whole + wav[8:40] + data + wav[WAV_HEAD_BYTES:]
