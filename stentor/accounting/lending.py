"""Limits that several nodes share: what a request wants of them beyond what this node has borrowed already.

A node borrows from a bucket before it admits, and charges only what it has borrowed; the sum of what is used and lent
never passes the capacity, whoever admits. When little is left it borrows exactly what is needed, else a slab, so that
most requests need no trip to the database. Requests per minute are borrowed one by one and used in the same second.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from stentor.accounting import table
from stentor.accounting.accounts import KeyAccount
from stentor.accounting.allowance import Demand, Hold
from stentor.accounting.meters import WINDOW_S, Gauge, Meter, Minute, Moment
from stentor.accounting.price import Bounds, Price, bound_tokens, price_bounds

BucketKey = table.BucketKey
Limit = Meter | Gauge | Minute

PLENTY = 32  # times what is needed: with more than that left, a slab is borrowed


class Want(NamedTuple):
    """``amount`` to borrow of the bucket ``key``; ``capacity`` None: the bucket's own."""

    limit: Limit
    key: BucketKey
    amount: int
    capacity: int | None
    partly: bool = False


def bucket_key(limit: Limit) -> BucketKey:
    """Where a limit is shared."""
    if isinstance(limit, Meter):
        return (limit.kind, limit.subject, limit.window, limit.window_start)
    if isinstance(limit, Gauge):
        return ("parallel", limit.subject, "none", 0)
    return (limit.unit, limit.subject, "minute", 0)


def held_of(limit: Limit) -> int:
    """What of a limit's lease running requests hold."""
    return limit.running if isinstance(limit, Gauge) else limit.held


class _Wishes:
    """What is collected while a request's limits are looked at."""

    def __init__(self, partly: bool) -> None:
        self.wants: list[Want] = []
        self.partly = partly
        self.hopeless = False

    def add(self, limit: Limit, amount: int, free: int, lent: int, *, whole: bool = False) -> None:
        """``free``: left as far as this node knows; ``lent``: what it could use now; ``whole``: nothing less helps."""
        partly = self.partly and not whole
        if amount > free:
            if not partly:
                self.hopeless = True
                return
            amount = free
        if amount > lent:
            own = isinstance(limit, Meter) and limit.kind == "balance"  # top-ups by other nodes are known there first
            self.wants.append(Want(limit, bucket_key(limit), amount - lent, None if own else limit.limit, partly))

    def add_meter(self, meter: Meter, amount: int) -> None:
        """A sum."""
        if meter.lease is None:
            meter.lease = 0
        self.add(meter, amount, meter.free(), meter.lease - meter.held)

    def add_window(self, window: Minute, amount: int, second: int) -> None:
        """A minute's requests or tokens."""
        if window.lease is None:
            window.lease = 0
        whole = window.unit == "requests"
        self.add(window, amount, window.free(second), window.borrowed(second) - window.held, whole=whole)

    def add_gauge(self, gauge: Gauge) -> None:
        """One more at once."""
        if gauge.limit is not None:
            if gauge.lease is None:
                gauge.lease = 0
            self.add(gauge, 1, gauge.limit - gauge.running, gauge.lease - gauge.running, whole=True)


def find_wants(account: KeyAccount, demand: Demand, price: Price, now: Moment) -> tuple[list[Want], bool]:
    """What has to be borrowed before :func:`~stentor.accounting.allowance.admit` can say yes.

    Also whether it will say no whatever is borrowed.
    """
    wishes = _Wishes(demand.asked is None)
    for gauge in (account.user.gauge, account.gauge):
        wishes.add_gauge(gauge)
    second = int(now.steady_s)
    if demand.counted:
        for window in account.request_windows:
            wishes.add_window(window, 1, second)
    prompt = min(demand.prompt, demand.context)
    asked = demand.default if demand.asked is None else demand.asked
    output = min(asked, demand.context - 1)
    bounds = Bounds(prompt, output, demand.answers, demand.context, demand.audio_ms, demand.characters)
    tokens = bound_tokens(bounds)
    for window in account.token_windows:
        wishes.add_window(window, tokens, second)
    if account.quota is not None:
        wishes.add_meter(account.quota, tokens)
    nano = price_bounds(price, bounds) if account.money else 0
    for meter in account.money:
        if meter.window_end is not None:
            meter.turn(now.us)
        wishes.add_meter(meter, nano)
    return wishes.wants, wishes.hopeless


def find_missing(hold: Hold, cost_nano: int, tokens: int, now_us: int) -> list[Want]:
    """What to borrow for a request that used more than it had reserved, as far as the limits have it.

    Also for one that runs into a budget's next day or month: of that nothing was borrowed for it.
    """
    wants: list[Want] = []
    for meter in hold.account.money:
        if meter.window_end is not None:
            meter.turn(now_us)
    meters = [(meter, cost_nano, hold.nano) for meter in hold.account.money]
    if hold.account.quota is not None:
        meters.append((hold.account.quota, tokens, hold.tokens))
    for meter, used, reserved in meters:
        held = reserved if meter in hold.money or meter is hold.quota else 0
        lent = (meter.lease or 0) - meter.held + held
        wanted = min(used, meter.free() + held) - lent
        if wanted > 0:
            own = meter.kind == "balance"
            wants.append(Want(meter, bucket_key(meter), wanted, None if own else meter.limit, True))
    return wants


