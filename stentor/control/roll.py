"""The accounts in memory: loaded when a key is first seen, and from then on the truth that the database follows.

A loaded account is never read again: its balances run ahead of what is committed. What management changes in the
database is applied here by the same loop, and a load that overlapped such a change is done once more.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
from sqlalchemy import Connection

from stentor.accounting.accounts import KeyAccount, KeyTerms, ProjectAccount, UserAccount
from stentor.accounting.ledger import Balance, cannot_take_off
from stentor.accounting.meters import Meter
from stentor.accounting.usage import RecentUse
from stentor.control.dossier import Dossier, budget_meter, key_terms, read_dossier, user_terms
from stentor.core.clock import Clock
from stentor.core.ids import KeyId, ProjectId, UserId
from stentor.people.api_keys import find_key, find_key_by_digest
from stentor.people.values import ApiKey, Project, Tier, User
from stentor.store.database import Database

UNKNOWN_MAX = 10_000


class Roll:
    """Loaded accounts by id and by keyed hash; one loop's own."""

    def __init__(self, database: Database, clock: Clock, per_second: float) -> None:
        self._database = database
        self._clock = clock
        self._per_second = per_second
        self._version = 0
        self._by_digest: dict[bytes, KeyId] = {}
        self._unknown: dict[bytes, int] = {}
        self._loading: dict[bytes | KeyId, asyncio.Task[KeyAccount | None]] = {}
        self._held_back: dict[UserId, int] = {}
        self._lines: dict[KeyId, list[KeyAccount]] = {}
        self.keys: dict[KeyId, KeyAccount] = {}
        self.users: dict[UserId, UserAccount] = {}
        self.projects: dict[ProjectId, ProjectAccount] = {}

    @property
    def version(self) -> int:
        """Counts the changes: what was read under another one may be outdated."""
        return self._version

    def changed(self) -> None:
        """Management has committed something: a load that is under way must read again."""
        self._version += 1

    async def find_by_digest(self, digest: bytes) -> KeyAccount | None:
        """The account of the key with this keyed hash. Raises StoreUnavailable, never a false None."""
        key_id = self._by_digest.get(digest)
        if key_id is not None:
            return self.keys[key_id]
        version = self._version
        if self._unknown.get(digest) == version:
            return None
        account = await self._load(digest, lambda connection: find_key_by_digest(connection, digest))
        if account is not None:
            self._by_digest[digest] = account.terms.principal.key_id
            return account
        # Keys only come by management, which counts the version up: until then there is no such key.
        if len(self._unknown) >= UNKNOWN_MAX:
            self._unknown.clear()
        self._unknown[digest] = version
        return None

    async def find(self, key_id: KeyId) -> KeyAccount | None:
        """The account of a key by its id."""
        account = self.keys.get(key_id)
        if account is not None:
            return account
        return await self._load(key_id, lambda connection: find_key(connection, key_id))

    def install(self, account: KeyAccount, digest: bytes) -> None:
        """Take in an account that isn't in the database."""
        key_id = account.terms.principal.key_id
        self.keys[key_id] = account
        self._by_digest[digest] = key_id

    async def _load(self, name: bytes | KeyId, find: Callable[[Connection], ApiKey | None]) -> KeyAccount | None:
        task = self._loading.get(name)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._read(find))
            self._loading[name] = task
            task.add_done_callback(partial(self._loaded, name))
        return await asyncio.shield(task)

    def _loaded(self, name: bytes | KeyId, task: asyncio.Task[KeyAccount | None]) -> None:
        del self._loading[name]
        if not task.cancelled():
            task.exception()  # seen, even if everybody who waited has left

    async def _read(self, find: Callable[[Connection], ApiKey | None]) -> KeyAccount | None:
        while True:
            version = self._version
            dossier = await self._database.read(partial(read_dossier, find=find, now_us=self._clock.now_us()))
            if version == self._version:
                return None if dossier is None else self._install(dossier)

    def _install(self, dossier: Dossier) -> KeyAccount:
        key_id = dossier.key.id
        known = self.keys.get(key_id)
        if known is not None:
            return known
        user = self.users.get(dossier.user.id)
        if user is None:
            user = self._install_user(dossier)
        project = self.projects.get(dossier.project.id)
        if project is None:
            project = self._install_project(dossier)
        terms = key_terms(dossier.key, dossier.user, dossier.limits)
        budgets = {
            window: budget_meter(
                dossier.key.line_id, window, limit, dossier.key_budgets[window], dossier.read_us, "key_budget"
            )
            for window, limit in terms.budgets().items()
        }
        account = KeyAccount(terms, user, project, dossier.key_used, self._per_second, budgets)
        mates = self._lines.setdefault(dossier.key.line_id, [])
        if mates:
            account.join(mates[0])
        else:
            self._count_recent([entry for entry in dossier.recent if entry.key_id in dossier.line], account)
        mates.append(account)
        self.keys[key_id] = account
        return account

    def _install_user(self, dossier: Dossier) -> UserAccount:
        balance = dossier.balance
        meter = Meter("insufficient_balance", "balance", dossier.user.id, balance.credited_nano, balance.charged_nano)
        meter.held = self._held_back.get(dossier.user.id, 0)
        user = UserAccount(user_terms(dossier.user, dossier.tier), meter)
        self._count_recent(dossier.recent, user)
        self.users[dossier.user.id] = user
        return user

    def _install_project(self, dossier: Dossier) -> ProjectAccount:
        project_id = dossier.project.id
        budgets = {
            window: budget_meter(project_id, window, limit_nano, used, dossier.read_us)
            for window, (limit_nano, used) in dossier.budgets.items()
        }
        project = ProjectAccount(project_id, dossier.project.active, budgets)
        self.projects[project_id] = project
        return project

    def _count_recent(self, recent: list[RecentUse], account: UserAccount | KeyAccount) -> None:
        """Bring the minute windows up to what the last minute saw before this process."""
        steady_s = self._clock.monotonic_s()
        now_us = self._clock.now_us()
        if account.requests is not None:
            opened = sorted(entry.opened_us for entry in recent if entry.attempt == 1)
            for then_us in opened:
                account.requests.add(int(steady_s - (now_us - then_us) / 1e6), 1)
        if account.tokens is not None:
            for entry in recent:
                account.tokens.add(int(steady_s - (now_us - entry.settled_us) / 1e6), entry.tokens)

    # -- what management changed; each value is the one that was committed ---------------------------------------------

    def change_key(self, key: ApiKey) -> None:
        """A key got an end."""
        self.changed()
        account = self.keys.get(key.id)
        if account is not None:
            principal = msgspec.structs.replace(account.terms.principal, expires_us=key.ends_us())
            account.terms = msgspec.structs.replace(account.terms, principal=principal, ends_us=key.ends_us())

    def find_line(self, line_id: KeyId) -> KeyAccount | None:
        """A loaded key of a line, any one: they have their limits together."""
        mates = self._lines.get(line_id)
        return mates[0] if mates else None

    def change_key_terms(self, key: ApiKey, used: dict[tuple[str, str], int], counted_us: int) -> list[Meter]:
        """A key got other limits, and its line with it, or other rights. ``used`` counts for those limits that are new,
        by kind and window, at a moment. Returns the meters that were made now.
        """
        self.changed()
        mates = self._lines.get(key.line_id)
        if not mates:
            return []
        limits, line_id = key.limits, key.line_id
        fresh: dict[tuple[str, str], Meter] = {}
        for (kind, window), amount in used.items():
            if kind == "key_tokens" and limits.token_limit is not None:
                fresh[kind, window] = Meter("quota_exceeded", kind, line_id, limits.token_limit, amount)
            elif kind == "key_spending" and limits.spending_limit_nano is not None:
                fresh[kind, window] = Meter("spending_limit", kind, line_id, limits.spending_limit_nano, amount)
            elif kind == "key_budget":
                fresh[kind, window] = budget_meter(line_id, window, 0, amount, counted_us, kind)
        for mate in mates:
            self._change_terms(mate, key)
        for window, limit in mates[0].terms.budgets().items():
            if ("key_budget", window) in fresh:
                fresh["key_budget", window].limit = limit
        mates[0].change(mates[0].terms, fresh)
        for mate in mates[1:]:
            mate.join(mates[0])
        return list(fresh.values())

    def _change_terms(self, account: KeyAccount, key: ApiKey) -> None:
        principal, ends_us = account.terms.principal, account.terms.ends_us
        if principal.key_id == key.id:
            ends_us = key.ends_us()
            principal = msgspec.structs.replace(
                principal, models=frozenset(key.models), endpoints=frozenset(key.endpoints), expires_us=ends_us
            )
        account.terms = KeyTerms(principal, ends_us, line_id=key.line_id, **msgspec.structs.asdict(key.limits))

    def change_project(self, project: Project) -> list[KeyId]:
        """A project was let in or shut out; returns its loaded keys."""
        self.changed()
        account = self.projects.get(project.id)
        if account is None:
            return []
        account.active = project.active
        return [key_id for key_id, key in self.keys.items() if key.project is account]

    def change_user(self, user: User, tier: Tier) -> list[KeyId]:
        """A user was let in, shut out or moved to another tier; returns their loaded keys."""
        self.changed()
        account = self.users.get(user.id)
        if account is None:
            return []
        account.change(user_terms(user, tier))
        mine = [key_id for key_id, key in self.keys.items() if key.user is account]
        for key_id in mine:
            key = self.keys[key_id]
            principal = msgspec.structs.replace(key.terms.principal, tier_id=tier.id)
            key.terms = msgspec.structs.replace(key.terms, principal=principal)
            key.gather()
        return mine

    def change_tier(self, tier: Tier) -> None:
        """A tier got other limits."""
        self.changed()
        users = {user for user in self.users.values() if user.terms.tier_id == tier.id}
        for user in users:
            user.change(
                msgspec.structs.replace(
                    user.terms,
                    prepaid=tier.prepaid,
                    requests_per_minute=tier.requests_per_minute,
                    tokens_per_minute=tier.tokens_per_minute,
                    concurrency=tier.concurrency,
                )
            )
        for key in self.keys.values():
            if key.user in users:
                key.gather()

    @contextlib.contextmanager
    def holding_back(self, user_id: UserId, amount_nano: int) -> Iterator[None]:
        """Keep so much of a balance from requests, loaded or not. Raises Refused where they hold it already."""
        user = self.users.get(user_id)
        if user is not None:
            left_nano = user.balance.left()
            if left_nano < amount_nano:
                raise cannot_take_off(left_nano, amount_nano)
            user.balance.held += amount_nano
        self._held_back[user_id] = self._held_back.get(user_id, 0) + amount_nano
        try:
            yield
        finally:
            self._held_back[user_id] -= amount_nano
            if not self._held_back[user_id]:
                del self._held_back[user_id]
            user = self.users.get(user_id)
            if user is not None:
                user.balance.held -= amount_nano

    def change_balance(self, user_id: UserId, credited_nano: int) -> None:
        """Something was paid in or taken off."""
        self.changed()
        user = self.users.get(user_id)
        if user is not None:
            user.balance.limit = credited_nano

    def follow_balance(self, user_id: UserId, balance: Balance) -> None:
        """Others were at a balance: paid in, used, closed off. What is left counts, by this node's own sum of use."""
        self.changed()
        user = self.users.get(user_id)
        if user is not None:
            user.balance.limit = user.balance.used + balance.credited_nano - balance.charged_nano

    def close_period(self, user_id: UserId, credited_nano: int) -> None:
        """Charges were closed off; so much counts as paid in now. Whoever was read since then knows that already."""
        self.changed()
        user = self.users.get(user_id)
        if user is not None:
            user.balance.used -= user.balance.limit - credited_nano
            user.balance.limit = credited_nano

    def change_budget(
        self, project_id: ProjectId, window: str, limit_nano: int | None, used: int, counted_us: int
    ) -> Meter | None:
        """A budget was set or (None) removed; returns the meter of one that is new to a loaded project."""
        self.changed()
        project = self.projects.get(project_id)
        if project is None:
            return None
        known = project.budgets.pop(window, None)
        fresh = None
        if limit_nano is not None and known is not None:
            known.limit = limit_nano
            project.budgets[window] = known
        elif limit_nano is not None:
            fresh = budget_meter(project_id, window, limit_nano, used, counted_us)
            project.budgets[window] = fresh
        for key in self.keys.values():
            if key.project is project:
                key.gather()
        return fresh
