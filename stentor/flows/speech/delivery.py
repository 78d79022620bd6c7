"""How speech goes out to a client: as sound, as events that hold sound, or as one JSON object."""

import base64
from typing import Protocol

import msgspec

from stentor.core.books import Usage
from stentor.core.sound import SpeechForm, with_sizes
from stentor.flows.speech.request import Delivery

_encode = msgspec.json.Encoder().encode
_MEDIA_TYPES: dict[SpeechForm, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


def media_type_of(form: SpeechForm, delivery: Delivery) -> str:
    """The ``Content-Type`` of a speech."""
    if delivery == "audio":
        return _MEDIA_TYPES[form]
    return "text/event-stream" if delivery == "sse" else "application/json"


class Way(Protocol):
    """What becomes of each piece of sound."""

    def piece(self, data: bytes) -> bytes:
        """What is sent for ``data`` now."""
        ...

    def end(self, data: bytes, usage: Usage) -> bytes:
        """What is sent at the end, with the last ``data``."""
        ...


class AsSound:
    """The sound itself."""

    def piece(self, data: bytes) -> bytes:
        """See :class:`Way`."""
        return data

    def end(self, data: bytes, usage: Usage) -> bytes:
        """See :class:`Way`."""
        return data


class AsEvents:
    """``speech.audio.delta`` and ``speech.audio.done``."""

    def piece(self, data: bytes) -> bytes:
        """See :class:`Way`."""
        if not data:
            return b""
        return b'data: {"type":"speech.audio.delta","audio":"%b"}\n\n' % base64.b64encode(data)

    def end(self, data: bytes, usage: Usage) -> bytes:
        """See :class:`Way`."""
        tokens = usage.input_tokens
        counts = {"input_tokens": tokens, "output_tokens": usage.output_tokens, "total_tokens": tokens}
        return self.piece(data) + b"data: " + _encode({"type": "speech.audio.done", "usage": counts}) + b"\n\n"


class AsJson:
    """``{"audio_base64", "mime_type"}``, with a WAV that says how long it is, or what an upstream makes instead."""

    def __init__(self) -> None:
        self.form: SpeechForm = "wav"
        self._parts: list[bytes] = []
        self.size = 0

    def piece(self, data: bytes) -> bytes:
        """See :class:`Way`."""
        self._parts.append(data)
        self.size += len(data)
        return b""

    def end(self, data: bytes, usage: Usage) -> bytes:
        """See :class:`Way`."""
        self.piece(data)
        sound = base64.b64encode(with_sizes(b"".join(self._parts)))
        return b'{"audio_base64":"%b","mime_type":"%b"}' % (sound, _MEDIA_TYPES[self.form].encode())


def make_way(delivery: Delivery) -> Way:
    """The way of ``delivery``."""
    if delivery == "sse":
        return AsEvents()
    return AsJson() if delivery == "json" else AsSound()
