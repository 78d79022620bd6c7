"""Whatever tests start ends with pytest, however that ends.

Run as a program it is the keeper: it reads process ids from its standard input, a line each, and when that is over,
which is when pytest has ended, it ends those that still live. (The kernel can tell a process that its parent has died,
but means by that the *thread* that started it, and tests start servers in threads, too.)
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any, TypeVar

P = TypeVar("P", bound=subprocess.Popen[Any])
GRACE_S = 10.0
_lock = threading.Lock()
_keepers: list[subprocess.Popen[bytes]] = []  # it outlives us on purpose: nobody waits for it


def start_keeper() -> None:
    """Have a keeper from now on; nobody's child, folder or environment is told from its own by that of a test."""
    with _lock:
        if not _keepers:
            command = [sys.executable, "-I", "-S", __file__]
            _keepers.append(
                subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, start_new_session=True, cwd="/", env={})
            )


def keep(process: P) -> P:
    """The same process, which is now ended where pytest doesn't come to it."""
    start_keeper()
    stdin = _keepers[0].stdin
    assert stdin is not None
    with _lock:
        stdin.write(f"{process.pid}\n".encode())
    return process


class _Watched:
    """Processes by descriptors of theirs, which stay theirs even where a number is given to another process."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._descriptors: set[int] = set()

    def add(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            self._descriptors.add(descriptor)
            self._poll.register(descriptor, select.POLLIN)

    def send(self, number: int) -> None:
        for descriptor in self._descriptors:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)

    def wait(self, seconds: float) -> None:
        """Until all have ended, or until then."""
        end = time.monotonic() + seconds
        while self._descriptors and (left_s := end - time.monotonic()) > 0:
            self.forget_ended(left_s)

    def forget_ended(self, timeout_s: float = 0.0) -> None:
        for descriptor, _ in self._poll.poll(1000 * timeout_s):
            self._poll.unregister(descriptor)
            self._descriptors.discard(descriptor)
            os.close(descriptor)


def _watch() -> None:
    watched = _Watched()
    for line in sys.stdin:
        watched.forget_ended()
        watched.add(int(line))
    watched.send(signal.SIGTERM)
    watched.wait(GRACE_S)
    watched.send(signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _watch()
