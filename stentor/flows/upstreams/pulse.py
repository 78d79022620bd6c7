"""Whether another node of this server that lets wait is alive: asked beside the wait for its answer.

A node may take minutes for a first word, as it may have to load the model. But one that was paused, or whose machine
hangs, keeps its connections, too: only what it must answer itself tells the two apart.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stentor.egress.outbound import Outbound, OutboundFailed, Patience
from stentor.egress.targets import EgressRefused
from stentor.flows.failure import EngineFailed

QUIET_S = 3.0  # how long a node may let wait before it is asked
LOOK_S = 4.0  # how long it has to say that it is there
PAUSE_S = 1.0
MISSES = 3
_HEALTH_BYTES = 64 * 1024


class Pulse:
    """Looks after nodes that are waited for."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._looking: dict[str, asyncio.Lock] = {}
        self._seen: dict[str, tuple[float, bool]] = {}

    @asynccontextmanager
    async def beside(self, url: str) -> AsyncIterator[None]:
        """Bound a wait for the node at ``url``. Raises EngineFailed once it has been silent to everybody."""
        loop = asyncio.get_running_loop()
        watch: asyncio.Task[None] | None = None

        def begin() -> None:
            nonlocal watch
            watch = loop.create_task(self._watch(url, deadline), name="node-pulse")

        deadline = asyncio.timeout(None)
        timer = loop.call_later(QUIET_S, begin)
        try:
            async with deadline:
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            problem = "the server that runs it has stopped answering"
            raise EngineFailed("upstream_unreachable", problem, suspect=True) from None
        finally:
            timer.cancel()
            if watch is not None:
                watch.cancel()

    async def _watch(self, url: str, deadline: asyncio.Timeout) -> None:
        misses = 0
        while misses < MISSES:
            misses = 0 if await self._is_alive(url) else misses + 1
            await asyncio.sleep(PAUSE_S)
        deadline.reschedule(asyncio.get_running_loop().time())

    async def _is_alive(self, url: str) -> bool:
        """Whether the node answers anything at all; one question for all who wait for it."""
        clock = asyncio.get_running_loop().time
        async with self._looking.setdefault(url, asyncio.Lock()):
            seen_s, alive = self._seen.get(url, (0.0, False))
            if clock() - seen_s >= PAUSE_S / 2:
                alive = await self._look(url)
                self._seen[url] = (clock(), alive)
            return alive

    async def _look(self, url: str) -> bool:
        try:
            async with asyncio.timeout(LOOK_S):
                patience = Patience(LOOK_S, LOOK_S)
                answer = await self._outbound.send("GET", f"{url}/health", headers={}, patience=patience, trusted=True)
                try:
                    await answer.read_at_most(_HEALTH_BYTES)
                finally:
                    answer.release()
        except (TimeoutError, OutboundFailed, EgressRefused):
            return False
        return True
