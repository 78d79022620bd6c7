"""The operations on users, keys, tiers and projects, as JSON rows."""

import msgspec

from stentor.control.management import Management
from stentor.control.money.plans import Plans, ProjectAsk, ProjectChange, TierAsk, TierChange
from stentor.control.people.changes import Changes, KeyChange, UserChange
from stentor.control.reading import (
    Operation,
    Row,
    actor_of,
    limit_of,
    number_of,
    page_of,
    read_body,
    text_of,
)
from stentor.control.wanted import KeyAsk
from stentor.core.operator import Task
from stentor.people.values import KeyLimits


class _UserKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key for a user whom the path names."""

    name: str = ""
    project: str = ""
    scopes: tuple[str, ...] = ("inference",)
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    limits: KeyLimits | None = None
    expires_us: int | None = None


class PeopleOperations:
    """Who may use the server, and how much."""

    def __init__(self, management: Management, changes: Changes, plans: Plans) -> None:
        self._management = management
        self._changes = changes
        self._plans = plans

    def table(self) -> dict[str, Operation]:
        """The operations by name."""
        return {
            "get_user": self.get_user,
            "change_user": self.change_user,
            "deactivate_user": self.deactivate_user,
            "create_user_key": self.create_user_key,
            "list_ledger": self.list_ledger,
            "change_key": self.change_key,
            "list_tiers": self.list_tiers,
            "create_tier": self.create_tier,
            "change_tier": self.change_tier,
            "delete_tier": self.delete_tier,
            "list_projects": self.list_projects,
            "get_project": self.get_project,
            "create_project": self.create_project,
            "change_project": self.change_project,
            "deactivate_project": self.deactivate_project,
        }

    async def get_user(self, task: Task) -> Row:
        """One user."""
        return (await self._changes.get_user(task.params["id"])).row()

    async def change_user(self, task: Task) -> Row:
        """Change a user."""
        change = read_body(task.body, UserChange)
        return (await self._changes.change_user(actor_of(task), task.params["id"], change)).row()

    async def deactivate_user(self, task: Task) -> Row:
        """Shut a user out; what they used stays in the books."""
        change = UserChange(active=False)
        return (await self._changes.change_user(actor_of(task), task.params["id"], change)).row()

    async def create_user_key(self, task: Task) -> Row:
        """A new key for a user."""
        ask = read_body(task.body, _UserKey)
        wanted = KeyAsk(user=task.params["id"], **{name: getattr(ask, name) for name in ask.__struct_fields__})
        made = await self._management.add_key(actor_of(task), wanted, creator=task.creator)  # type: ignore[arg-type]
        return made.row()

    async def list_ledger(self, task: Task) -> Row:
        """A user's top-ups, adjustments and period closes."""
        limit = limit_of(task.query)
        before = number_of(task.query, "after")
        rows = await self._changes.list_ledger(task.params["id"], before=before, limit=limit)
        after = str(rows[-1].id) if len(rows) == limit else None
        return page_of([msgspec.to_builtins(row) for row in rows], after)

    async def change_key(self, task: Task) -> Row:
        """Change a key."""
        change = read_body(task.body, KeyChange)
        key = await self._changes.change_key(actor_of(task), task.params["id"], change, creator=task.creator)
        row: Row = msgspec.to_builtins(key)
        return row

    async def list_tiers(self, task: Task) -> Row:
        """All tiers."""
        return page_of([msgspec.to_builtins(tier) for tier in await self._management.list_tiers()], None)

    async def create_tier(self, task: Task) -> Row:
        """A new tier."""
        row: Row = msgspec.to_builtins(await self._plans.add_tier(actor_of(task), read_body(task.body, TierAsk)))
        return row

    async def change_tier(self, task: Task) -> Row:
        """Change a tier."""
        change = read_body(task.body, TierChange)
        row: Row = msgspec.to_builtins(await self._plans.change_tier(actor_of(task), task.params["id"], change))
        return row

    async def delete_tier(self, task: Task) -> Row:
        """Remove a tier; returns what it was."""
        row: Row = msgspec.to_builtins(await self._plans.delete_tier(actor_of(task), task.params["id"]))
        return row

    async def list_projects(self, task: Task) -> Row:
        """Projects with their budgets."""
        limit = limit_of(task.query)
        views = await self._plans.list_projects(
            user=text_of(task.query, "user"), after=text_of(task.query, "after") or "", limit=limit
        )
        return page_of([view.row() for view in views], views[-1].project.id if len(views) == limit else None)

    async def get_project(self, task: Task) -> Row:
        """One project."""
        return (await self._plans.get_project(task.params["id"])).row()

    async def create_project(self, task: Task) -> Row:
        """A new project."""
        return (await self._plans.add_project(actor_of(task), read_body(task.body, ProjectAsk))).row()

    async def change_project(self, task: Task) -> Row:
        """Change a project."""
        change = read_body(task.body, ProjectChange)
        return (await self._plans.change_project(actor_of(task), task.params["id"], change)).row()

    async def deactivate_project(self, task: Task) -> Row:
        """Close a project; what it used stays in the books."""
        change = ProjectChange(active=False)
        return (await self._plans.change_project(actor_of(task), task.params["id"], change)).row()
