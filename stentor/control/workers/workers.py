"""Gateway workers: spawned with their line and their listening socket, and replaced when they die."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from typing import Any

from stentor.control.owned import OwnedBooks
from stentor.control.workers.desk import Desk
from stentor.core.errors import StentorError
from stentor.core.ids import KeyId
from stentor.telemetry.logs import Log

RESPAWN_FIRST_S = 0.2
RESPAWN_MAX_S = 10.0
HEALTHY_AFTER_S = 30.0
KILL_AFTER_S = 5.0
READY_TIMEOUT_S = 20.0
BACKLOG = 2048


def bind(host: str, port: int, *, shared: bool) -> socket.socket:
    """A bound TCP socket that doesn't listen yet: it holds the port and gets no connection.

    ``shared``: several sockets may listen on the port, and the kernel spreads connections over those that do.
    Raises OSError, as bind does.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def start_listening(sock: socket.socket) -> socket.socket:
    """Let connections come in. Raises OSError."""
    try:
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Workers:
    """Keeps ``count`` workers alive. ``command(line_fd, listen_fd)`` is the argv of one; ``hello`` its first words."""

    def __init__(
        self,
        books: OwnedBooks,
        make_desk: Callable[[str], Desk],
        command: Callable[[int, int], list[str]],
        hello: Any,
        log: Log,
    ) -> None:
        self._books = books
        self._make_desk = make_desk
        self._command = command
        self._hello = hello
        self._log = log
        self._desks: dict[int, Desk] = {}
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._generations = 0
        self._over = asyncio.Event()
        self._drain_s = 0.0
        self._missing = 0
        self._all_ready = asyncio.Event()
        self._hurried = asyncio.Event()

    async def start(self, host: str, port: int, count: int) -> None:
        """Spawn and keep the workers; returns when all of them serve. Call it on the main thread's loop.

        Raises StentorError when they don't come up in time.
        """
        self._missing = count
        self._books.on_changed(self._tell_changed)
        self._books.on_revoked(self._tell_revoked)
        for number in range(count):
            self._keepers.append(asyncio.create_task(self._keep(number, host, port), name=f"worker-{number}"))
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._all_ready.wait()
        except TimeoutError:
            await self.shutdown(0.0)
            raise StentorError(
                f"Only {count - self._missing} of {count} gateway workers came up within {READY_TIMEOUT_S:.0f} s; "
                "the log says why."
            ) from None

    def _note_ready(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            self._all_ready.set()

    def _tell_changed(self, key_id: KeyId) -> None:
        for desk in self._desks.values():
            desk.tell_changed(key_id)

    def _tell_revoked(self, key_id: KeyId) -> None:
        for desk in self._desks.values():
            desk.tell_revoked(key_id)

    async def _keep(self, number: int, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        wait_s = RESPAWN_FIRST_S
        while not self._over.is_set():
            born = loop.time()
            try:
                await self._run_once(number, host, port)
            except OSError as error:  # no file handle or memory left for another process: try again later
                self._log.event("worker_not_started", level="error", worker=number, cause=error)
            if self._over.is_set():
                return
            wait_s = RESPAWN_FIRST_S if loop.time() - born > HEALTHY_AFTER_S else min(wait_s * 2, RESPAWN_MAX_S)
            self._log.event("worker_died", level="error", worker=number, delay_s=wait_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._over.wait()

    async def _run_once(self, number: int, host: str, port: int) -> None:
        self._generations += 1
        desk = self._make_desk(f"worker-{number}.{self._generations}")
        desk.on_ready(self._note_ready)
        listening = start_listening(bind(host, port, shared=True))
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(theirs.fileno(), listening.fileno()),
                pass_fds=(theirs.fileno(), listening.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            listening.close()
        self._processes[number] = process
        ours.setblocking(False)
        await desk.begin(ours, self._hello)
        self._desks[number] = desk
        if self._over.is_set():  # it came too late to be told with the others
            desk.tell_drain(0.0 if self._hurried.is_set() else self._drain_s)
        await process.wait()
        desk.close()
        await desk.lost.wait()
        del self._desks[number]

    def hurry(self) -> None:
        """Cut a shutdown short: what still runs is ended now."""
        self._hurried.set()
        for desk in self._desks.values():
            desk.tell_drain(0.0)

    async def shutdown(self, drain_s: float) -> None:
        """Have every worker finish what it runs, at most ``drain_s`` long; then all are gone."""
        self._drain_s = drain_s
        self._over.set()
        for desk in self._desks.values():
            desk.tell_drain(drain_s)
        await self._wait_gone(drain_s)
        for process in self._processes.values():
            if process.returncode is None:
                self._log.event("worker_killed", level="warning", pid=process.pid)
                process.send_signal(signal.SIGKILL)
                await process.wait()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _wait_gone(self, drain_s: float) -> None:
        """Until all have ended, those that are being started as well."""
        gone = asyncio.create_task(asyncio.wait(self._keepers))
        hurried = asyncio.create_task(self._hurried.wait())
        waits: list[asyncio.Future[Any]] = [gone, hurried]
        try:
            await asyncio.wait(waits, timeout=drain_s + KILL_AFTER_S, return_when=asyncio.FIRST_COMPLETED)
            if hurried.done():
                await asyncio.wait([gone], timeout=KILL_AFTER_S)
        finally:
            gone.cancel()
            hurried.cancel()
