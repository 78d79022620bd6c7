"""One server per data directory: an advisory lock that the kernel drops with its holder."""

import fcntl
import os
import time
from pathlib import Path

from stentor.core.errors import StentorError

LOCK_NAME = "stentor.lock"
HOLDER_S = 2.0  # how long one that has just taken the lock may need to say who it is


def _lock(descriptor: int) -> None:
    """Take the lock. A look by :func:`find_holder` holds it for microseconds: that alone must not refuse a start."""
    for _ in range(5):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.04)
        else:
            return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _read_holder(descriptor: int) -> str:
    """The process that holds the lock. Between taking it and writing its name there is a moment in which the file is
    empty, or names one that was killed.
    """
    end = time.monotonic() + HOLDER_S
    while True:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        if (holder.isdigit() and Path(f"/proc/{holder}").exists()) or time.monotonic() > end:
            return holder or "unknown"
        time.sleep(0.02)


class DataLock:
    """A held lock on a file. The file stays behind: removing it would let two holders lock two different files."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def acquire(cls, path: Path, guarded: Path) -> "DataLock":
        """Lock ``path`` or raise StentorError naming the process that holds what it guards."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StentorError(
                f"Can't write in {path.parent}: {error.strerror}. "
                "Give the server's user write access to it or choose another directory with STENTOR_DATA_DIR."
            ) from error
        try:
            _lock(descriptor)
        except BlockingIOError as error:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise StentorError(
                f"{guarded} is in use by another Stentor server (process {holder}). "
                "Stop that one first, or start this one with another STENTOR_DATA_DIR."
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise StentorError(
                f"Can't lock {path}: {error.strerror}. The data directory must lie on a local file system."
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise StentorError(
                f"Can't write {path}: {error.strerror}. Free some space on that disk and start again; nothing was lost."
            ) from error
        return cls(descriptor, path)

    def release(self) -> None:
        """Let the next server in. Does nothing the second time."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def find_holder(data_dir: Path) -> int | None:
    """The process that holds the data directory now, or None. Takes nothing and changes nothing."""
    try:
        descriptor = os.open(data_dir / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else 0
    else:
        return None
    finally:
        os.close(descriptor)
