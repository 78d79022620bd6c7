"""The job that sums up usage events behind their writer's back."""

import asyncio
import contextlib
from functools import partial

from stentor.accounting.spans import ROLLUPS, find_next_span, finish_span, roll_up
from stentor.accounting.usage import sum_up
from stentor.core.clock import Clock
from stentor.core.errors import NotLeader, StoreUnavailable
from stentor.store.leader import Leader

EVERY_S = 5.0
LATE_US = 60_000_000  # how late, at most, an event of another server becomes visible


class UsageSummer:
    """Sums events up in blocks while :meth:`run` runs. ``shared``: other servers write to the database, too; one of
    them all, the leader, sums up.
    """

    def __init__(self, leader: Leader, clock: Clock, *, shared: bool) -> None:
        self._leader = leader
        self._clock = clock
        self._shared = shared

    async def run(self) -> None:
        """Until cancelled. While the store can't be written nothing is summed up, and answers stay right."""
        while True:
            with contextlib.suppress(StoreUnavailable, NotLeader):
                await self.catch_up()
            await asyncio.sleep(EVERY_S)

    async def catch_up(self) -> None:
        """Sum up every full block, then every full span of blocks, in short transactions after everything else.

        Raises StoreUnavailable, and NotLeader where another node does it.
        """
        settled_before_us = self._clock.now_us() - LATE_US if self._shared else None
        while await self._leader.maintain(lambda connection: sum_up(connection, settled_before_us)):
            pass
        while (span := await self._leader.read(find_next_span)) is not None:
            for rollup in ROLLUPS:
                await self._leader.maintain(partial(roll_up, span=span, rollup=rollup))
            await self._leader.maintain(partial(finish_span, span=span))
