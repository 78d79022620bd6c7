"""Tiers, projects and prices: what people are offered, and what they spend it from."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection

from stentor.accounting.ledger import budget_used
from stentor.accounting.meters import calendar_window
from stentor.accounting.price import Price
from stentor.accounting.prices import PriceEntry, list_prices
from stentor.audit.log import Actor, record_change
from stentor.control.books import LocalBooks
from stentor.control.management import Management
from stentor.control.reading import given
from stentor.core.clock import Clock
from stentor.core.errors import Refused
from stentor.core.ids import ProjectId, TierId
from stentor.people import projects, tiers, users
from stentor.people.values import Project, Tier
from stentor.store.database import Database

Window = Literal["none", "day", "month"]


class TierAsk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tier to be made; ``name`` is its id where it is left out."""

    id: str
    name: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    prepaid: bool = False


class TierChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change of a tier; null lifts a limit."""

    name: str | UnsetType = UNSET
    requests_per_minute: int | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    concurrency: int | UnsetType | None = UNSET
    prepaid: bool | UnsetType = UNSET


class ProjectAsk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A project to be made; ``budgets`` in nano-USD by window."""

    name: str
    owner: str
    budgets: dict[Window, int] = {}


class ProjectChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change of a project; a budget of null is lifted."""

    name: str | UnsetType = UNSET
    active: bool | UnsetType = UNSET
    budgets: dict[Window, int | None] = {}


class PriceAsk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A price from ``effective_us`` on (None: now), nano-USD per million units."""

    model: str
    input_nano: int
    output_nano: int
    cached_nano: int | None = None
    audio_second_nano: int = 0
    character_nano: int = 0
    request_nano: int = 0
    effective_us: int | None = None


class BudgetView(msgspec.Struct, frozen=True):
    """A budget, what is used of it now, and when it begins anew (None: never)."""

    window: str
    limit_nano: int
    used_nano: int
    resets_us: int | None


class ProjectView(msgspec.Struct, frozen=True):
    """A project with its budgets."""

    project: Project
    budgets: list[BudgetView]

    def row(self) -> dict[str, object]:
        """The project's fields and its budgets in one JSON object."""
        return {**msgspec.to_builtins(self.project), "budgets": msgspec.to_builtins(self.budgets)}


