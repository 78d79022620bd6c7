"""Writing settlements down: events and what they charge, a whole group in one transaction."""

import asyncio
from typing import Any

from sqlalchemy import Connection

from stentor.accounting import table
from stentor.accounting.allowance import Charge
from stentor.core.books import Settled, Usage
from stentor.core.errors import LeasesLost
from stentor.core.ids import RequestId

EVENT_COLUMNS = table.EVENT_COLUMNS


class Settlement:
    """One event on its way to the store: its row in the order of :data:`EVENT_COLUMNS`, and what it charges."""

    __slots__ = ("_waiters", "charge", "done", "epoch", "failure", "fresh", "lost_row", "row", "settled")

    def __init__(self, usage: Usage, charge: Charge, row: tuple[Any, ...]) -> None:
        self.charge = charge
        self.row = row
        self.epoch = 0  # the node's life in which what it charges was borrowed
        self.lost_row: tuple[Any, ...] = ()
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
        if isinstance(failure, LeasesLost):
            self.lost_row = self.row
        self.row = ()  # what is kept for a second close needs no row
        for waiter in self._waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def absorbed(self, epoch: int) -> "Settlement | None":
        """The same event, paid by nobody: after the leases that it was to be paid from were lost; None without one.

        It counts against no limit either, so it isn't billable: what is billed and what limits have counted agree.
        """
        if not self.lost_row:
            return None
        names = dict(zip(EVENT_COLUMNS, self.lost_row, strict=True))
        lost_nano = names["cost_nano"] + names["absorbed_nano"]
        names |= {"cost_nano": 0, "charged_nano": 0, "absorbed_nano": lost_nano, "billable": False}
        charge = Charge(0, lost_nano, 0, self.charge.settled_s)
        again = Settlement(self.settled.usage, charge, tuple(names.values()))
        again.epoch = epoch
        return again

    async def wait(self) -> None:
        """For whoever closes a second time: until the store has answered. Raises what the first one got."""
        if not self.done:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters = [*(self._waiters or ()), waiter]
            await waiter
        if self.failure is not None:
            raise self.failure


def write_shared(connection: Connection, items: list[Settlement], node_id: str) -> list[bool]:
    """As :func:`write_settlements`, where nodes share the buckets: what is charged was borrowed before."""
    fresh = table.add_events(connection, [item.row for item in items])
    posts: dict[table.BucketKey, list[int]] = {}
    for item, new in zip(items, fresh, strict=True):
        if not new:
            continue
        charge = item.charge
        for meter, window_start, amount in charge.posts:
            _post(posts, (meter.kind, meter.subject, meter.window, window_start), amount, -amount)
        second = charge.settled_us // 1_000_000
        for window in charge.token_windows:
            _post(posts, ("tokens", window.subject, "minute", second), charge.tokens, 0)
            _post(posts, ("tokens", window.subject, "minute", 0), 0, -charge.tokens)
    table.post_shared(connection, node_id, posts)
    return fresh


def _post(posts: dict[table.BucketKey, list[int]], key: table.BucketKey, used: int, leased: int) -> None:
    post = posts.setdefault(key, [0, 0])
    post[0] += used
    post[1] += leased


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
