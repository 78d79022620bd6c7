"""The machine under the engines: it spawns them, answers for their memory, and knows which ports are free.

An interface, so that the scheduler's decisions can be tried a thousand times without a thousand processes.
"""

from collections import deque
from collections.abc import Mapping
from typing import Protocol

from stentor.runtime.child import Child
from stentor.runtime.gpus import GpuMemory, GpuProbe
from stentor.runtime.launchers.base import Launch
from stentor.runtime.memory import find_available_bytes
from stentor.runtime.probe import EngineAddress, Probe, Props
from stentor.runtime.procfs import MemoryUse, find_memory_use
from stentor.runtime.slots import is_port_free
from stentor.runtime.spec import ModelSpec


class EngineChild(Protocol):
    """A running child; see :class:`stentor.runtime.child.Child`."""

    pid: int

    @property
    def returncode(self) -> int | None: ...

    @property
    def lines_seen(self) -> int: ...

    @property
    def reported_bytes(self) -> int: ...

    async def wait(self) -> int: ...

    async def end(self, grace_s: float) -> bool: ...

    async def finish_log(self) -> None: ...


class Questions(Protocol):
    """What an engine is asked; see :class:`stentor.runtime.probe.Probe`."""

    async def ask_health(self, engine: EngineAddress, path: str) -> str: ...

    async def ask_canary(self, engine: EngineAddress, spec: ModelSpec, timeout_s: float) -> str | None: ...

    async def find_props(self, engine: EngineAddress) -> Props | None: ...

    async def close(self) -> None: ...


class Host(Protocol):
    """What the scheduler needs of the machine."""

    probe: Questions

    async def spawn(self, launch: Launch, tag: dict[str, str], tail: deque[str]) -> EngineChild:
        """Start a program; its last lines go to ``tail``. Raises OSError."""
        ...

    def is_port_free(self, port: int) -> bool:
        """Whether a server could listen on the loopback port now."""
        ...

    def find_available_bytes(self) -> int:
        """Memory that could be had now without swapping."""
        ...

    def find_memory_use(self, pid: int) -> MemoryUse | None:
        """Memory that ``pid`` has in use; None where it is gone."""
        ...

    def find_gpus(self) -> tuple[GpuMemory, ...]:
        """The graphics cards with their memory now, in the engines' order; empty where nobody can tell. May block."""
        ...


class LocalHost:
    """This machine. ``environment`` is what engines inherit: one that hides cards leaves them to the engine."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.probe: Questions = Probe()
        self._gpus = None if "CUDA_VISIBLE_DEVICES" in (environment or {}) else GpuProbe()

    async def spawn(self, launch: Launch, tag: dict[str, str], tail: deque[str]) -> EngineChild:
        """See :class:`Host`. Must be called on the main thread's loop."""
        return await Child.spawn(launch, tag, tail)

    def is_port_free(self, port: int) -> bool:
        """See :class:`Host`."""
        return is_port_free(port)

    def find_available_bytes(self) -> int:
        """See :class:`Host`."""
        return find_available_bytes()

    def find_memory_use(self, pid: int) -> MemoryUse | None:
        """See :class:`Host`."""
        return find_memory_use(pid)

    def find_gpus(self) -> tuple[GpuMemory, ...]:
        """See :class:`Host`."""
        return () if self._gpus is None else self._gpus.read()