class Plans:
    """Lives on the books' event loop."""

    def __init__(self, database: Database, books: LocalBooks, management: Management, clock: Clock) -> None:
        self._database = database
        self._books = books
        self._management = management
        self._clock = clock

    # -- tiers -------------------------------------------------------------------------------------------------------

    async def add_tier(self, actor: Actor, ask: TierAsk) -> Tier:
        """Make a tier. Raises Refused for one that exists."""
        values = msgspec.structs.asdict(ask)
        tier = Tier(**{**values, "name": ask.name or ask.id})
        return await self._management.set_tier(actor, tier, new=True)

    async def change_tier(self, actor: Actor, tier_id: str, change: TierChange) -> Tier:
        """Change a tier; it holds for its users at once."""

        def work(connection: Connection) -> Tier:
            now_us = self._clock.now_us()
            old = tiers.get_tier(connection, TierId(tier_id))
            tier = msgspec.structs.replace(old, **given(change))
            tiers.set_tier(connection, tier, now_us)
            before, after = msgspec.to_builtins(old), msgspec.to_builtins(tier)
            record_change(connection, now_us, actor, "tier_set", ("tier", tier.id), before=before, after=after)
            return tier

        tier = await self._database.write(work)
        self._books.roll.change_tier(tier)
        return tier

    async def delete_tier(self, actor: Actor, tier_id: str) -> Tier:
        """Remove a tier that nobody has."""

        def work(connection: Connection) -> Tier:
            now_us = self._clock.now_us()
            gone = tiers.delete_tier(connection, TierId(tier_id))
            before = msgspec.to_builtins(gone)
            record_change(connection, now_us, actor, "tier_delete", ("tier", gone.id), before=before)
            return gone

        return await self._database.write(work)

    # -- projects ----------------------------------------------------------------------------------------------------

    async def list_projects(self, *, user: str | None = None, after: str = "", limit: int = 100) -> list[ProjectView]:
        """Projects, oldest first, with their budgets; ``after`` is the id of the last one seen."""

        def read(connection: Connection) -> list[ProjectView]:
            owner = None if user is None else users.get_user(connection, user).id
            found = projects.page_projects(connection, owner_id=owner, after_id=after, limit=limit)
            return [self._view(connection, project) for project in found]

        return await self._database.read(read)

    async def get_project(self, project_id: str) -> ProjectView:
        """One project. Raises Refused."""

        def read(connection: Connection) -> ProjectView:
            return self._view(connection, projects.get_project(connection, ProjectId(project_id)))

        return await self._database.read(read)

    def _view(self, connection: Connection, project: Project) -> ProjectView:
        now_us = self._clock.now_us()
        views = []
        for window, limit_nano in projects.list_budgets(connection, project.id).items():
            start, end = (0, None) if window == "none" else calendar_window(window, now_us)
            views.append(BudgetView(window, limit_nano, budget_used(connection, project.id, window, start), end))
        return ProjectView(project, views)

    async def add_project(self, actor: Actor, ask: ProjectAsk) -> ProjectView:
        """Make a project for a team."""
        for limit_nano in ask.budgets.values():
            _check_budget(limit_nano)
        made = await self._management.add_project(actor, ask.name, ask.owner)
        for window, limit_nano in ask.budgets.items():
            await self._management.set_budget(actor, made.id, window, limit_nano)
        return await self.get_project(made.id)

    async def change_project(self, actor: Actor, project_id: str, change: ProjectChange) -> ProjectView:
        """Rename, close or open a project, and set its budgets. Closed, all its keys stop at once."""
        values: dict[str, Any] = given(change)
        del values["budgets"]
        for limit_nano in change.budgets.values():
            _check_budget(limit_nano)

        def work(connection: Connection) -> Project:
            now_us = self._clock.now_us()
            old, found = projects.change_project(connection, ProjectId(project_id), values)
            if values:
                before = {name: getattr(old, name) for name in values}
                record_change(
                    connection, now_us, actor, "project_change", ("project", old.id), before=before, after=values
                )
            return found

        found = await self._database.write(work)
        for key_id in self._books.roll.change_project(found):
            if not found.active:
                self._books.tell_revoked(key_id)
        for window, budget in change.budgets.items():
            await self._management.set_budget(actor, found.id, window, budget)
        return await self.get_project(found.id)

    # -- prices ------------------------------------------------------------------------------------------------------

    async def list_current_prices(self, *, after: str = "", limit: int = 100) -> list[PriceEntry]:
        """What each model costs now, by model."""
        now_us = self._clock.now_us()
        current: dict[str, PriceEntry] = {}
        for entry in await self._database.read(list_prices):
            if entry.effective_us <= now_us:
                current[entry.model] = entry
        return [current[model] for model in sorted(current) if model > after][:limit]

    async def list_price_history(self, model: str) -> list[PriceEntry]:
        """All prices of a model, the latest (which may be to come) first."""
        entries = [entry for entry in await self._database.read(list_prices) if entry.model == model]
        if not entries:
            raise Refused("not_found", f"'{model[:128]}' has no price of its own; `stentor prices list` shows all.")
        return entries[::-1]

    async def set_price(self, actor: Actor, ask: PriceAsk) -> PriceEntry:
        """Give a model a price from now or a later time on."""
        values = msgspec.structs.asdict(ask)
        model, effective_us = values.pop("model"), values.pop("effective_us")
        return await self._management.add_price(actor, model, Price(version=0, **values), effective_us=effective_us)


def _check_budget(limit_nano: int | None) -> None:
    if limit_nano is not None and not 0 <= limit_nano < 2**62:
        raise Refused("invalid_request", "A budget is 0 or more nano-USD, below 2^62.", param="budgets")
