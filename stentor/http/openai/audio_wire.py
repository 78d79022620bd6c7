"""Shapes of speech on the wire, for the OpenAPI document and its tests."""

from typing import Annotated, Literal

import msgspec

from stentor.core.sound import SpeechForm

SPOKEN_MEDIA_TYPES = (
    "audio/mpeg", "audio/ogg", "audio/aac", "audio/flac", "audio/wav", "audio/pcm", "text/event-stream",
)  # fmt: skip


class NamedVoice(msgspec.Struct):
    """A voice by its id."""

    id: str


class SpeechRequest(msgspec.Struct, omit_defaults=True):
    """A text to speak. ``voice`` is one of ``GET /v1/audio/voices``, by default the model's first.

    The answer is the sound, sent as it is made (``pcm``: 24 kHz, mono, s16le; a streamed ``wav`` says 0xFFFFFFFF for
    its length); with ``stream_format: "sse"`` events ``speech.audio.delta`` and ``speech.audio.done``; to ``Accept:
    application/json`` alone one object. ``instructions`` reach models elsewhere; those here have nothing to follow
    them.
    """

    model: str
    input: str
    voice: str | NamedVoice | None = None
    response_format: SpeechForm = "mp3"
    speed: Annotated[float, msgspec.Meta(ge=0.25, le=4.0)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    instructions: str | None = None


class SpokenText(msgspec.Struct):
    """A whole speech in base64: a WAV file, or what an upstream makes that makes no other."""

    audio_base64: str
    mime_type: Literal["audio/wav", "audio/flac", "audio/mpeg", "audio/ogg", "audio/aac"]


class Voice(msgspec.Struct):
    """One voice of one model; ``language`` is a tag such as ``en-US``, ``und`` where it is none's."""

    id: str
    model: str
    language: str
    object: Literal["voice"] = "voice"


class VoiceName(msgspec.Struct):
    """A voice as other servers list it."""

    id: str
    name: str


class VoiceList(msgspec.Struct):
    """All voices that the key may use, by model; the first of each model speaks where none is named.

    ``voices`` are their names, each once, where clients of other servers look for them.
    """

    data: list[Voice]
    voices: list[VoiceName]
    object: Literal["list"] = "list"
