"""Waiting for an engine to come up: as long as it moves, and not for ever."""

import asyncio
from typing import Any, NamedTuple, TypeVar

from stentor.runtime.failure import StartFailed
from stentor.runtime.host import EngineChild, Host
from stentor.runtime.probe import EngineAddress
from stentor.runtime.settings import RuntimeSettings

_POLL_FIRST_S = 0.02
_POLL_MAX_S = 0.25
_RESIDENT_STEP_BYTES = 1 << 20
T = TypeVar("T")


class HealthPage(NamedTuple):
    """Where an engine says that it is ready."""

    engine: EngineAddress
    path: str


async def await_health(
    host: Host, child: EngineChild, page: HealthPage, settings: RuntimeSettings
) -> StartFailed | None:
    """Poll until healthy; a failure when for the stall time no line, no growth and no new answer was seen."""
    loop = asyncio.get_running_loop()
    pause_s, moved_at_s = _POLL_FIRST_S, loop.time()
    seen: tuple[Any, ...] = ()
    while True:
        health = await host.probe.ask_health(page.engine, page.path)
        if health == "ok":
            return None
        use = host.find_memory_use(child.pid)
        now = (child.lines_seen, use.resident_bytes // _RESIDENT_STEP_BYTES if use else 0, health)
        if now != seen:
            seen, moved_at_s = now, loop.time()
        elif loop.time() - moved_at_s > settings.start_stall_s:
            public = f"its engine stalled while starting: no sign of progress for {settings.start_stall_s:g} s"
            return StartFailed(public, f"{public}; {page.path}: {health}")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _POLL_MAX_S)


class StartLimit:
    """A deadline that turns into StartFailed."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timeout = asyncio.timeout(limit_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *details: Any) -> None:
        try:
            await self._timeout.__aexit__(*details)
        except TimeoutError as late:
            raise StartFailed(f"its engine was not ready within {self._limit_s:g} s") from late


async def finish(task: "asyncio.Future[T]") -> None:
    """Cancel and wait until it is over; what it raised was either seen by the caller or doesn't matter any more."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
