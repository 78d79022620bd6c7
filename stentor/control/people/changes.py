"""Changes to users and keys that exist: one transaction with its audit row, then in memory."""

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection

from stentor.accounting.ledger import LedgerEntry, clear_limit, find_balance, list_ledger, start_limit
from stentor.accounting.meters import calendar_window
from stentor.audit.log import Actor, record_change
from stentor.control.books import LocalBooks
from stentor.control.management import Management
from stentor.control.reading import given
from stentor.control.wanted import UserView, check_within
from stentor.core.clock import Clock
from stentor.core.ids import KeyId, TierId, UserId
from stentor.core.principal import is_narrowed
from stentor.people import api_keys, tiers, users
from stentor.people.sessions import end_sessions
from stentor.people.values import ApiKey, KeyLimits, Tier, User
from stentor.store.database import Database

_COUNTED_LIMITS = {
    "token_limit": ("key_tokens", "none"),
    "spending_limit_nano": ("key_spending", "none"),
    "budget_day_nano": ("key_budget", "day"),
    "budget_month_nano": ("key_budget", "month"),
}


class UserChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change of a user; what isn't there stays. ``password_temporary``: must be changed at sign-in."""

    active: bool | UnsetType = UNSET
    tier: str | UnsetType = UNSET
    role: Literal["user", "admin"] | UnsetType = UNSET
    email: str | UnsetType | None = UNSET
    password: str | UnsetType = UNSET
    password_temporary: bool = False


class LimitsChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits that are to change; null lifts one."""

    token_limit: int | UnsetType | None = UNSET
    spending_limit_nano: int | UnsetType | None = UNSET
    requests_per_minute: int | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    concurrency: int | UnsetType | None = UNSET
    budget_day_nano: int | UnsetType | None = UNSET
    budget_month_nano: int | UnsetType | None = UNSET


class KeyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change of a key; what isn't there stays."""

    name: str | UnsetType = UNSET
    models: tuple[str, ...] | UnsetType = UNSET
    endpoints: tuple[str, ...] | UnsetType = UNSET
    expires_us: int | UnsetType | None = UNSET
    limits: LimitsChange | UnsetType = UNSET


