"""Uploads on their way to an engine: each a file of its own in the data folder, gone when its request is over."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from stentor.core.errors import Refused

PREFIX = "upload-"
FREE_MIN_BYTES = 512 << 20  # what uploads leave of the disk, which is the database's, too
_STEP_BYTES = 1 << 20


class Upload:
    """A file that is being written, by its own hand alone: never more than a MiB of it is in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._writing: asyncio.Future[bool] | None = None
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)

    async def write(self, data: bytes) -> None:
        """Append. Raises Refused when the disk takes no more."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self.size_bytes += len(data)
        if self._waiting_bytes >= _STEP_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Have everything in the file."""
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        try:
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(None, _write_all, self._handle, data)
            # A thread can't be stopped: who is cancelled here leaves it its file, see `remove`.
            roomy = await asyncio.shield(self._writing)
        except OSError as error:
            raise Refused(
                "overloaded", f"The server can't take the upload: {error.strerror}.", retry_after_s=30.0
            ) from None
        if not roomy:
            raise Refused(
                "overloaded",
                "The server can't take the upload: its disk is almost full. Try again later, or tell its operator.",
                retry_after_s=30.0,
            )

    def remove(self) -> None:
        """Delete it, and close it as soon as nothing is being written to it: its number may be another file's then."""
        self.path.unlink(missing_ok=True)
        if self._writing is None or self._writing.done():
            os.close(self._handle)
        else:
            self._writing.add_done_callback(self._close)

    def _close(self, written: asyncio.Future[bool]) -> None:
        os.close(self._handle)
        if not written.cancelled():
            written.exception()  # nobody waits for it any more


class Spool:
    """The folder of uploads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Upload]:
        """A new upload, removed at the end whatever happens. Raises Refused where it can't be made."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            upload = Upload(self._folder / f"{PREFIX}{os.getpid()}-{secrets.token_hex(16)}")
        except OSError as error:
            raise Refused(
                "overloaded", f"The server can't take uploads now: {error.strerror}.", retry_after_s=30.0
            ) from None
        try:
            yield upload
        finally:
            upload.remove()


def sweep(folder: Path) -> None:
    """Remove what a server that was killed left behind. Only before the first request."""
    for path in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def sweep_dead(folder: Path) -> None:
    """Remove what workers that were killed left behind, while others go on."""
    for path in folder.glob(f"{PREFIX}*"):
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not _is_running(int(owner)):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # somebody else's
    return True


def _write_all(handle: int, data: bytes) -> bool:
    """Write; False, and nothing is written, where too little of the disk would be left."""
    disk = os.fstatvfs(handle)
    if disk.f_bavail * disk.f_frsize - len(data) < FREE_MIN_BYTES:
        return False
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
    return True
