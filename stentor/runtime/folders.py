"""The folders that models may be named in by relative paths, and what lies there."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from stentor.core.errors import Refused
from stentor.runtime.gguf import GgufHeader, InvalidGguf, read_header
from stentor.runtime.quants import RepoFile, is_projector, list_variants, read_quant
from stentor.runtime.wheels import GGUF_MAGIC

_FILES_MAX = 20_000


class LocalModel(msgspec.Struct, frozen=True):
    """A model file in a folder: its relative path, the bytes of all its shards, and what its head says.

    An empty ``architecture`` means a damaged head. ``projector`` is the projector that lies beside it.
    """

    path: str
    folder: str
    size_bytes: int
    quant: str
    architecture: str
    name: str
    trained_ctx: int
    projector: str | None


class ModelFolders:
    """Folders of the operator's and the cache. Paths of API callers are relative to one of them and can't leave it."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(dict.fromkeys(folder.absolute() for folder in folders))

    def resolve(self, text: str, param: str = "path") -> Path:
        """The GGUF file that a relative path names, in the first folder that has it. Raises Refused."""
        path = PurePosixPath(text)
        if not text or "\0" in text or path.is_absolute() or ".." in path.parts:
            raise Refused(
                "invalid_request",
                f"'{text[:200]}' is no relative path without '..'; name a file below one of the model folders.",
                param=param,
            )
        for folder in self._folders:
            found = _find_inside(folder, path)
            if found is not None:
                return found
        raise Refused(
            "not_found",
            f"There is no model file '{text[:200]}' in the model folders; GET /admin/api/models/local lists them.",
            param=param,
        )

    def list_models(self) -> list[LocalModel]:
        """Every model in the folders, shards joined, projectors and parts left out. Reads the head of each."""
        return [model for folder in self._folders for model in _list_folder(folder)]


def _find_inside(folder: Path, path: PurePosixPath) -> Path | None:
    """The regular GGUF file at ``path``, links followed, if it really lies in ``folder``."""
    try:
        found = (folder / path).resolve(strict=True)
        if not found.is_relative_to(folder.resolve()) or not found.is_file():
            return None
        with found.open("rb") as file:
            return found if file.read(len(GGUF_MAGIC)) == GGUF_MAGIC else None
    except (OSError, RuntimeError):
        return None


def _list_folder(folder: Path) -> Iterator[LocalModel]:
    files = list(_walk(folder))
    projectors = [file.path for file in files if is_projector(file.path)]
    for variant in list_variants(files):
        if len(variant.files) != variant.shards:
            continue
        path = PurePosixPath(variant.name)
        header = _read_head(folder / path)
        beside = (other for other in projectors if PurePosixPath(other).parent == path.parent)
        yield LocalModel(
            path=variant.name,
            folder=str(folder),
            size_bytes=variant.size_bytes,
            quant=variant.quant or read_quant(path.stem),
            architecture=header.architecture if header else "",
            name=header.name if header else "",
            trained_ctx=header.trained_ctx if header else 0,
            projector=min(beside, default=None),
        )


def _walk(folder: Path) -> Iterator[RepoFile]:
    """Regular GGUF files below ``folder``; hidden folders and parts of downloads are left out."""
    count = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if name.lower().endswith(".gguf") and path.is_file() and count < _FILES_MAX:
                count += 1
                yield RepoFile(path.relative_to(folder).as_posix(), path.stat().st_size, "")


def _read_head(path: Path) -> GgufHeader | None:
    try:
        return read_header(path)
    except (OSError, InvalidGguf):
        return None
