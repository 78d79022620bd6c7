"""Writing settlements down: events and what they charge, a whole group in one transaction."""

import asyncio
from typing import Any

from sqlalchemy import Connection

from stentor.accounting import table
from stentor.accounting.allowance import Charge
from stentor.core.books import Settled, Usage
from stentor.core.ids import RequestId

EVENT_COLUMNS = table.EVENT_COLUMNS


class Settlement:
    """One event on its way to the store: its row in the order of :data:`EVENT_COLUMNS`, and what it charges."""

    __slots__ = ("_waiters", "charge", "done", "failure", "fresh", "row", "settled")

    def __init__(self, usage: Usage, charge: Charge, row: tuple[Any, ...]) -> None:
        self.charge = charge
        self.row = row
        self.settled = Settled(charge.cost_nano, charge.absorbed_nano, usage)
        self.done = False
        self.fresh = False
        self.failure: BaseException | None = None
        self._waiters: list[asyncio.Future[None]] | None = None

    def finish(self, *, fresh: bool, failure: BaseException | None) -> None:
        """The store has answered. ``fresh``: the event is new and was charged."""
        self.done = True
        self.fresh = fresh
        self.failure = failure
        self.row = ()  # what is kept for a second close needs no row
        for waiter in self._waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """For whoever closes a second time: until the store has answered. Raises what the first one got."""
        if not self.done:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters = [*(self._waiters or ()), waiter]
            await waiter
        if self.failure is not None:
            raise self.failure


def write_settlements(connection: Connection, items: list[Settlement]) -> list[bool]:
    """Append the events and add their charges to the buckets; says for each whether it was new and so was charged."""
    fresh = table.add_events(connection, [item.row for item in items])
    amounts: dict[table.BucketKey, int] = {}
    for item, new in zip(items, fresh, strict=True):
        if new:
            for meter, window_start, amount in item.charge.posts:
                key = (meter.kind, meter.subject, meter.window, window_start)
                amounts[key] = amounts.get(key, 0) + amount
    table.charge_buckets(connection, amounts)
    return fresh


def find_settled(connection: Connection, request_id: RequestId, attempt: int) -> Settled | None:
    """The result of an attempt that was settled before."""
    row = table.find_event(connection, request_id, attempt)
    if row is None:
        return None
    values = dict(row._mapping)
    cost_nano, absorbed_nano = values.pop("cost_nano"), values.pop("absorbed_nano")
    return Settled(cost_nano, absorbed_nano, Usage(**values))
