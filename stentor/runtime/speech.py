"""Models that hear and speak: which files they are made of, what they can do, and how much memory they take.

They have engines of their own, each on a library that is an optional extra. Nothing of a model is run or unpickled
here; it is only looked whether the files are there that its engine will want.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import msgspec

from stentor.core.errors import UNREADABLE
from stentor.core.units import MIB
from stentor.core.voice_files import NoVoice, list_kokoro_voices, list_piper_voices
from stentor.core.voices import TONE, VoiceCard
from stentor.runtime.launchers.base import LaunchRefused
from stentor.runtime.spec import ABILITIES, SPEECH_TYPES, EngineKind, ModelSpec

# Whisper's vocabulary has one word more where it knows more than English.
_ENGLISH_WORDS = 51864
_PROCESS_BYTES = 170 * MIB
_TONE_BYTES = 64 * MIB
_PLACE_BYTES = 24 * MIB


class Voice(NamedTuple):
    """A model that hears or speaks. ``size_bytes`` is its files', ``needed_bytes`` what an engine takes with it."""

    spec: ModelSpec
    abilities: tuple[str, ...]
    size_bytes: int
    needed_bytes: int
    voices: tuple[VoiceCard, ...] = ()


class _Wanted(NamedTuple):
    """Files that an engine needs: one of each group of patterns."""

    groups: tuple[tuple[str, ...], ...]
    words: str


_WANTED: dict[EngineKind, _Wanted] = {
    "whisper": _Wanted(
        (("model.bin",), ("config.json",), ("vocabulary.txt", "vocabulary.json"), ("tokenizer.json",)),
        "a CTranslate2 folder with model.bin, config.json, tokenizer.json and vocabulary.txt or vocabulary.json",
    ),
    "sense_voice": _Wanted(
        (("model*.onnx",), ("tokens.txt",)), "a folder with model.onnx (or model.int8.onnx) and tokens.txt"
    ),
    "piper": _Wanted((("*.onnx",), ("*.onnx.json",)), "a voice.onnx and the voice.onnx.json that belongs to it"),
    "kokoro": _Wanted(
        (("*.onnx", "onnx/*.onnx"), ("*.npz", "*.bin", "voices/*.npz", "voices/*.bin")),
        "an .onnx file and its voices (voices.npz, voices*.bin or voices/*.bin)",
    ),
    "listen": _Wanted((("silero*.onnx",),), "a folder with silero_vad.onnx, and smart-turn*.onnx to tell turns"),
}


def find_voice(spec: ModelSpec, path: Path | None) -> Voice:
    """What the model at ``path`` (a folder, or its .onnx file; None: it has no files) is. Raises LaunchRefused."""
    if path is None or spec.engine not in _WANTED:
        return Voice(spec, ABILITIES[spec.kind], 0, _TONE_BYTES, (TONE,) if spec.engine == "tone" else ())
    wanted = _WANTED[spec.engine]
    folder = path if path.is_dir() else path.parent
    for patterns in wanted.groups:
        if not any(file.is_file() for pattern in patterns for file in folder.glob(pattern)):
            raise LaunchRefused(
                f"Model '{spec.id}': {folder} has no {' or '.join(patterns)}. engine = \"{spec.engine}\" needs "
                f"{wanted.words}. Correct its source '{spec.source}'.",
                public="its files are not those of a model for its engine",
            )
    size_bytes = sum(file.stat().st_size for file in _list_files(path))
    needed_bytes = _PROCESS_BYTES + size_bytes * 3 // 2 + spec.parallel * _PLACE_BYTES
    full = msgspec.structs.replace(spec, type=SPEECH_TYPES[spec.engine])
    voices = _list_voices(spec.engine, path, folder)
    return Voice(full, _choose_abilities(spec, folder), size_bytes, needed_bytes, voices)


def _list_voices(engine: EngineKind, path: Path, folder: Path) -> tuple[VoiceCard, ...]:
    """What clients may choose before an engine runs; none where it can't be told."""
    try:
        if engine == "piper":
            return list_piper_voices(path)
        return list_kokoro_voices(folder) if engine == "kokoro" else ()
    except (NoVoice, OSError, ValueError, zipfile.BadZipFile):
        return ()  # its engine will say what is wrong with the files


def _list_files(path: Path) -> list[Path]:
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file()]
    return [path, *path.parent.glob(f"{path.name}.json")]


def _choose_abilities(spec: ModelSpec, folder: Path) -> tuple[str, ...]:
    abilities = ABILITIES[spec.kind]
    return (*abilities, "translation") if spec.engine == "whisper" and _knows_languages(folder) else abilities


def _knows_languages(folder: Path) -> bool:
    """Whether a Whisper model knows more languages than English, by the number of its words."""
    try:
        text, listed = folder / "vocabulary.txt", folder / "vocabulary.json"
        if text.is_file():
            with text.open("rb") as lines:
                return sum(1 for _ in lines) > _ENGLISH_WORDS
        return len(msgspec.json.decode(listed.read_bytes(), type=list[str])) > _ENGLISH_WORDS
    except (OSError, *UNREADABLE):
        return False
