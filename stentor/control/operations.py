"""Management as JSON rows: one shape for the admin API and for the command line beside a server that doesn't run."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from stentor.audit.log import Actor
from stentor.control.management import Management
from stentor.control.reading import (
    Operation,
    Query,
    Row,
    actor_of,
    limit_of,
    number_of,
    page_of,
    read_body,
    text_of,
    usage_filter,
)
from stentor.control.wanted import Finding, KeyAsk, Rotation, UserAsk
from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.core.operator import Task
from stentor.core.scheduler import ModelCard, Scheduler

INSTANCES_MAX = 64


class _TopUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    amount_nano: int
    note: str = ""
    reference: str | None = None


class _Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    instances: int = 1


class Operations:
    """Every management operation by name; ``body`` is decoded JSON, ``query`` the query string's last values."""

    def __init__(self, management: Management, scheduler: Scheduler) -> None:
        self._management = management
        self._scheduler = scheduler
        self._table = self._make_table()
        self.checks: list[Callable[[], Awaitable[list[Finding]]]] = []

    def add(self, table: Mapping[str, Operation]) -> None:
        """Take in the operations of another noun, by name."""
        self._table |= table

    def names(self) -> set[str]:
        """All operations' names."""
        return set(self._table)

    async def perform(self, name: str, task: Task) -> Row:
        """Do the operation of this name: that of the route's handler. Raises Refused."""
        return await self._table[name](task)

    def _make_table(self) -> dict[str, Operation]:
        """Every operation by the name that the surface calls it."""
        return {
            "list_keys": lambda task: self.list_keys(task.query),
            "create_key": lambda task: self.create_key(actor_of(task), task.body, task.creator),
            "revoke_key": lambda task: self.revoke_key(actor_of(task), task.params["id"]),
            "rotate_key": lambda task: self.rotate_key(actor_of(task), task.params["id"], task.body, task.creator),
            "list_users": lambda task: self.list_users(task.query),
            "create_user": lambda task: self.create_user(actor_of(task), task.body),
            "top_up": lambda task: self.top_up(actor_of(task), task.params["id"], task.body),
            "list_usage": lambda task: self.list_usage(task.query),
            "list_model_cards": lambda task: self.list_models(),
            "start_model": lambda task: self.start_model(actor_of(task), task.params["id"], task.body),
            "stop_model": lambda task: self.stop_model(actor_of(task), task.params["id"]),
            "doctor": lambda task: self.doctor(),
        }

    async def list_keys(self, query: Query) -> Row:
        """Keys, newest first."""
        limit = limit_of(query)
        keys = await self._management.list_keys(user=text_of(query, "user"), after=text_of(query, "after"), limit=limit)
        return page_of([msgspec.to_builtins(key) for key in keys], keys[-1].id if len(keys) == limit else None)

    async def create_key(self, actor: Actor, body: Any, creator: str | None = None) -> Row:
        """A new key, with its text this once."""
        made = await self._management.add_key(actor, read_body(body, KeyAsk), creator=creator)  # type: ignore[arg-type]
        return made.row()

    async def revoke_key(self, actor: Actor, key_id: str) -> Row:
        """End a key."""
        row: Row = msgspec.to_builtins(await self._management.revoke_key(actor, key_id))
        return row

    async def rotate_key(self, actor: Actor, key_id: str, body: Any, creator: str | None = None) -> Row:
        """Replace a key."""
        grace_s = read_body(body, Rotation).grace_s
        made = await self._management.rotate_key(actor, key_id, grace_s=grace_s, creator=creator)  # type: ignore[arg-type]
        return made.row()

    async def list_users(self, query: Query) -> Row:
        """Users by name."""
        limit = limit_of(query)
        views = await self._management.list_users(after=text_of(query, "after") or "", limit=limit)
        return page_of([view.row() for view in views], views[-1].user.name if len(views) == limit else None)

    async def create_user(self, actor: Actor, body: Any) -> Row:
        """A new user."""
        return (await self._management.add_user(actor, read_body(body, UserAsk))).row()

    async def top_up(self, actor: Actor, user: str, body: Any) -> Row:
        """Add to a balance."""
        ask = read_body(body, _TopUp)
        view = await self._management.top_up(actor, user, ask.amount_nano, note=ask.note, reference=ask.reference)
        return view.row()

    async def list_usage(self, query: Query) -> Row:
        """Usage events, newest first."""
        where = msgspec.structs.replace(usage_filter(query), request_id=text_of(query, "request_id"))
        page = await self._management.list_usage(where, before=number_of(query, "after"), limit=limit_of(query))
        after = str(page.next) if page.next is not None else None
        return page_of([msgspec.to_builtins(event) for event in page.events], after)

    async def list_models(self) -> Row:
        """The catalogue."""
        return page_of([msgspec.to_builtins(card) for card in await self._scheduler.list_models()], None)

    async def start_model(self, actor: Actor, name: str, body: Any) -> Row:
        """Bring a model up."""
        instances = read_body(body, _Start).instances
        if not 1 <= instances <= INSTANCES_MAX:
            raise Refused("invalid_request", f"instances is {instances}; use 1 to {INSTANCES_MAX}.", param="instances")
        card = await self._get_model(name)
        await self._management.record(actor, "model_start", ("model", card.id), {"instances": instances})
        await self._scheduler.start(card.id, instances)
        return await self._describe(card.id)

    async def stop_model(self, actor: Actor, name: str) -> Row:
        """Stop a model."""
        card = await self._get_model(name)
        await self._scheduler.stop(card.id)
        # Afterwards: an engine must be stoppable even while nothing can be written.
        await self._management.record(actor, "model_stop", ("model", card.id), {})
        return await self._describe(card.id)

    async def _describe(self, model: ModelId) -> Row:
        row: Row = msgspec.to_builtins(await self._get_model(model))
        return row

    async def _get_model(self, name: str) -> ModelCard:
        card = await self._scheduler.find_model(name)
        if card is None:
            raise Refused("model_not_found", f"There is no model '{name[:128]}'; `stentor models list` shows all.")
        return card

    async def doctor(self) -> Row:
        """What the books say of themselves."""
        findings = await self._management.doctor_books()
        for check in self.checks:
            findings += await check()
        return page_of([msgspec.to_builtins(finding) for finding in findings], None)