@contextlib.contextmanager
def as_if_lent(wants: Sequence[Want], second: int) -> Iterator[None]:
    """Try something as if all of ``wants`` had been borrowed in this second of the steady clock."""
    before = [(want.limit.lease, getattr(want.limit, "leased_s", 0)) for want in wants]
    for want in wants:
        want.limit.lease = (want.limit.lease or 0) + want.amount
        if isinstance(want.limit, Minute):
            want.limit.leased_s = second
    try:
        yield
    finally:
        for want, (lease, leased_s) in zip(wants, before, strict=True):
            want.limit.lease = lease
            if isinstance(want.limit, Minute):
                want.limit.leased_s = leased_s


def choose_grant(wanted: int, free: int, *, slab: bool, partly: bool) -> int:
    """How much of ``free`` is lent to who needs ``wanted``; 0: nothing."""
    if free < wanted:
        return max(free, 0) if partly else 0
    if not slab or free < PLENTY * wanted:
        return wanted
    return wanted + min(PLENTY * wanted, free // 16)


class Grant(NamedTuple):
    """What was lent, for each want in its order: all, or nothing at all because of those that are ``lacking``.

    Requests per minute were counted in ``second``, UTC, and have to be used in it.
    """

    amounts: tuple[int, ...]
    lacking: tuple[BucketKey, ...]
    second: int


def borrow(
    connection: Connection,
    asks: Sequence[Sequence[Want]],
    node_id: str,
    second: int,
    unused: Sequence[tuple[BucketKey, int, int]] = (),
) -> list[Grant]:
    """Lend to each of ``asks`` all that it wants, or nothing; ``second`` is now, UTC.

    ``unused``: requests (bucket, second they were counted in, how many) that were lent and not made. Their buckets
    must be among those asked for: who holds a bucket may change its seconds.
    """
    keys = {want.key for ask in asks for want in ask}
    held = table.lock_shared(connection, list(keys))
    _uncount(connection, node_id, unused, second - WINDOW_S)
    minutes = [(key[0], key[1]) for key in keys if key[2] == "minute"]
    spent = table.sum_minutes(connection, minutes, second - WINDOW_S) if minutes else {}
    used = {key: spent.get((key[0], key[1]), 0) if key[2] == "minute" else held[key][1] for key in keys}
    lent = {key: held[key][2] for key in keys}
    posts: dict[BucketKey, list[int]] = {}
    slabs = {key for key in keys if key[0] not in ("requests", "parallel")}
    grants = []
    for ask in asks:
        amounts = []
        for want in ask:
            capacity = held[want.key][0] if want.capacity is None else want.capacity
            free = (capacity or 0) - used[want.key] - lent[want.key]
            amounts.append(choose_grant(want.amount, free, slab=want.key in slabs, partly=want.partly))
        lacking = tuple(want.key for want, amount in zip(ask, amounts, strict=True) if not amount)
        grants.append(Grant((0,) * len(amounts) if lacking else tuple(amounts), lacking, second))
        if lacking:
            continue
        for want, amount in zip(ask, amounts, strict=True):
            slabs.discard(want.key)  # one for all who ask at once
            if want.key[0] == "requests":  # used up as it is lent: it counts in this second
                used[want.key] += amount
                posts.setdefault((want.key[0], want.key[1], "minute", second), [0, 0])[0] += amount
            else:
                lent[want.key] += amount
                posts.setdefault(want.key, [0, 0])[1] += amount
    table.post_shared(connection, node_id, posts)
    return grants


def _uncount(connection: Connection, node_id: str, unused: Sequence[tuple[BucketKey, int, int]], since_s: int) -> None:
    posts: dict[BucketKey, list[int]] = {}
    for key, second, amount in unused:
        if second >= since_s:  # older ones are forgotten anyway
            posts.setdefault((key[0], key[1], "minute", second), [0, 0])[0] -= amount
    table.post_shared(connection, node_id, posts)


def give_back_leases(
    connection: Connection, node_id: str, amounts: dict[BucketKey, int], over: Sequence[BucketKey] = ()
) -> None:
    """Return what a node has borrowed and doesn't need; of what is ``over``, all that it has."""
    if over:
        amounts = amounts | table.list_leases(connection, node_id, over)
    # All in one statement, which takes the buckets in order, so that two nodes never wait for each other.
    table.post_shared(connection, node_id, {key: (0, -amount) for key, amount in amounts.items()})
