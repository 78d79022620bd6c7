"""What a cluster needs done once is done by one node at a time: whoever holds the job's row in the database.

The row is held in the very transaction that does the work, so a node that was paused past its lease writes nothing: its
transaction finds the row in other hands. Alone with its database (SQLite) a server leads always, and at no cost.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy import Connection, text

from stentor.core.errors import NotLeader, StoreUnavailable
from stentor.store.database import Database

T = TypeVar("T")

LEASE_S = 15.0
ALONE = 1  # the only term of who is alone

_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_HOLD = text(f"""
INSERT INTO leaders AS held (job, node_id, epoch, term, until_us)
VALUES (:job, :node, :epoch, 1, {_NOW} + :lease)
ON CONFLICT (job) DO UPDATE SET node_id = :node, epoch = :epoch, until_us = {_NOW} + :lease,
term = CASE WHEN held.node_id = :node AND held.epoch = :epoch THEN held.term ELSE held.term + 1 END
WHERE held.node_id = :node OR held.until_us < {_NOW}
RETURNING term
""")  # noqa: S608 - nothing but the expression above


class Leader:
    """One job of the cluster. :meth:`keep` makes this node its leader whenever nobody else is; work goes through
    :meth:`write` and :meth:`maintain`, which try themselves and need no :meth:`keep`.

    A job that carries something from one transaction to the next names the :attr:`term` it began under: in between
    somebody else may have led. :meth:`read` is the database's, so that this can stand in its place.
    """

    def __init__(self, database: Database, job: str, lease_s: float = LEASE_S) -> None:
        self._database = database
        self._job = job
        self._lease_s = lease_s
        self._term: int | None = None if database.is_shared else ALONE
        self._until_s = 0.0 if database.is_shared else float("inf")

    @property
    def term(self) -> int | None:
        """Under which number this node leads, as far as it knows; None: it doesn't. Costs nothing, proves nothing."""
        return self._term if time.monotonic() < self._until_s else None

    async def keep(self) -> None:
        """Lead while possible, until cancelled."""
        while self._database.is_shared:
            await self.claim()
            await asyncio.sleep(self._lease_s / 3)

    async def claim(self) -> int | None:
        """Become or stay the leader; the term, or None if another node leads or the database can't be written."""
        if not self._database.is_shared:
            return ALONE
        try:
            await self.write(_nothing)
        except (NotLeader, StoreUnavailable):
            return self.term
        return self._term

    async def read(self, work: Callable[[Connection], T]) -> T:
        """See :meth:`Database.read`."""
        return await self._database.read(work)

    async def write(self, work: Callable[[Connection], T], term: int | None = None) -> T:
        """As :meth:`Database.write`, if this node leads when it is committed, under ``term`` if that is given.

        Raises NotLeader, and writes nothing, otherwise.
        """
        if not self._database.is_shared:
            return await self._database.write(work)
        return await self._led(self._database.write, work, term)

    async def maintain(self, work: Callable[[Connection], T], term: int | None = None) -> T:
        """As :meth:`Database.maintain`; otherwise like :meth:`write`."""
        if not self._database.is_shared:
            return await self._database.maintain(work)
        return await self._led(self._database.maintain, work, term)

    async def _led(
        self,
        submit: Callable[[Callable[[Connection], T]], Awaitable[T]],
        work: Callable[[Connection], T],
        term: int | None,
    ) -> T:
        begun_s = time.monotonic()
        held = 0

        def fenced(connection: Connection) -> T:
            nonlocal begun_s, held
            begun_s = time.monotonic()
            found = self._hold(connection)
            if found is None or term not in (None, found):
                raise NotLeader(self._job)
            held = found
            return work(connection)

        try:
            result = await submit(fenced)
        except (NotLeader, StoreUnavailable):
            self._term = None
            raise
        self._term, self._until_s = held, begun_s + self._lease_s
        return result

    def _hold(self, connection: Connection) -> int | None:
        """On the writer's thread, whose transaction is this life's own."""
        values = {"job": self._job, "node": self._database.node_id, "epoch": self._database.epoch}
        found = connection.execute(_HOLD, {**values, "lease": int(self._lease_s * 1_000_000)}).scalar_one_or_none()
        return None if found is None else int(found)


def _nothing(_connection: Connection) -> None:
    """Holding the row is all."""
