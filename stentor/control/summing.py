"""The job that sums up usage events behind their writer's back."""

import asyncio
import contextlib

from stentor.accounting.usage import sum_up
from stentor.core.clock import Clock
from stentor.core.errors import StoreUnavailable
from stentor.store.database import Database

EVERY_S = 5.0
LATE_US = 60_000_000  # how late, at most, an event of another server becomes visible


class UsageSummer:
    """Sums events up in blocks while :meth:`run` runs. ``shared``: other servers write to the database, too."""

    def __init__(self, database: Database, clock: Clock, *, shared: bool) -> None:
        self._database = database
        self._clock = clock
        self._shared = shared

    async def run(self) -> None:
        """Until cancelled. While the store can't be written nothing is summed up, and answers stay right."""
        while True:
            with contextlib.suppress(StoreUnavailable):
                await self.catch_up()
            await asyncio.sleep(EVERY_S)

    async def catch_up(self) -> None:
        """Sum up every full block, one short transaction for each, after everything else that waits."""
        settled_before_us = self._clock.now_us() - LATE_US if self._shared else None
        while await self._database.maintain(lambda connection: sum_up(connection, settled_before_us)):
            pass
