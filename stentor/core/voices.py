"""The voices of a model that speaks, told by the descriptions and names that lie beside its weights. Pure."""

from collections.abc import Iterable

import msgspec

# What the first letter of one of Kokoro's voices says of it: the language's tag, and espeak-ng's name for it.
_KOKORO_LANGUAGES = {
    "a": ("en-US", "en-us"),
    "b": ("en-GB", "en-gb"),
    "e": ("es", "es"),
    "f": ("fr-FR", "fr-fr"),
    "h": ("hi", "hi"),
    "i": ("it", "it"),
    "j": ("ja", "ja"),
    "p": ("pt-BR", "pt-br"),
    "z": ("zh", "cmn"),
}
# The ones that most people know stand first; the very first speaks where none is asked for.
_KOKORO_FIRST = ("af_heart", "af_bella", "af_sarah")


class VoiceCard(msgspec.Struct, frozen=True):
    """One voice; ``language`` is a tag such as ``en-US``, ``und`` where it is nobody's."""

    id: str
    language: str


TONE = VoiceCard("tone", "und")


class _Language(msgspec.Struct, frozen=True):
    code: str = ""


class _Espeak(msgspec.Struct, frozen=True):
    voice: str = ""


class _PiperDescription(msgspec.Struct):
    language: _Language = _Language()
    espeak: _Espeak = _Espeak()
    dataset: str = ""
    speaker_id_map: dict[str, int] = {}


def read_piper_voices(description: bytes, fallback: str) -> tuple[VoiceCard, ...]:
    """The speakers in a Piper voice's JSON, the default first. Raises ValueError for what can't be read."""
    found = msgspec.json.decode(description, type=_PiperDescription)
    language = (found.language.code or found.espeak.voice or "und").replace("_", "-")
    speakers = sorted(found.speaker_id_map, key=lambda name: found.speaker_id_map[name])
    return tuple(VoiceCard(name, language) for name in speakers or [found.dataset or fallback])


def order_kokoro_voices(names: Iterable[str]) -> tuple[VoiceCard, ...]:
    """Kokoro's voices by their names alone."""
    order = sorted(
        set(names), key=lambda name: (_KOKORO_FIRST.index(name) if name in _KOKORO_FIRST else len(_KOKORO_FIRST), name)
    )
    return tuple(VoiceCard(name, kokoro_language(name)[0]) for name in order)


def kokoro_language(voice: str) -> tuple[str, str]:
    """The tag of the language that a voice speaks, and espeak-ng's name for it."""
    return _KOKORO_LANGUAGES.get(voice[:1], ("en-US", "en-us"))
