"""The operations of users on their own account, as JSON rows."""

import datetime
from typing import Any

import msgspec

from stentor.accounting.usage import UsageFilter
from stentor.control.management import Management
from stentor.control.money.reports import ReportRow, Reports
from stentor.control.people.account import Account
from stentor.control.people.changes import Changes, KeyChange
from stentor.control.reading import Operation, Row, actor_of, limit_of, number_of, page_of, read_body, text_of
from stentor.control.wanted import KeyAsk, Rotation
from stentor.core.errors import Refused
from stentor.core.operator import Task
from stentor.core.scheduler import Scheduler
from stentor.people.values import KeyLimits

DAYS_MAX = 366
_DAY_S = 86_400


class _OwnKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    project: str = ""
    scopes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    limits: KeyLimits | None = None
    expires_us: int | None = None


class AccountOperations:
    """``/user/api``, and the public list of models."""

    def __init__(
        self, account: Account, management: Management, changes: Changes, reports: Reports, scheduler: Scheduler
    ) -> None:
        self._account = account
        self._management = management
        self._changes = changes
        self._reports = reports
        self._scheduler = scheduler

    def table(self) -> dict[str, Operation]:
        """The operations by name."""
        return {
            "get_me": self.get_me,
            "get_own_usage": self.get_usage,
            "list_own_models": self.list_models,
            "get_own_limits": self.get_limits,
            "list_own_keys": self.list_keys,
            "create_own_key": self.create_key,
            "change_own_key": self.change_key,
            "revoke_own_key": self.revoke_key,
            "rotate_own_key": self.rotate_key,
            "list_public_models": self.list_public_models,
        }

    async def get_me(self, task: Task) -> Row:
        """Who the caller is."""
        me = await self._account.get_me(task.user_id)
        user = msgspec.to_builtins(me.user)
        return {**user, "tier": msgspec.to_builtins(me.tier), "balance_nano": me.balance_nano}

    async def get_usage(self, task: Task) -> Row:
        """The caller's usage of the last days, by day and by model."""
        me = await self._account.get_me(task.user_id)
        asked = number_of(task.query, "days")
        days = 30 if asked is None else asked
        if not 1 <= days <= DAYS_MAX:
            raise Refused("invalid_request", f"'days' is {days}; it must be 1 to {DAYS_MAX}.", param="days")
        today = datetime.datetime.now(datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        since_us = int(today.timestamp() - (days - 1) * _DAY_S) * 1_000_000
        where = UsageFilter(user_id=me.user.id, since_us=since_us)
        daily, _ = await self._reports.report(where, "day", limit=DAYS_MAX + 1)
        models, _ = await self._reports.report(where, "model", limit=1000)
        return {
            "days": days,
            "totals": _total(daily),
            "daily": [msgspec.to_builtins(row) for row in daily],
            "models": [msgspec.to_builtins(row) for row in models],
        }

    async def list_models(self, task: Task) -> Row:
        """The models that the caller may use, with their prices."""
        allowed = await self._account.find_allowed_models(task.creator)
        rows = []
        for card in await self._scheduler.list_models():
            if allowed and card.id not in allowed:
                continue
            price = self._account.find_price(card.id)
            rows.append(
                {
                    "id": card.id,
                    "aliases": list(card.aliases),
                    "abilities": list(card.abilities),
                    "context_size": card.context_size,
                    "state": card.state,
                    "price": None if price is None else msgspec.to_builtins(price),
                }
            )
        return page_of(rows, None)

    async def list_public_models(self, task: Task) -> Row:
        """What is served here, without a key: names, abilities, context."""
        rows: list[Any] = [
            {
                "id": card.id,
                "abilities": list(card.abilities),
                "context_size": card.context_size,
                "state": card.state,
            }
            for card in await self._scheduler.list_models()
        ]
        return page_of(rows, None)

    async def get_limits(self, task: Task) -> Row:
        """What of the caller's limits is left."""
        row: Row = msgspec.to_builtins(await self._account.get_rate_limits(task.user_id))
        return row

    async def list_keys(self, task: Task) -> Row:
        """The caller's keys."""
        me = await self._account.get_me(task.user_id)
        limit = limit_of(task.query)
        keys = await self._management.list_keys(user=me.user.id, after=text_of(task.query, "after"), limit=limit)
        return page_of([msgspec.to_builtins(key) for key in keys], keys[-1].id if len(keys) == limit else None)

    async def create_key(self, task: Task) -> Row:
        """A key of the caller's own."""
        me = await self._account.get_me(task.user_id)
        own = read_body(task.body, _OwnKey)
        fields = {name: getattr(own, name) for name in own.__struct_fields__}
        fields["scopes"] = own.scopes or await self._account.find_own_scopes(task.creator)
        ask = KeyAsk(user=me.user.id, **fields)
        await self._account.check_own_ask(me.user.id, ask)
        made = await self._management.add_key(actor_of(task), ask, creator=task.creator)  # type: ignore[arg-type]
        return made.row()

    async def change_key(self, task: Task) -> Row:
        """Change one of the caller's keys; over a key, not beyond that one."""
        change = read_body(task.body, KeyChange)
        key = await self._changes.change_key(
            actor_of(task), task.params["id"], change, creator=task.creator, owner=task.user_id
        )
        row: Row = msgspec.to_builtins(key)
        return row

    async def revoke_key(self, task: Task) -> Row:
        """End one of the caller's keys."""
        await self._account.check_own_key(task.user_id, task.params["id"])
        row: Row = msgspec.to_builtins(await self._management.revoke_key(actor_of(task), task.params["id"]))
        return row

    async def rotate_key(self, task: Task) -> Row:
        """Replace one of the caller's keys."""
        await self._account.check_own_key(task.user_id, task.params["id"])
        grace_s = read_body(task.body, Rotation).grace_s
        made = await self._management.rotate_key(
            actor_of(task),
            task.params["id"],
            grace_s=grace_s,
            creator=task.creator,  # type: ignore[arg-type]
        )
        return made.row()


def _total(rows: list[ReportRow]) -> Row:
    names = ("events", "input_tokens", "cached_tokens", "output_tokens", "cost_nano", "absorbed_nano")
    return {name: sum(getattr(row, name) for row in rows) for name in names}
