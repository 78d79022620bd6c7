"""Management of keys, users, money and usage: each change is one transaction with its audit row, then in memory."""

import asyncio
import contextlib
from typing import Any

import msgspec
from sqlalchemy import Connection

from stentor.accounting.ledger import (
    Balance,
    Deposit,
    book,
    check_books,
    clear_budget,
    find_balance,
    is_booked,
    start_budget,
)
from stentor.accounting.meters import calendar_window
from stentor.accounting.price import Price
from stentor.accounting.prices import PriceEntry, add_price, list_prices
from stentor.accounting.usage import Subject, UsageFilter, UsagePage, UsageTotal, list_usage, total_usage
from stentor.audit.log import EVERY_CHANGE, Actor, Change, ChangeFilter, list_changes, record_change
from stentor.control.books import LocalBooks
from stentor.control.passwords import Passwords
from stentor.control.wanted import Finding, KeyAsk, MadeKey, UserAsk, UserView, check_maker
from stentor.core.clock import Clock
from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ProjectId, TierId, UserId
from stentor.people import api_keys, projects, tiers, users
from stentor.people.key_text import digest_key, new_key
from stentor.people.values import ApiKey, KeyLimits, Project, Tier, User
from stentor.store.database import Database
from stentor.vault.keyring import Keyring

GRACE_MOST_S = 90 * 86_400


