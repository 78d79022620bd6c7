"""The names of the voices in a model's files, without loading any: what clients may choose before an engine runs."""

import zipfile
from pathlib import Path

from stentor.core.voices import TONE, VoiceCard, order_kokoro_voices, read_piper_voices
from stentor.runtime.spec import EngineKind

_DESCRIPTION_MAX_BYTES = 4 << 20
_VOICES_MAX = 1000


def list_voices(engine: EngineKind, path: Path | None) -> tuple[VoiceCard, ...]:
    """The voices of the model at ``path`` (a folder, or its .onnx file); none where they can't be told."""
    if engine == "tone":
        return (TONE,)
    if path is None or engine not in ("piper", "kokoro"):
        return ()
    folder = path if path.is_dir() else path.parent
    try:
        return _list_piper(path, folder) if engine == "piper" else _list_kokoro(folder)
    except (OSError, ValueError, zipfile.BadZipFile):
        return ()  # its engine will say what is wrong with the files


def _list_piper(path: Path, folder: Path) -> tuple[VoiceCard, ...]:
    models = sorted(folder.glob("*.onnx")) if path.is_dir() else [path]
    for model in models[:1]:
        with model.with_name(model.name + ".json").open("rb") as file:
            return read_piper_voices(file.read(_DESCRIPTION_MAX_BYTES), model.stem)
    return ()


def _list_kokoro(folder: Path) -> tuple[VoiceCard, ...]:
    names: list[str] = []
    for path in (*folder.glob("*"), *folder.glob("voices/*")):
        if path.suffix not in (".npz", ".bin") or not path.is_file():
            continue
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names += [name.removesuffix(".npy") for name in archive.namelist()[:_VOICES_MAX]]
        else:
            names.append(path.stem)
    return order_kokoro_voices(names)
