"""What other nodes changed: read from the audit log, which no change escapes, and applied to the accounts in memory.

Twice a second; so a key that was revoked anywhere stops everywhere within a second, its running requests too. A change
of this node's own is read again like any other: applying it twice does nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy import Connection

from stentor.accounting.accounts import KeyAccount
from stentor.accounting.ledger import Balance, find_balance, find_used, start_limit
from stentor.accounting.meters import Meter
from stentor.audit.log import find_newest, list_subjects
from stentor.control.books import LocalBooks
from stentor.core.clock import Clock
from stentor.core.errors import Refused, StentorError, StoreUnavailable
from stentor.core.ids import KeyId, ProjectId, TierId, UserId
from stentor.core.principal import Principal, is_narrowed
from stentor.people import api_keys, projects, tiers, users
from stentor.people.values import ApiKey, Project, Tier, User
from stentor.store.database import Database
from stentor.telemetry.logs import Log

T = TypeVar("T")

POLL_S = 0.5
PAGE = 500


class Follower:
    """Follows the audit log from where it stood at :meth:`start`, on the books' event loop."""

    def __init__(self, database: Database, books: LocalBooks, clock: Clock, log: Log | None, seen: int) -> None:
        self._database = database
        self._books = books
        self._clock = clock
        self._log = log
        self._seen = seen
        self._timers: dict[KeyId, asyncio.TimerHandle] = {}
        self._apply: dict[str, Callable[[str], Awaitable[None]]] = {
            "key": self._follow_key,
            "user": self._follow_user,
            "tier": self._follow_tier,
            "project": self._follow_project,
            "model": self._follow_prices,
        }
        self._others: dict[str, list[Callable[[str], Awaitable[None]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: dict[tuple[str, str], None] = {}  # what could not be applied, tried again each time
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="node-follow")

    @classmethod
    async def start(cls, database: Database, books: LocalBooks, clock: Clock, log: Log | None) -> "Follower":
        """Follow from now on. Nothing may have been loaded into the books yet."""
        return cls(database, books, clock, log, await database.read(find_newest))

    def also(self, kind: str, work: Callable[[str], Awaitable[None]]) -> None:
        """Have ``work`` done with the id of every changed subject of this kind, too; what it takes holds up nobody."""
        self._others.setdefault(kind, []).append(work)

    def stop(self) -> None:
        """Follow no more."""
        self._task.cancel()
        for task in self._tasks:
            task.cancel()
        for timer in self._timers.values():
            timer.cancel()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                for subject in list(self._failed):
                    await self._follow_one(subject)
                while await self._read_on():
                    pass
            except StoreUnavailable:
                continue  # nothing is skipped: it is read when the database is back
            except Exception as error:  # noqa: BLE001 - or what is revoked elsewhere would never be revoked here
                if self._log is not None:
                    self._log.event("following_failed", level="error", cause=error)

    async def _read_on(self) -> bool:
        """Apply what is new, at most a page of it; whether there may be more."""
        found = await self._database.read(lambda connection: list_subjects(connection, self._seen, PAGE))
        if not found:
            return False
        self._books.roll.changed()
        for subject in dict.fromkeys((kind, name) for _, kind, name in found):
            for work in self._others.get(subject[0], ()):
                task = asyncio.get_running_loop().create_task(self._pass_on(work, subject), name="node-follow-on")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await self._follow_one(subject)
        self._seen = found[-1][0]
        return len(found) == PAGE

    async def _follow_one(self, subject: tuple[str, str]) -> None:
        """Apply a change, or keep it for the next time. Raises StoreUnavailable."""
        kind, name = subject
        apply = self._apply.get(kind)
        if apply is None:
            return
        try:
            await apply(name)
        except StoreUnavailable:
            raise
        except Refused as error:
            self._pass_over(subject, error)  # it is gone by now: there is nothing to apply
        except Exception as error:  # noqa: BLE001 - one that can't be applied must not hold up those behind it
            self._failed[subject] = None
            if self._log is not None:
                self._log.event("change_failed", level="error", subject=":".join(subject), cause=error)
            return
        self._failed.pop(subject, None)

    async def _pass_on(self, work: Callable[[str], Awaitable[None]], subject: tuple[str, str]) -> None:
        while True:
            try:
                await work(subject[1])
            except StoreUnavailable:
                await asyncio.sleep(POLL_S)
            except StentorError as error:
                self._pass_over(subject, error)
                return
            else:
                return

    def _pass_over(self, subject: tuple[str, str], error: StentorError) -> None:
        if self._log is not None:
            self._log.event("change_passed_over", level="warning", subject=":".join(subject), reason=str(error))

    async def _read(self, work: Callable[[Connection], T]) -> T:
        """What ``work`` finds, with nothing applied since: an older state must not undo a newer one."""
        while True:
            version = self._books.roll.version
            found = await self._database.read(work)
            if version == self._books.roll.version:
                return found

    # -- keys ----------------------------------------------------------------------------------------------------------

    async def _follow_key(self, name: str) -> None:
        roll, key_id = self._books.roll, KeyId(name)
        key = await self._read(lambda connection: api_keys.get_key_in_line(connection, key_id))
        mate, account = roll.find_line(key.line_id), roll.keys.get(key_id)
        if mate is None:
            return
        before = None if account is None else account.terms.principal
        used = {(kind, window): 0 for kind, window, _ in _new_limits(mate, key)}
        meters = roll.change_key_terms(key, used, self._clock.now_us())
        if account is not None:
            self._tell(key, before, account.terms.principal)
        for meter in meters:
            await self._count(meter)

    def _tell(self, key: ApiKey, before: Principal | None, after: Principal) -> None:
        now_us, changed = self._clock.now_us(), before != after
        if changed and (timer := self._timers.pop(key.id, None)) is not None:
            timer.cancel()
        ends_us = key.ends_us()
        # A key that merely expired meanwhile ends by itself: what runs with it goes on, as at the node that made it.
        narrowed = before is not None and is_narrowed(before, after)
        if narrowed or key.revoked_us is not None or (changed and ends_us is not None and ends_us <= now_us):
            self._books.tell_revoked(key.id)
        elif changed:
            self._books.tell_changed(key.id)
        if changed and ends_us is not None and ends_us > now_us:
            loop = asyncio.get_running_loop()
            delay_s = (ends_us - now_us) / 1e6
            self._timers[key.id] = loop.call_later(delay_s, self._books.tell_revoked, key.id)

    async def _count(self, meter: Meter) -> None:
        """Make a limit that is new here agree with the events: this node's settlements count against it from now on."""
        name, limit = (meter.kind, meter.subject, meter.window, meter.window_start), meter.limit

        def start(connection: Connection) -> int:
            of_key = meter.kind.startswith("key_")
            line = api_keys.list_line(connection, KeyId(meter.subject)) if of_key else ()
            return start_limit(connection, name, limit, line)

        await self._database.write(start)
        used = await self._database.read(lambda connection: find_used(connection, name))
        if meter.window_start == name[3]:
            meter.used = max(meter.used, used)

    # -- users, tiers, projects, prices --------------------------------------------------------------------------------

    async def _follow_user(self, name: str) -> None:
        user_id = UserId(name)
        if user_id not in self._books.roll.users:
            return

        def read(connection: Connection) -> tuple[User, Tier, Balance]:
            user = users.get_user(connection, user_id)
            tier = tiers.get_tier(connection, user.tier_id)
            return user, tier, find_balance(connection, user_id)

        user, tier, balance = await self._read(read)
        self._books.roll.follow_balance(user_id, balance)
        for key_id in self._books.roll.change_user(user, tier):
            if not user.active:
                self._books.tell_revoked(key_id)

    async def _follow_tier(self, name: str) -> None:
        tier = await self._read(lambda connection: tiers.get_tier(connection, TierId(name)))
        self._books.roll.change_tier(tier)

    async def _follow_project(self, name: str) -> None:
        project_id = ProjectId(name)
        account = self._books.roll.projects.get(project_id)
        if account is None:
            return

        def read(connection: Connection) -> tuple[Project, dict[str, int]]:
            found = projects.list_budgets(connection, project_id)
            return projects.get_project(connection, project_id), {str(window): limit for window, limit in found.items()}

        project, budgets = await self._read(read)
        for key_id in self._books.roll.change_project(project):
            if not project.active:
                self._books.tell_revoked(key_id)
        for window in sorted(account.budgets.keys() | budgets.keys()):
            meter = self._books.roll.change_budget(project_id, window, budgets.get(window), 0, self._clock.now_us())
            if meter is not None:
                await self._count(meter)

    async def _follow_prices(self, _name: str) -> None:
        await self._books.load_prices()


def _new_limits(account: KeyAccount, key: ApiKey) -> list[tuple[str, str, int]]:
    """Kind, window and limit of what a key is limited by now and wasn't."""
    limits = key.limits
    asked = [
        ("key_tokens", "none", limits.token_limit, account.quota),
        ("key_spending", "none", limits.spending_limit_nano, account.spending),
        ("key_budget", "day", limits.budget_day_nano, account.budgets.get("day")),
        ("key_budget", "month", limits.budget_month_nano, account.budgets.get("month")),
    ]
    return [(kind, window, limit) for kind, window, limit, meter in asked if limit is not None and meter is None]
