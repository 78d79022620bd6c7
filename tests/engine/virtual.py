"""A scheduler on a clock that jumps: engines that exist only in memory, and a loop in which waiting takes no time.

The loop is asyncio's own; only its selector doesn't sleep but moves the clock on. When nothing is due and nobody can
wake anybody any more, it says so instead of hanging.
"""

import asyncio
import selectors
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from stentor.runtime.launchers.base import Launch
from stentor.runtime.probe import EngineAddress, Props
from stentor.runtime.procfs import MemoryUse
from stentor.runtime.spec import ModelSpec

MIB = 1 << 20
_FIRST_PID = 1 << 30  # no process has such a number


class Stuck(RuntimeError):
    """Nothing will ever happen again, and somebody still waits."""


class _Selector(selectors.SelectSelector):
    """Never sleeps: what would be slept is added to the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        # No file is ever waited for here.
        if timeout is None:
            raise Stuck("every task waits for something that nobody will bring about")
        self.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only by waiting."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """Without a thread: in its time the clock would move on, sometimes more, sometimes less."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except OSError as problem:
            done.set_exception(problem)
        return done


class VirtualClock:
    """The loop's time, for the scheduler."""

    def now_us(self) -> int:
        return 1_700_000_000_000_000 + int(self.monotonic_s() * 1e6)

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


class VirtualChild:
    """An engine in memory. It is up at ``up_at_s``; ``fate`` says what goes wrong with it, if anything."""

    def __init__(self, host: "VirtualHost", pid: int, port: int, model: str) -> None:
        loop = asyncio.get_running_loop()
        rng = host.rng
        self.host = host
        self.pid = pid
        self.port = port
        self.model = model
        self.lines_seen = 0
        self.reported_bytes = 0
        self.returncode: int | None = None
        self.ended = asyncio.Event()
        self.up_at_s = loop.time() + rng.choice((0.0, 0.2, 1.0, 3.0))
        self.fate = rng.choices(("well", "dies", "hangs", "mute"), (1.0, *(host.trouble,) * 3))[0]
        if self.fate == "dies":
            loop.call_later(rng.uniform(0, 2), self.die, 1)

    def die(self, status: int) -> None:
        """End by itself."""
        if self.returncode is None:
            self.returncode = status
            self.host.note_end(self)
            self.ended.set()

    async def wait(self) -> int:
        await self.ended.wait()
        assert self.returncode is not None
        return self.returncode

    async def end(self, grace_s: float) -> bool:
        if self.returncode is None:
            self.host.note_stop(self)
            await asyncio.sleep(self.host.rng.choice((0.0, 0.01, min(grace_s, 0.5))))
            self.die(0)
        return True

    async def finish_log(self) -> None:
        await asyncio.sleep(0)


class VirtualProbe:
    """Asks the engines in memory."""

    def __init__(self, host: "VirtualHost") -> None:
        self._host = host

    async def ask_health(self, engine: EngineAddress, path: str) -> str:
        await asyncio.sleep(self._host.rng.choice((0.0, 0.001)))
        child = self._host.find(engine.url)
        if child is None or child.fate == "hangs" or asyncio.get_running_loop().time() < child.up_at_s:
            return "no answer"
        return "ok"

    async def ask_canary(self, engine: EngineAddress, spec: ModelSpec, timeout_s: float) -> str | None:
        child = self._host.find(engine.url)
        if child is None or child.fate == "mute":
            await asyncio.sleep(self._host.rng.choice((0.0, timeout_s)))
            return "no answer"
        await asyncio.sleep(self._host.rng.choice((0.0, 0.02)))
        return None

    async def find_props(self, engine: EngineAddress) -> Props | None:
        return None

    async def close(self) -> None:
        await asyncio.sleep(0)


class VirtualHost:
    """A machine in memory with ``memory_mib``; complains at once when two engines share a port or memory runs out.

    ``trouble`` is how likely each of three faults befalls a new engine, against 1. ``on_stop`` is told of each engine
    that is ended before its time.
    """

    def __init__(self, rng: Random, memory_mib: int, sizes_mib: dict[str, int]) -> None:
        self.rng = rng
        self.trouble = 0.0
        self.live: dict[int, VirtualChild] = {}
        self.spawned = 0
        self.problems: list[str] = []
        self.on_stop: Callable[[VirtualChild], None] = lambda _child: None
        self._memory_mib = memory_mib
        self.sizes_mib = sizes_mib
        self.probe: Any = VirtualProbe(self)

    def find_gpus(self) -> tuple[Any, ...]:
        return ()

    async def spawn(self, launch: Launch, tag: dict[str, str], tail: deque[str]) -> VirtualChild:
        await asyncio.sleep(self.rng.choice((0.0, 0.01)))
        if self.rng.random() < self.trouble / 4:
            raise OSError("no more processes")
        port, model = int(launch.argv[1]), launch.argv[2]
        if port in self.live:
            self.problems.append(f"{model} was started on port {port}, where {self.live[port].model} runs")
        self.spawned += 1
        child = VirtualChild(self, _FIRST_PID + self.spawned, port, model)
        self.live[port] = child
        if self.used_mib > self._memory_mib:
            self.problems.append(f"{self.used_mib} MiB in use after {model}, of {self._memory_mib}")
        return child

    @property
    def used_mib(self) -> int:
        return sum(self.sizes_mib[child.model] for child in self.live.values())

    def note_end(self, child: VirtualChild) -> None:
        """A child is gone."""
        if self.live.get(child.port) is child:
            del self.live[child.port]

    def note_stop(self, child: VirtualChild) -> None:
        """A child is being ended."""
        self.on_stop(child)

    def find(self, url: str) -> VirtualChild | None:
        return self.live.get(int(url.rpartition(":")[2]))

    def is_port_free(self, port: int) -> bool:
        return port not in self.live

    def find_available_bytes(self) -> int:
        return (self._memory_mib - self.used_mib) * MIB

    def find_memory_use(self, pid: int) -> MemoryUse | None:
        for child in self.live.values():
            if child.pid == pid:
                size = self.sizes_mib[child.model] * MIB
                return MemoryUse(size, size)
        return None