class Changes:
    """Lives on the books' event loop, as :class:`~stentor.control.management.Management` does."""

    def __init__(
        self,
        database: Database,
        books: LocalBooks,
        management: Management,
        clock: Clock,
        forget_sessions: Callable[[UserId], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._books = books
        self._management = management
        self._clock = clock
        self._forget_sessions = forget_sessions

    # -- users -------------------------------------------------------------------------------------------------------

    async def get_user(self, user: str) -> UserView:
        """One user by id, name or email. Raises Refused."""

        def read(connection: Connection) -> UserView:
            found = users.get_user(connection, user)
            return UserView(found, find_balance(connection, found.id).left_nano)

        return await self._database.read(read)

    async def change_user(self, actor: Actor, user: str, change: UserChange) -> UserView:
        """Change a user. Shut out, all their keys stop at once; whoever is no admin any more keeps no admin key."""
        values = given(change)
        del values["password_temporary"]
        if "tier" in values:
            values["tier_id"] = TierId(values.pop("tier"))
        if "password" in values:
            values["password_hash"] = await self._management.passwords.hash(values.pop("password"))
            values["password_temporary"] = change.password_temporary

        def work(connection: Connection) -> tuple[User, Tier, list[ApiKey], int]:
            now_us = self._clock.now_us()
            old = users.get_user(connection, user)
            found = users.change_user(connection, old, values, now_us)
            before, after = _visible(old, values), _visible(found, values)
            record_change(connection, now_us, actor, "user_change", ("user", old.id), before=before, after=after)
            if not found.active or found.role != old.role or "password_hash" in values:
                end_sessions(connection, found.id)
            ended = self._end_admin_keys(connection, actor, found, now_us) if old.role != found.role else []
            left_nano = find_balance(connection, found.id).left_nano
            return found, tiers.get_tier(connection, found.tier_id), ended, left_nano

        found, tier, ended, left_nano = await self._database.write(work)
        self._forget_sessions(found.id)
        for key in ended:
            self._books.roll.change_key(key)
            self._books.tell_revoked(key.id)
        for key_id in self._books.roll.change_user(found, tier):
            if not found.active:
                self._books.tell_revoked(key_id)
        return UserView(found, left_nano)

    def _end_admin_keys(self, connection: Connection, actor: Actor, user: User, now_us: int) -> list[ApiKey]:
        if user.role == "admin":
            return []
        ended = []
        for key in api_keys.list_keys(connection, user_id=user.id, limit=100_000):
            if "admin" in key.scopes and key.is_valid(now_us):
                ended.append(api_keys.revoke_key(connection, key.id, now_us))
                record_change(connection, now_us, actor, "key_revoke", ("key", key.id), after={"revoked_us": now_us})
        return ended

    async def list_ledger(self, user: str, *, before: int | None = None, limit: int = 100) -> list[LedgerEntry]:
        """What was paid in and taken off, newest first."""

        def read(connection: Connection) -> list[LedgerEntry]:
            found = users.get_user(connection, user)
            return list_ledger(connection, found.id, before_id=before, limit=limit)

        return await self._database.read(read)

    # -- keys --------------------------------------------------------------------------------------------------------

    async def change_key(
        self, actor: Actor, key_id: str, change: KeyChange, *, creator: str | None = None, owner: str | None = None
    ) -> ApiKey:
        """Change a key's name, rights or limits; what runs with it ends if it may do less.

        With ``creator`` it may do no more than that key afterwards. With ``owner`` only a key of that user is found.
        New limits count what the key has used before.
        """
        values, now_us = given(change), self._clock.now_us()

        def work(connection: Connection) -> tuple[bool, ApiKey, ApiKey, dict[tuple[str, str], int]]:
            old = api_keys.get_key_of(connection, KeyId(key_id), owner)
            if "limits" in values:
                api_keys.check_newest(connection, old)
                values["limits"] = msgspec.structs.replace(old.limits, **given(change.limits))  # type: ignore[arg-type]
            # Before the change: it may be the very key that asks.
            most = None if creator is None else api_keys.get_key_in_line(connection, KeyId(creator))
            key = api_keys.change_key(connection, old, values)
            if most is not None:
                check_within(most, key)
            before = {name: getattr(old, name) for name in values}
            after = {name: getattr(key, name) for name in values}
            record_change(
                connection, now_us, actor, "key_change", ("key", key.id),
                before=msgspec.to_builtins(before), after=msgspec.to_builtins(after),
            )  # fmt: skip
            used = _start_limits(connection, old.limits, key, now_us)
            ended = is_narrowed(old, key) or not key.is_valid(now_us)
            return ended, key, api_keys.get_key_in_line(connection, key.id), used

        ended, key, in_line, used = await self._database.write(work)
        meters = self._books.roll.change_key_terms(in_line, used, now_us)
        if {"models", "endpoints", "expires_us"} & values.keys():
            (self._books.tell_revoked if ended else self._books.tell_changed)(key.id)
        for meter in meters:
            # Settlements count from here on; those that came between the sum and this moment are added now.
            name = (meter.kind, meter.subject, meter.window, meter.window_start)
            limit = meter.limit
            missing = await self._database.write(
                lambda connection, name=name, limit=limit: start_limit(  # type: ignore[misc]
                    connection, name, limit, api_keys.list_line(connection, key.line_id)
                )
            )
            if meter.window_start == name[3]:
                meter.used += missing
        return key


def _visible(user: User, values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: "set" if name == "password_hash" else getattr(user, name)
        for name in values
        if name == "password_hash" or name in user.__struct_fields__
    }


def _start_limits(connection: Connection, old: KeyLimits, key: ApiKey, now_us: int) -> dict[tuple[str, str], int]:
    """Count what the key has used for limits that are new, forget the counts of those that are gone."""
    used = {}
    for field, (kind, window) in _COUNTED_LIMITS.items():
        was, limit = getattr(old, field), getattr(key.limits, field)
        if limit is None and was is not None:
            clear_limit(connection, kind, key.line_id, window)
        elif limit is not None and was is None:
            start = 0 if window == "none" else calendar_window(window, now_us)[0]
            clear_limit(connection, kind, key.line_id, window)
            line = api_keys.list_line(connection, key.line_id)
            used[kind, window] = start_limit(connection, (kind, key.line_id, window, start), limit, line)
    return used
