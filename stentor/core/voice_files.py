"""Which files a voice is made of, and whose names are in them: for engines that load it, and for lists of voices.

Nothing is loaded here, and of archives nothing but their lists is read.
"""

import zipfile
from pathlib import Path

from stentor.core.errors import StentorError
from stentor.core.voices import VoiceCard, order_kokoro_voices, read_piper_voices

_DESCRIPTION_MAX_BYTES = 4 << 20
_VOICES_MAX = 1000


class NoVoice(StentorError):
    """The files at a place don't make a voice; the text says which are missing or too many."""


def find_piper_files(place: Path) -> tuple[Path, Path]:
    """The model and its description, of a file or of a folder with one voice. Raises NoVoice."""
    models = sorted(place.glob("*.onnx")) if place.is_dir() else [place]
    if len(models) != 1:
        raise NoVoice(f"{place} holds {len(models)} files *.onnx; a Piper voice is one, with its .onnx.json.")
    description = models[0].with_name(models[0].name + ".json")
    if not description.is_file():
        raise NoVoice(f"{description} is missing: the description that every Piper voice has beside its model.")
    return models[0], description


def list_piper_voices(place: Path) -> tuple[VoiceCard, ...]:
    """The speakers of a Piper voice. Raises NoVoice, OSError, and ValueError for a description that can't be read."""
    model, description = find_piper_files(place)
    with description.open("rb") as file:
        return read_piper_voices(file.read(_DESCRIPTION_MAX_BYTES), model.stem)


def find_kokoro_files(folder: Path) -> tuple[Path, list[Path]]:
    """The model and the files of its voices, in a folder or below it in ``onnx`` and ``voices``. Raises NoVoice."""
    models = sorted(folder.glob("*.onnx")) or sorted(folder.glob("onnx/*.onnx"))
    if len(models) != 1:
        raise NoVoice(f"{folder} holds {len(models)} files *.onnx; a Kokoro model is one.")
    voices = sorted(path for where in (folder, folder / "voices") for path in where.glob("*") if _holds_voices(path))
    if not voices:
        raise NoVoice(f"{folder} holds no voices: a file voices*.npz (or .bin), or a folder voices/ of *.bin.")
    return models[0], voices


def list_kokoro_voices(folder: Path) -> tuple[VoiceCard, ...]:
    """The voices of a Kokoro model. Raises NoVoice, OSError, and BadZipFile for an archive that can't be read."""
    _, files = find_kokoro_files(folder)
    return order_kokoro_voices(name for path in files for name in _names_in(path))


def _holds_voices(path: Path) -> bool:
    return path.suffix in (".npz", ".bin") and path.is_file()


def _names_in(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return [path.stem]
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()[:_VOICES_MAX]]