class Management:
    """What operators do. Lives on the books' event loop."""

    def __init__(self, database: Database, books: LocalBooks, keyring: Keyring, clock: Clock) -> None:
        self._database = database
        self._books = books
        self._keyring = keyring
        self._clock = clock
        self.passwords = Passwords(database)
        self._timers: set[asyncio.TimerHandle] = set()

    # -- keys --------------------------------------------------------------------------------------------------------

    async def list_keys(self, *, user: str | None = None, after: str | None = None, limit: int = 100) -> list[ApiKey]:
        """Keys, newest first; ``after`` is the id of the last one seen."""

        def read(connection: Connection) -> list[ApiKey]:
            owner = None if user is None else users.get_user(connection, user).id
            before = None if after is None else KeyId(after)
            return api_keys.list_keys(connection, user_id=owner, before_id=before, limit=limit)

        return await self._database.read(read)

    async def add_key(self, actor: Actor, ask: KeyAsk, *, creator: KeyId | None = None) -> MadeKey:
        """Make a key. With ``creator``, the new key may do no more than that one."""
        text = new_key()

        def work(connection: Connection) -> ApiKey:
            maker = None if creator is None else api_keys.get_key_in_line(connection, creator)
            user = users.get_user(connection, ask.user)
            wanted = ask.project
            if not wanted and maker is not None and "admin" not in maker.scopes:
                wanted = maker.project_id
            project = projects.get_project_for(connection, user, wanted)
            if maker is not None:
                check_maker(maker, ask, project.id)
            limits = ask.limits or KeyLimits()
            new = api_keys.NewKey(
                user.id, project.id, ask.name, ask.scopes, ask.models, ask.endpoints, limits, ask.expires_us
            )
            return self._store_key(connection, actor, new, text)

        made = await self._database.write(work)
        self._books.roll.changed()
        return MadeKey(text, made)

    def _store_key(self, connection: Connection, actor: Actor, new: api_keys.NewKey, text: str) -> ApiKey:
        now_us = self._clock.now_us()
        made = api_keys.add_key(connection, new, text, digest_key(self._keyring.pepper(), text), now_us)
        record_change(connection, now_us, actor, "key_create", ("key", made.id), after=msgspec.to_builtins(made))
        return made

    async def revoke_key(self, actor: Actor, key_id: str) -> ApiKey:
        """End a key now; its running requests are told."""

        def work(connection: Connection) -> ApiKey:
            now_us = self._clock.now_us()
            key = api_keys.revoke_key(connection, KeyId(key_id), now_us)
            record_change(
                connection, now_us, actor, "key_revoke", ("key", key.id), after={"revoked_us": key.revoked_us}
            )
            return key

        key = await self._database.write(work)
        self._books.roll.change_key(key)
        self._books.tell_revoked(key.id)
        return key

    async def rotate_key(self, actor: Actor, key_id: str, *, grace_s: int = 0, creator: KeyId | None = None) -> MadeKey:
        """Replace a key by one with the same rights; the old one works for ``grace_s`` seconds more.

        Both have their limits together: what was used up stays used up, and nothing is there twice.

        With ``creator``, the key may do no more than that one: its new text is for whoever rotates it to read.
        """
        if not 0 <= grace_s <= GRACE_MOST_S:
            raise Refused("invalid_request", f"A grace time lies between 0 and {GRACE_MOST_S} s.", param="grace_s")
        text = new_key()

        def work(connection: Connection) -> tuple[ApiKey, ApiKey]:
            now_us = self._clock.now_us()
            old = api_keys.get_key(connection, KeyId(key_id))
            if not old.is_valid(now_us):
                raise Refused("conflict", f"The key {key_id} has ended; make a new one instead.")
            if creator is not None:
                check_maker(api_keys.get_key_in_line(connection, creator), old, old.project_id)
            api_keys.check_newest(connection, old)
            new = api_keys.NewKey(
                old.user_id,
                old.project_id,
                old.name,
                old.scopes,
                old.models,
                old.endpoints,
                old.limits,
                old.expires_us,
                old.id,
                old.line_id,
            )
            made = self._store_key(connection, actor, new, text)
            old = api_keys.end_with_grace(connection, old.id, now_us + grace_s * 1_000_000)
            after = {"grace_until_us": old.grace_until_us, "replaced_by": made.id}
            record_change(connection, now_us, actor, "key_rotate", ("key", old.id), after=after)
            return old, made

        old, made = await self._database.write(work)
        self._books.roll.change_key(old)
        self._tell_later(old.id, grace_s)
        return MadeKey(text, made)

    def _tell_later(self, key_id: KeyId, delay_s: int) -> None:
        """Say that a key ended when it ends: at once would break off what still runs with it."""
        if delay_s == 0:
            self._books.tell_revoked(key_id)
            return

        def tell() -> None:
            self._timers.discard(handle)
            self._books.tell_revoked(key_id)

        handle = asyncio.get_running_loop().call_later(delay_s, tell)
        self._timers.add(handle)

    def close(self) -> None:
        """Forget what was to be told later, and end what the books do by themselves."""
        self._books.stop()
        for handle in self._timers:
            handle.cancel()
        self._timers.clear()

    # -- users -------------------------------------------------------------------------------------------------------

    async def list_users(self, *, after: str = "", limit: int = 100) -> list[UserView]:
        """Users by name; ``after`` is the name of the last one seen."""

        def read(connection: Connection) -> list[UserView]:
            found = users.list_users(connection, after_name=after, limit=limit)
            return [UserView(user, find_balance(connection, user.id).left_nano) for user in found]

        return await self._database.read(read)

    async def add_user(self, actor: Actor, ask: UserAsk) -> UserView:
        """Make a user with a personal project."""
        hashed = None if ask.password is None else await self.passwords.hash(ask.password)
        new = users.NewUser(ask.name, ask.email, ask.role, TierId(ask.tier), hashed)

        def work(connection: Connection) -> User:
            now_us = self._clock.now_us()
            user, _ = users.add_user(connection, new, now_us)
            record_change(connection, now_us, actor, "user_create", ("user", user.id), after=msgspec.to_builtins(user))
            return user

        return UserView(await self._database.write(work), 0)

    # -- money -------------------------------------------------------------------------------------------------------

    async def top_up(
        self, actor: Actor, user: str, amount_nano: int, *, note: str = "", reference: str | None = None
    ) -> UserView:
        """Add to a user's balance, or take off by a negative amount. The same ``reference`` counts once."""

        def work(connection: Connection) -> tuple[User, Balance]:
            now_us = self._clock.now_us()
            found = users.get_user(connection, user)
            kind = "top_up" if amount_nano > 0 else "adjustment"
            deposit = Deposit(found.id, kind, amount_nano, note, reference)  # type: ignore[arg-type]
            balance, fresh = book(connection, deposit, actor.name, now_us)
            if fresh:
                after = {"amount_nano": amount_nano, "balance_nano": balance.left_nano, "note": note}
                record_change(connection, now_us, actor, "balance_" + kind, ("user", found.id), after=after)
            return found, balance

        def read(connection: Connection) -> UserId | None:
            return None if is_booked(connection, reference) else users.get_user(connection, user).id

        # What running requests have reserved is in memory alone: until it is written, nobody else gets this either.
        holder = await self._database.read(read) if amount_nano < 0 else None
        async with contextlib.AsyncExitStack() as stack:
            if holder is not None:
                await stack.enter_async_context(self._books.taking_off(holder, -amount_nano))
            found, balance = await self._database.write(work)
            self._books.roll.change_balance(found.id, balance.credited_nano)
        return UserView(found, balance.left_nano)

    async def list_prices(self) -> list[PriceEntry]:
        """All prices by model and time."""
        return await self._database.read(list_prices)

    async def add_price(self, actor: Actor, model: str, price: Price, *, effective_us: int | None = None) -> PriceEntry:
        """Give a model (``*``: all local ones without their own) a price from now or a later time on."""

        def work(connection: Connection) -> PriceEntry:
            now_us = self._clock.now_us()
            entry = add_price(connection, model, now_us if effective_us is None else effective_us, price, now_us)
            record_change(connection, now_us, actor, "price_add", ("model", model), after=msgspec.to_builtins(entry))
            return entry

        entry = await self._database.write(work)
        await self._books.load_prices()
        return entry

    async def list_usage(self, where: UsageFilter, *, before: int | None = None, limit: int = 100) -> UsagePage:
        """Usage events, newest first; ``where.user_id`` may be a name or an email as well."""

        def read(connection: Connection) -> UsagePage:
            by = where
            if by.user_id is not None:
                by = msgspec.structs.replace(by, user_id=users.get_user(connection, by.user_id).id)
            return list_usage(connection, by, before=before, limit=limit)

        return await self._database.study(read)

    async def record(self, actor: Actor, action: str, subject: tuple[str, str], after: dict[str, Any]) -> None:
        """Write down a change that isn't the books' own, such as a model's start."""
        now_us = self._clock.now_us()
        await self._database.write(
            lambda connection: record_change(connection, now_us, actor, action, subject, after=after)
        )

    async def total_usage(self, where: UsageFilter, by: tuple[Subject, ...] = ()) -> list[UsageTotal]:
        """Totals of usage, in all or by subjects."""
        return await self._database.study(lambda connection: total_usage(connection, where, by))

    # -- tiers, projects, audit ----------------------------------------------------------------------------------------

    async def list_tiers(self) -> list[Tier]:
        """All tiers by name."""
        return await self._database.read(tiers.list_tiers)

    async def set_tier(self, actor: Actor, tier: Tier, *, new: bool = False) -> Tier:
        """Add or change a tier; it holds for its users at once. ``new``: refused where it exists."""

        def work(connection: Connection) -> None:
            now_us = self._clock.now_us()
            old = tiers.set_tier(connection, tier, now_us)
            if new and old is not None:
                raise Refused("conflict", f"There is a tier '{tier.id}' already.", param="id")
            before = None if old is None else msgspec.to_builtins(old)
            record_change(
                connection, now_us, actor, "tier_set", ("tier", tier.id), before=before, after=msgspec.to_builtins(tier)
            )

        await self._database.write(work)
        self._books.roll.change_tier(tier)
        return tier

    async def list_projects(self, *, user: str | None = None) -> list[Project]:
        """Projects, oldest first; of one owner if given."""

        def read(connection: Connection) -> list[Project]:
            owner = None if user is None else users.get_user(connection, user).id
            return projects.list_projects(connection, owner)

        return await self._database.read(read)

    async def add_project(self, actor: Actor, name: str, owner: str) -> Project:
        """Make a project for a team."""

        def work(connection: Connection) -> Project:
            now_us = self._clock.now_us()
            made = projects.add_project(connection, name, users.get_user(connection, owner), now_us)
            after = msgspec.to_builtins(made)
            record_change(connection, now_us, actor, "project_create", ("project", made.id), after=after)
            return made

        return await self._database.write(work)

    async def set_budget(self, actor: Actor, project_id: str, window: projects.Window, limit_nano: int | None) -> None:
        """Set, change or (None) remove a project's budget; a new one counts what its window has already seen."""
        project, now_us = ProjectId(project_id), self._clock.now_us()
        start = 0 if window == "none" else calendar_window(window, now_us)[0]

        def work(connection: Connection) -> int:
            projects.get_project(connection, project)
            before = projects.list_budgets(connection, project)
            projects.set_budget(connection, project, window, limit_nano, now_us)
            after = {"window": window, "limit_nano": limit_nano}
            record_change(
                connection, now_us, actor, "budget_set", ("project", project), before=dict(before), after=after
            )
            if limit_nano is None or window not in before:
                clear_budget(connection, project, window)
            return 0 if limit_nano is None else start_budget(connection, project, window, start, limit_nano)

        used = await self._database.write(work)
        meter = self._books.roll.change_budget(project, window, limit_nano, used, now_us)
        if meter is None or limit_nano is None:
            return
        # Settlements count against it from here on; those that came between the sum and this moment are added now.
        missing = await self._database.write(
            lambda connection: start_budget(connection, project, window, start, limit_nano)
        )
        if meter.window_start == start:
            meter.used += missing

    async def list_changes(
        self, where: ChangeFilter = EVERY_CHANGE, *, before: int | None = None, limit: int = 100
    ) -> list[Change]:
        """The audit log, newest first."""
        return await self._database.read(
            lambda connection: list_changes(connection, where=where, before_id=before, limit=limit)
        )

    async def doctor_books(self) -> list[Finding]:
        """Whether every balance and bucket agrees with the ledger and the events."""
        problem = self._database.problem()
        findings = [Finding("store", problem is None, problem or "The database can be written.")]
        wrong = await self._database.study(lambda connection: check_books(connection, api_keys.list_lines(connection)))
        if not wrong:
            return [*findings, Finding("books", True, "Balances and limits agree with ledger and events.")]
        return findings + [
            Finding(
                "books",
                False,
                f"{one.kind} of {one.subject}: {one.amount} is {one.in_bucket}, ledger and events say {one.in_books}.",
                "Keep a copy of the data folder and report this; nothing was changed.",
            )
            for one in wrong
        ]
