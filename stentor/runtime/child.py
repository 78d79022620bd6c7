"""One child process: spawned through the parent-death launcher, its output read line by line, its group ended whole."""

import asyncio
import contextlib
import os
import re
import signal
import threading
from collections import deque

from stentor.runtime.launchers.base import Launch, wrap_program

LOG_LINES = 200
_LINE_MAX_BYTES = 2_000
_STDIN_TIMEOUT_S = 10.0
_LOG_END_S = 2.0
_KILLED_S = 10.0
# llama.cpp says of each buffer in the machine's memory: «CPU KV buffer size =   512.00 MiB».
_BUFFER = re.compile(rb"\bCPU\S*\s.*buffer size =\s*([0-9.]+) MiB")


class LogPipe(asyncio.Protocol):
    """Both outputs of a child, as the last :data:`LOG_LINES` lines; ``lines_seen`` is the sign of life."""

    def __init__(self, tail: deque[str]) -> None:
        self._tail = tail
        self._rest = b""
        self.lines_seen = 0
        self.reported_bytes = 0
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._add(line)
        if len(self._rest) > _LINE_MAX_BYTES:
            self._add(self._rest)
            self._rest = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._add(self._rest)
        self.ended.set()

    def _add(self, line: bytes) -> None:
        self.lines_seen += 1
        self._tail.append(line[:_LINE_MAX_BYTES].decode(errors="replace").rstrip())
        buffer = _BUFFER.search(line)
        if buffer is not None:
            self.reported_bytes += int(float(buffer[1]) * (1 << 20))


class Child:
    """A running child; whoever spawned it must :meth:`end` it."""

    def __init__(
        self, process: asyncio.subprocess.Process, log: LogPipe, transport: asyncio.ReadTransport, launch: Launch
    ) -> None:
        self._process = process
        self._transport = transport
        self._launch = launch
        self.log = log
        self.pid = process.pid

    @classmethod
    async def spawn(cls, launch: Launch, tag: dict[str, str], tail: deque[str]) -> "Child":
        """Start the program. Must run on the main thread's loop. Raises OSError.

        A caller who is cancelled meanwhile leaves no child behind: it is ended again before the cancellation goes on.
        """
        spawning = asyncio.ensure_future(cls._spawn(launch, tag, tail))
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                child = await spawning
                await child.end(0.0)
            raise

    @classmethod
    async def _spawn(cls, launch: Launch, tag: dict[str, str], tail: deque[str]) -> "Child":
        if threading.current_thread() is not threading.main_thread():
            # The parent-death signal fires when the spawning thread ends, not the process.
            raise RuntimeError("engines must be spawned from the main thread")
        loop = asyncio.get_running_loop()
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *wrap_program(launch.argv, os.getpid()),
                stdin=asyncio.subprocess.PIPE,
                stdout=write_end,
                stderr=write_end,
                env={**launch.environment, **tag},
                cwd=launch.cwd,
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        transport, log = await loop.connect_read_pipe(lambda: LogPipe(tail), os.fdopen(read_end, "rb", buffering=0))
        child = cls(process, log, transport, launch)
        await child._hand_over(launch.stdin)
        return child

    async def _hand_over(self, line: bytes) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        # A child that dies before reading is noticed by its end, not here.
        with contextlib.suppress(ConnectionError, TimeoutError):
            if line:
                stdin.write(line)
                async with asyncio.timeout(_STDIN_TIMEOUT_S):
                    await stdin.drain()
        stdin.close()

    @property
    def lines_seen(self) -> int:
        """Lines that it wrote."""
        return self.log.lines_seen

    @property
    def reported_bytes(self) -> int:
        """The sum of the buffers that it said it took in the machine's memory."""
        return self.log.reported_bytes

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal, None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for the child's end; returns the exit status. What it started itself is ended at once."""
        status = await self._process.wait()
        self.signal_group(signal.SIGKILL)
        return status

    async def finish_log(self) -> None:
        """After the end: wait shortly for the last lines."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOG_END_S):
                await self.log.ended.wait()

    def signal_group(self, number: int) -> None:
        """Send a signal to the child and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def end(self, grace_s: float) -> bool:
        """SIGTERM, after ``grace_s`` SIGKILL, SIGKILL for the rest of the group; whether the child is gone."""
        try:
            if self._process.returncode is None and grace_s > 0:
                self.signal_group(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace_s):
                        await self._process.wait()
        finally:
            self.signal_group(signal.SIGKILL)
            self._forget()
        try:
            async with asyncio.timeout(_KILLED_S):
                await self._process.wait()
        except TimeoutError:
            # Stuck in the kernel (a dead disk, a driver): nothing more can be done from here.
            return False
        return True

    def _forget(self) -> None:
        self._transport.close()
        if self._launch.key_file is not None:
            self._launch.key_file.unlink(missing_ok=True)


def describe_exit(status: int) -> str:
    """``exit status 3`` or ``signal SIGKILL (often: out of memory)``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    return f"signal {name} (often the kernel's answer to too little memory)" if name == "SIGKILL" else f"signal {name}"
