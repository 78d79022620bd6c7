"""The books of a node among others: what it admits was borrowed from buckets that all share (PostgreSQL).

Everything is decided in memory as ever, within what this node has borrowed; a request that needs more waits for one
group commit first. What lies idle goes back every two seconds. A lease holds for fifteen seconds and is renewed by
every commit; a node that was silent for longer has lost it, and finds out before it admits or charges anything.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection

from stentor.accounting.accounts import KeyAccount
from stentor.accounting.allowance import Demand, Hold, admit, give_back
from stentor.accounting.lending import (
    BucketKey,
    Grant,
    Limit,
    Want,
    as_if_lent,
    borrow,
    bucket_key,
    find_missing,
    find_wants,
    give_back_leases,
    held_of,
)
from stentor.accounting.meters import WINDOW_S, Minute, Moment
from stentor.accounting.plausible import is_plausible
from stentor.accounting.price import Price, price_usage
from stentor.accounting.prices import load_prices
from stentor.accounting.settings import AccountingSettings
from stentor.accounting.settlement import Settlement, write_shared
from stentor.control.alarms import note_absorbed
from stentor.control.books import LocalBooks, SettlementWork
from stentor.control.nodes.following import Follower
from stentor.control.nodes.lent_requests import LentRequests
from stentor.control.nodes.neighbourhood import make_node_account
from stentor.control.owned import Closing
from stentor.control.places import Places
from stentor.control.running import Running
from stentor.core import books as core
from stentor.core.clock import Clock
from stentor.core.errors import InDoubt, LeasesLost, Refused, StoreUnavailable
from stentor.core.ids import UserId
from stentor.store.database import Database
from stentor.telemetry.background import keep_going
from stentor.telemetry.logs import Log

BEAT_S = 2.0
DRY_S = 0.25  # how long a bucket that had nothing left isn't asked again
TRIES = 6


class _Short(Exception):
    """A request that needs more than this node has borrowed; nothing was taken for it."""

    def __init__(self, wants: list[Want]) -> None:
        super().__init__()
        self.wants = wants


class _Ask(NamedTuple):
    epoch: int
    wants: tuple[Want, ...]
    unused: tuple[tuple[BucketKey, int, int], ...] = ()  # requests counted in a second in which they weren't made


class _Return(NamedTuple):
    epoch: int
    amounts: dict[BucketKey, int]
    limits: dict[BucketKey, Limit]
    over: tuple[BucketKey, ...] = ()  # of windows that ended: all of it goes back


class SharedBooks(LocalBooks):
    """:class:`LocalBooks` on a database that other nodes use at the same time. Stop it when done."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._hold = self._hold_shared
        self._epoch = self._database.epoch
        self._borrowing = self._database.lane(self._borrow, self._lent_out)
        self._returning = self._database.lane(self._give_back, self._returned)
        self._lent: dict[BucketKey, Limit] = {}
        self._idle: dict[BucketKey, int] = {}
        self._dry: dict[BucketKey, tuple[int, float, float]] = {}
        self._requests = LentRequests()
        self.follower: Follower | None = None
        self._node_account: KeyAccount | None = None
        beating = keep_going("node-beat", self._beat_on, self._log)
        self._beating = asyncio.get_running_loop().create_task(beating, name="node-beat")

    def stop(self) -> None:
        """End what goes on in the background."""
        self._beating.cancel()
        if self.follower is not None:
            self.follower.stop()

    # -- for other nodes -----------------------------------------------------------------------------------------------

    def admit_nodes(self, key_digest: bytes) -> None:
        """Let other nodes in with the key of this keyed hash: to engines of this machine, unmetered."""
        self._node_account = make_node_account()
        self.roll.install(self._node_account, key_digest)

    def _admit(self, ask: core.Open, owner: str, account: KeyAccount) -> Running:
        running = super()._admit(ask, owner, account)
        if account is self._node_account and running.model.remote is not None:
            give_back(running.hold)  # it would go from node to node
            raise Refused("model_not_found", f"This node doesn't run '{running.model.id}' itself.", param="model")
        return running

    def _end_for_node(self, running: Running, end: core.Close) -> Closing:
        """Give the place back, and nothing else: the node that admitted the request meters it."""
        del self._running[end.request_id, end.attempt]
        settlement = self._settle(running, msgspec.structs.replace(end, billable=False))
        settlement.finish(fresh=True, failure=None)
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        written.set_result(True)
        return Closing(settlement.settled, written)

    def abandon(self, owner: str) -> None:
        """See :class:`LocalBooks`."""
        for ident, running in list(self._running.items()):
            if running.owner == owner and running.account is self._node_account and running.place is not None:
                self._end_for_node(running, core.Close(*ident, "failed", core.Usage(), "worker_lost"))
        super().abandon(owner)

    # -- admission -----------------------------------------------------------------------------------------------------

    async def open(self, ask: core.Open, owner: str = "") -> core.Grant:
        """See :class:`~stentor.core.books.Books`."""
        for _ in range(TRIES):
            try:
                return await super().open(ask, owner)
            except _Short as short:
                await self._ask_for(short.wants)
        raise Refused("overloaded", "Other servers are using up this account's limits. Try again.", retry_after_s=1.0)

    async def extend(self, more: core.Extend) -> None:
        """See :class:`~stentor.core.books.Books`."""
        for _ in range(TRIES):
            try:
                return await super().extend(more)
            except _Short as short:
                await self._ask_for(short.wants)
        raise Refused("overloaded", "Other servers are using up this account's limits. Try again.", retry_after_s=1.0)

    def try_open(self, ask: core.Open, owner: str = "") -> core.Grant | None:
        """See :class:`LocalBooks`."""
        try:
            return super().try_open(ask, owner)
        except _Short:
            return None

    def _hold_shared(self, account: KeyAccount, demand: Demand, price: Price, now: Moment) -> Hold:
        if self._database.epoch != self._epoch:
            self._drop_leases()
        if time.monotonic() >= self._database.lease_until_s:
            raise _Short([])
        wants, hopeless = find_wants(account, demand, price, now)
        if not wants:
            return admit(account, demand, price, now)
        more = [want for want in wants if not self._is_dry(want, now.steady_s)]
        if len(more) == len(wants) and not hopeless:
            raise _Short(wants)
        # Something has nothing left: let the rules say which, as if the rest had been borrowed.
        with as_if_lent(more, int(now.steady_s)):
            hold = admit(account, demand, price, now)
            if more:
                give_back(hold)
        if not more:
            return hold  # what it has borrowed does, with a shorter answer
        raise _Short(more)

    def _is_dry(self, want: Want, steady_s: float) -> bool:
        dry = self._dry.get(want.key)
        if dry is None or want.key in self._requests:
            return False
        limit, at_s, real_s = dry
        if limit == want.limit.limit and steady_s < at_s + DRY_S and time.monotonic() < real_s + DRY_S:
            return True
        del self._dry[want.key]
        return False

    async def _ask_for(self, wants: list[Want]) -> None:
        """Borrow what is wanted; nothing wanted: learn whether this node's leases still hold."""
        if not wants:
            await self._returning.submit(_Return(self._epoch, {}, {}))
            return
        for want in wants:
            self._lent[want.key] = want.limit
        unused = self._requests.take_unused(wants)
        grant = await self._borrowing.submit(_Ask(self._epoch, tuple(wants), unused))
        for want in wants:
            if want.key in grant.lacking:
                self._dry[want.key] = (want.limit.limit or 0, self._clock.monotonic_s(), time.monotonic())

    def _borrow(self, connection: Connection, asks: list[_Ask]) -> list[Grant]:
        self._check_epoch(asks)
        second = self._clock.now_us() // 1_000_000
        unused = [each for ask in asks for each in ask.unused]
        return borrow(connection, [ask.wants for ask in asks], self._database.node_id, second, unused)

    def _lent_out(self, asks: list[_Ask], outcome: list[Grant] | BaseException) -> None:
        if isinstance(outcome, LeasesLost):
            self._drop_leases()
        if isinstance(outcome, BaseException):
            return
        steady_s, second = int(self._clock.monotonic_s()), self._clock.now_us() // 1_000_000
        for ask, grant in zip(asks, outcome, strict=True):
            if ask.epoch != self._epoch:
                continue  # lent in an earlier life, and taken back with all of it
            for want, amount in zip(ask.wants, grant.amounts, strict=True):
                limit = want.limit
                if bucket_key(limit) != want.key:
                    continue  # too late: the window is over, and what was lent of it goes back with a beat
                if isinstance(limit, Minute) and limit.unit == "requests":
                    self._requests.lend(limit, want.key, amount, (grant.second, second, steady_s))
                    continue
                limit.lease = (limit.lease or 0) + amount
                if amount:
                    self._lent[want.key] = limit  # a beat may have come by in between, when it had nothing

    # -- settlement ----------------------------------------------------------------------------------------------------

    async def close(self, end: core.Close) -> core.Settled:
        """See :class:`~stentor.core.books.Books`."""
        running = self._running.get((end.request_id, end.attempt))
        if running is not None and running.account is self._node_account:
            end = msgspec.structs.replace(end, count_input="", count_output="")  # nobody is charged for it here
        elif running is not None and running.place is not None and not running.topped:
            missing = self._find_missing(running, end)
            running.topped = True
            if missing:
                with contextlib.suppress(StoreUnavailable):  # the settlement itself will say so
                    await self._ask_for(missing)
        return await super().close(end)

    def begin_close(self, end: core.Close) -> Closing | None:
        """See :class:`LocalBooks`."""
        running = self._running.get((end.request_id, end.attempt))
        if running is not None and running.place is not None and running.account is self._node_account:
            return self._end_for_node(running, end)
        if (
            running is not None
            and running.place is not None
            and not running.topped
            and self._find_missing(running, end)
        ):
            return None
        return super().begin_close(end)

    def _find_missing(self, running: Running, end: core.Close) -> list[Want]:
        if not end.billable or end.count_input or end.count_output or not is_plausible(end.usage):
            return []
        tokens = end.usage.input_tokens + end.usage.output_tokens
        return find_missing(running.hold, price_usage(running.price, end.usage), tokens, self._clock.now_us())

    def _settlement_work(self) -> SettlementWork:
        def write(connection: Connection, items: list[Settlement]) -> list[bool]:
            self._check_epoch(items)
            fresh = write_shared(connection, items, self._database.node_id)
            note_absorbed(connection, items, fresh)
            return fresh

        return write

    def _settle(self, *parts: Any) -> Settlement:
        settlement = super()._settle(*parts)
        settlement.epoch = self._epoch
        return settlement

    def _delivered(self, items: list[Settlement], outcome: list[bool] | BaseException) -> None:
        super()._delivered(items, outcome)
        if isinstance(outcome, BaseException) or not all(outcome):
            self._note_taken_back(items, outcome)
        if not isinstance(outcome, LeasesLost):
            return
        self._drop_leases()
        for item in items:  # what was served must be on record; nothing is left to pay it from, so the house does
            again = item.absorbed(self._epoch)
            if again is not None:
                self._lane.submit(again)

    def _note_taken_back(self, items: list[Settlement], outcome: list[bool] | BaseException) -> None:
        """What an undone charge gave back to leases is this node's only in the life in which it was borrowed."""
        if isinstance(outcome, InDoubt):
            return
        for number, item in enumerate(items):
            if not isinstance(outcome, BaseException) and outcome[number]:
                continue
            charge = item.charge
            back: list[tuple[Limit, int]] = [(window, charge.tokens) for window in charge.token_windows]
            back += [(meter, amount) for meter, start, amount in charge.posts if meter.window_start == start]
            for limit, amount in back:
                if limit.lease is None:
                    continue
                if item.epoch == self._epoch:
                    self._lent[bucket_key(limit)] = limit  # a beat may have come by in between, when it had nothing
                else:
                    limit.lease -= amount

    def _check_epoch(self, items: Sequence[Any]) -> None:
        """On the writer's thread: nothing may rest on leases of an earlier life."""
        if any(item.epoch != self._database.epoch for item in items):
            raise LeasesLost

    # -- leases --------------------------------------------------------------------------------------------------------

    def _drop_leases(self) -> None:
        self._epoch = self._database.epoch
        for limit in self._lent.values():
            limit.lease = 0
        self._lent.clear()
        self._idle.clear()

    async def _beat_on(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self._returning.submit(self._collect_idle())
                await self._database.reap_nodes()
            except StoreUnavailable:
                continue  # readiness says so; the writer tries on by itself

    @contextlib.asynccontextmanager
    async def taking_off(self, user_id: UserId, amount_nano: int) -> AsyncIterator[None]:
        """See :class:`LocalBooks`. Here the database knows what is held, which was borrowed; the rest goes back."""
        await self.return_spare()
        yield

    async def return_spare(self) -> None:
        """Give back at once whatever isn't held by a running request."""
        await self._returning.submit(self._collect_idle(at_once=True))

    def _collect_idle(self, *, at_once: bool = False) -> _Return:
        """What was neither used nor held since the last beat."""
        self._requests.forget(self._clock.now_us() // 1_000_000 - WINDOW_S)
        amounts, limits, over = dict[BucketKey, int](), dict[BucketKey, Limit](), list[BucketKey]()
        for key, limit in list(self._lent.items()):
            ended = bucket_key(limit) != key  # then its lease is the next window's by now
            if ended or limit.lease is None or key[0] == "requests":
                del self._lent[key]
                self._idle.pop(key, None)
                over += [key] if ended else []
                continue
            spare = limit.lease - held_of(limit)
            if spare > 0 and (at_once or self._idle.get(key) == spare):
                limit.lease -= spare
                amounts[key], limits[key] = spare, limit
            self._idle[key] = spare
            if limit.lease == 0 and held_of(limit) == 0:
                del self._lent[key]
                self._idle.pop(key, None)
        return _Return(self._epoch, amounts, limits, tuple(over))

    def _give_back(self, connection: Connection, items: list[_Return]) -> list[None]:
        self._check_epoch(items)
        for item in items:
            give_back_leases(connection, self._database.node_id, item.amounts, item.over)
        return [None] * len(items)

    def _returned(self, items: list[_Return], outcome: list[None] | BaseException) -> None:
        if isinstance(outcome, LeasesLost):
            self._drop_leases()
        elif isinstance(outcome, BaseException) and not isinstance(outcome, InDoubt):
            for item in items:
                if item.epoch != self._epoch:
                    continue
                for key, limit in item.limits.items():
                    limit.lease = (limit.lease or 0) + (item.amounts[key] if bucket_key(limit) == key else 0)
                    self._lent[key] = limit


async def start_books(
    database: Database,
    places: Places,
    settings: AccountingSettings,
    clock: Clock,
    log: Log | None = None,
) -> LocalBooks:
    """The books of ``database``: alone with it, or among other nodes."""
    if not database.is_shared:
        return await LocalBooks.start(database, places, settings, clock, log)
    books = SharedBooks(database, places, await database.read(load_prices), settings, clock, log)
    books.follower = await Follower.start(database, books, clock, log)
    return books
