"""The books of one node: every key, limit and balance in memory, every settlement written in groups.

Lives on one event loop and holds no lock: admission and settlement each happen in one step between two awaits. A
request that finds a free place waits for nothing on its way in, and for one group commit on its way out.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import msgspec
from sqlalchemy import Connection

from stentor.accounting.accounts import KeyAccount
from stentor.accounting.allowance import Demand, Hold, admit, give_back, replace, settle, take_back
from stentor.accounting.meters import Moment
from stentor.accounting.plausible import correct_usage, is_plausible
from stentor.accounting.price import Price, price_usage
from stentor.accounting.prices import PriceList, load_prices
from stentor.accounting.settings import AccountingSettings
from stentor.accounting.settlement import Settlement, find_settled, write_settlements
from stentor.accounting.tokens import count_both
from stentor.control.alarms import note_absorbed
from stentor.control.chain import (
    Member,
    choose_dearest,
    choose_member,
    get_member_price,
    is_stuck,
    key_ended,
    missing_ability,
)
from stentor.control.owned import Closing
from stentor.control.places import Places, resolve_model
from stentor.control.roll import Roll
from stentor.control.running import Running, event_row
from stentor.core.books import Close, Extend, Grant, Open, Settled, Usage
from stentor.core.clock import Clock
from stentor.core.errors import InDoubt, Refused
from stentor.core.ids import KeyId, RequestId, UserId
from stentor.core.principal import Principal
from stentor.runtime.keeping import KeepWish
from stentor.runtime.place import Place
from stentor.store.database import Database
from stentor.telemetry.logs import Log

RECENT_MAX = 4096

SettlementWork = Callable[[Connection, list[Settlement]], list[bool]]
_Ident = tuple[RequestId, int]


class LocalBooks:
    """Implements :class:`stentor.core.books.Books` in this process. Make it with :meth:`start`, on its loop."""

    def __init__(
        self,
        database: Database,
        places: Places,
        prices: PriceList,
        settings: AccountingSettings,
        clock: Clock,
        log: Log | None = None,
    ) -> None:
        self._database = database
        self._places = places
        self._settings = settings
        self._clock = clock
        self._log = log
        self._running: dict[_Ident, Running] = {}
        self._lane = database.lane(self._settlement_work(), self._delivered)
        self._hold: Callable[[KeyAccount, Demand, Price, Moment], Hold] = admit
        # What was settled lately, in two halves: the older one is dropped when the younger is full.
        self._recent: dict[_Ident, Settlement] = {}
        self._older: dict[_Ident, Settlement] = {}
        self._listeners: list[Callable[[KeyId], None]] = []
        self._change_listeners: list[Callable[[KeyId], None]] = []
        self.prices = prices
        self._pricing = asyncio.Lock()
        self.roll = Roll(database, clock, settings.rate_limit_qps)

    @classmethod
    async def start(
        cls, database: Database, places: Places, settings: AccountingSettings, clock: Clock, log: Log | None = None
    ) -> "LocalBooks":
        """The books of ``database``, with its price list loaded; accounts follow when they are first needed."""
        return cls(database, places, await database.read(load_prices), settings, clock, log)

    def _settlement_work(self) -> SettlementWork:
        def write(connection: Connection, items: list[Settlement]) -> list[bool]:
            fresh = write_settlements(connection, items)
            note_absorbed(connection, items, fresh)
            return fresh

        return write

    @contextlib.asynccontextmanager
    async def taking_off(self, user_id: UserId, amount_nano: int) -> AsyncIterator[None]:
        """While it lasts, so much of a balance is kept from requests. Raises Refused if they have too much of it."""
        with self.roll.holding_back(user_id, amount_nano):
            yield

    async def load_prices(self) -> None:
        """Take up a change of prices. One load at a time, each begun after its change: an older list is never last."""
        async with self._pricing:
            self.prices = await self._database.read(load_prices)

    def stop(self) -> None:
        """Nothing goes on."""

    # -- who ---------------------------------------------------------------------------------------------------------

    async def find_principal(self, key_digest: bytes) -> Principal | None:
        """See :class:`~stentor.core.books.Books`. None also for a key that ended, or whose user or project is shut."""
        account = await self.roll.find_by_digest(key_digest)
        if account is None or not self._is_valid(account):
            return None
        return account.terms.principal

    def _is_valid(self, account: KeyAccount) -> bool:
        ends_us = account.terms.ends_us
        return (
            account.user.terms.active and account.project.active and (ends_us is None or self._clock.now_us() < ends_us)
        )

    def on_revoked(self, listener: Callable[[KeyId], None]) -> None:
        """See :class:`~stentor.core.books.Books`."""
        self._listeners.append(listener)

    def on_changed(self, listener: Callable[[KeyId], None]) -> None:
        """See :class:`~stentor.core.books.Books`."""
        self._change_listeners.append(listener)

    def tell_changed(self, key_id: KeyId) -> None:
        """Have everybody look again at what a key may do."""
        for listener in self._change_listeners:
            listener(key_id)

    def tell_revoked(self, key_id: KeyId) -> None:
        """A key ended or may do less: what runs with it ends, too."""
        self.tell_changed(key_id)
        for listener in self._listeners:
            listener(key_id)

    async def find_problem(self) -> str | None:
        """See :class:`~stentor.core.books.Books`."""
        return self._database.problem()

    # -- open --------------------------------------------------------------------------------------------------------

    async def open(self, ask: Open, owner: str = "") -> Grant:
        """See :class:`~stentor.core.books.Books`. ``owner`` is who must close it; see :meth:`abandon`."""
        account = self.roll.keys.get(ask.key_id)
        if account is None:
            account = await self.roll.find(ask.key_id)
            if account is None:
                raise key_ended()
        running = self._admit(ask, owner, account)
        ident = (ask.request_id, ask.attempt)
        self._running[ident] = running
        try:
            place = self._places.try_acquire(running.model.id, ask.prefix_key)
            if place is None:
                place = await self._wait(running)
        except BaseException as error:
            del self._running[ident]
            give_back(running.hold)
            if running.chain is None or not running.chain.rest or not is_stuck(error):
                raise
            return await self.open(msgspec.structs.replace(ask, step=running.chain.step + 1), owner)
        return self._grant(running, place)

    def try_open(self, ask: Open, owner: str = "") -> Grant | None:
        """As :meth:`open` where nothing has to be waited for; None, and nothing is taken, where something has."""
        account = self.roll.keys.get(ask.key_id)
        if account is None:
            return None
        running = self._admit(ask, owner, account)
        place = self._places.try_acquire(running.model.id, ask.prefix_key)
        if place is None:
            give_back(running.hold)
            return None
        self._running[ask.request_id, ask.attempt] = running
        return self._grant(running, place)

    def _grant(self, running: Running, place: Place) -> Grant:
        running.place = place
        ask, model = running.ask, running.model
        if ask.keep_s is not None:
            by_operator = "admin" in running.account.terms.principal.scopes
            wish = KeepWish(ask.request_id, ask.key_id, ask.keep_s, by_operator)
            self._places.keep(place.instance, place.generation, wish)
        grant = Grant(
            ask.request_id,
            ask.attempt,
            model.id,
            place.instance,
            place.generation,
            place.url,
            place.token,
            model.upstream_model,
            model.engine,
            running.hold.output,
            model.context_size,
            place.queued_us,
            model.abilities,
            model.remote,
        )
        chain = running.chain
        return grant if chain is None else msgspec.structs.replace(grant, step=chain.step, steps=chain.steps)

    def _admit(self, ask: Open, owner: str, account: KeyAccount) -> Running:
        """Everything that is decided before the first await: who, which model, and whether all limits allow it."""
        now = Moment(self._clock.now_us(), self._clock.monotonic_s())
        terms = account.terms
        if not self._is_valid(account):
            raise key_ended()
        principal = terms.principal
        if principal.endpoints and ask.endpoint not in principal.endpoints:
            raise Refused("insufficient_scope", f"This key may only call {', '.join(sorted(principal.endpoints))}.")
        if (ask.request_id, ask.attempt) in self._running:
            raise Refused("conflict", f"Attempt {ask.attempt} of request {ask.request_id} is open already.")
        model = resolve_model(self._places, self.prices, ask, principal.models, now.us)
        chain: Member | None = None
        if model.fallbacks or model.remote is not None:
            chain = choose_member(model, ask, self._places, self.prices, principal.models, now.us)
            model = chain.model
        for ability in ask.needs:
            if not model.can(ability):
                raise missing_ability(model, ability)
        running = Running(ask, owner, account, model, now.us)
        running.price = price = get_member_price(model, self.prices, now.us)
        prompt = ask.input_bound + ask.media * model.media_bound
        context = model.context_size
        if ask.output_asked == 0 and prompt > context:
            context = prompt  # nothing is generated, and each of many inputs may fill the context
        demand = Demand(
            prompt,
            ask.output_asked,
            self._settings.default_max_tokens,
            ask.answers,
            context,
            ask.attempt == 1,
            ask.audio_ms,
            ask.characters,
        )
        if chain is not None:
            running.chain = chain
            price = choose_dearest(chain, price, demand, self.prices, now.us)
        running.hold = self._hold(account, demand, price, now)
        return running

    async def _wait(self, running: Running) -> Place:
        ask = running.ask
        place = await self._places.acquire(
            running.model.id, key_id=ask.key_id, prefix_key=ask.prefix_key, timeout_s=ask.queue_timeout_s
        )
        if running.lost or not self._is_valid(running.account):
            self._places.release(place.instance, place.generation, suspect=False)
            raise key_ended()
        return place

    async def extend(self, more: Extend) -> None:
        """See :class:`~stentor.core.books.Books`."""
        running = self._running.get((more.request_id, more.attempt))
        if running is None or running.place is None or running.closing is not None:
            raise Refused("conflict", f"Attempt {more.attempt} of request {more.request_id} is not open.")
        now = Moment(self._clock.now_us(), self._clock.monotonic_s())
        context = max(running.model.context_size, more.output + 1)
        demand = Demand(more.prompt, more.output, 0, 1, context, False, more.audio_ms, more.characters)
        running.hold = replace(running.hold, lambda: self._hold(running.account, demand, running.price, now))

    # -- close -------------------------------------------------------------------------------------------------------

    async def close(self, end: Close) -> Settled:
        """See :class:`~stentor.core.books.Books`."""
        ident = (end.request_id, end.attempt)
        running = self._running.get(ident)
        if running is None or running.place is None or running.closing is not None:
            return await self._find_result(ident)
        if end.count_input or end.count_output:
            end = await self._count(running, end)
        closing = self.begin_close(end)
        if closing is not None and await closing.written:
            return closing.settled
        return await self._find_result(ident)

    def begin_close(self, end: Close) -> Closing | None:
        """See :class:`~stentor.control.owned.OwnedBooks`."""
        ident = (end.request_id, end.attempt)
        running = self._running.get(ident)
        if running is None or running.place is None or running.closing is not None:
            return None
        if end.count_input or end.count_output:
            return None
        del self._running[ident]
        settlement = self._settle(running, end)
        return Closing(settlement.settled, self._lane.submit(settlement))

    def _settle(self, running: Running, end: Close) -> Settlement:
        """Charge in memory, give the place back, and make the event; the caller submits it before anything else."""
        now = Moment(self._clock.now_us(), self._clock.monotonic_s())
        usage = end.usage
        if not is_plausible(usage):
            usage = self._correct(running, usage)
        cost = tokens = 0
        if end.billable:
            cost = price_usage(running.price, usage)
            tokens = usage.input_tokens + usage.output_tokens
        charge = settle(running.hold, cost, tokens, now)
        place = running.place
        assert place is not None
        settlement = Settlement(usage, charge, event_row(running, place, end, usage, charge, now.us))
        self._remember((end.request_id, end.attempt), settlement)
        if running.model.remote is not None:
            self._places.report(running.model.id, ok=end.upstream_ok, retry_after_s=end.retry_after_s)
        self._places.release(place.instance, place.generation, suspect=end.instance_suspect)
        return settlement

    async def _count(self, running: Running, end: Close) -> Close:
        """``end`` with its texts counted; meanwhile nobody else may close the attempt."""
        running.closing = asyncio.Event()
        try:
            counts = await asyncio.to_thread(count_both, end.count_input, end.count_output)
        finally:
            running.closing.set()
            running.closing = None
        usage = msgspec.structs.replace(
            end.usage,
            input_tokens=counts[0] if end.count_input else end.usage.input_tokens,
            output_tokens=counts[1] if end.count_output else end.usage.output_tokens,
            estimated=True,
        )
        return msgspec.structs.replace(end, usage=usage, count_input="", count_output="")

    def _delivered(self, items: list[Settlement], outcome: list[bool] | BaseException) -> None:
        """A group came back from the store: what was not written was never charged."""
        if isinstance(outcome, BaseException):
            for item in items:
                if not isinstance(outcome, InDoubt):  # then the charge stands until it is known
                    take_back(item.charge)
                item.finish(fresh=False, failure=outcome)
            return
        for item, fresh in zip(items, outcome, strict=True):
            if not fresh:
                take_back(item.charge)
            item.finish(fresh=fresh, failure=None)

    async def _find_result(self, ident: _Ident) -> Settled:
        """What became of an attempt that isn't running (any more)."""
        running = self._running.get(ident)
        if running is not None and running.closing is not None:
            await running.closing.wait()
        elif running is not None:
            raise Refused("conflict", f"Attempt {ident[1]} of request {ident[0]} has no place yet: nothing to settle.")
        known = self._recent.get(ident) or self._older.get(ident)
        if known is not None:
            await known.wait()
            if known.fresh:
                return known.settled
        settled = await self._database.read(lambda connection: find_settled(connection, *ident))
        if settled is None:
            if self._log is not None:
                self._log.event("close_refused", level="warning", request_id=ident[0], attempt=ident[1])
            raise Refused("not_found", f"Attempt {ident[1]} of request {ident[0]} was never opened, or is long over.")
        return settled

    def _remember(self, ident: _Ident, settlement: Settlement) -> None:
        if len(self._recent) >= RECENT_MAX:
            self._older, self._recent = self._recent, {}
        self._recent[ident] = settlement

    def abandon(self, owner: str) -> None:
        """Close every open request of a lost owner: failed, ``worker_lost``, cost 0. Settlements under way go on."""
        now_us = self._clock.now_us()
        for ident, running in list(self._running.items()):
            if running.owner != owner or running.closing is not None:
                continue
            if running.place is None:
                running.lost = True
                continue
            del self._running[ident]
            latency_us = now_us - running.opened_us
            end = Close(*ident, "failed", Usage(), "worker_lost", billable=False, latency_us=latency_us)
            self._lane.submit(self._settle(running, end))

    def running(self) -> int:
        """How many requests are open."""
        return len(self._running)

    def _correct(self, running: Running, usage: Usage) -> Usage:
        if self._log is not None:
            self._log.event(
                "usage_corrected", level="warning", request_id=running.ask.request_id, model=running.model.id
            )
        return correct_usage(usage, running.model.context_size, running.ask.answers)
