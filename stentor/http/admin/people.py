"""Users, keys, tiers and projects: wire types and routes."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from stentor.http.admin import wire
from stentor.http.route import Route, admin, listing


class ChangeUserRequest(msgspec.Struct, omit_defaults=True):
    """What is to change; what is left out stays. ``password_temporary``: to be changed at the next sign-in."""

    active: bool | UnsetType = UNSET
    tier: str | UnsetType = UNSET
    role: Literal["user", "admin"] | UnsetType = UNSET
    email: str | UnsetType | None = UNSET
    password: str | UnsetType = UNSET
    password_temporary: bool = False


class ChangeLimits(msgspec.Struct, omit_defaults=True):
    """Limits that are to change; null lifts one."""

    token_limit: int | UnsetType | None = UNSET
    spending_limit_nano: int | UnsetType | None = UNSET
    requests_per_minute: int | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    concurrency: int | UnsetType | None = UNSET
    budget_day_nano: int | UnsetType | None = UNSET
    budget_month_nano: int | UnsetType | None = UNSET


class ChangeKeyRequest(msgspec.Struct, omit_defaults=True):
    """What is to change of a key; empty lists mean all."""

    name: str | UnsetType = UNSET
    models: list[str] | UnsetType = UNSET
    endpoints: list[str] | UnsetType = UNSET
    expires_us: int | UnsetType | None = UNSET
    limits: ChangeLimits | UnsetType = UNSET


class UserKeyRequest(msgspec.Struct, omit_defaults=True):
    """A key for the user of the path; empty lists mean all."""

    name: str = ""
    project: str = ""
    scopes: tuple[str, ...] = ("inference",)
    models: list[str] = []
    endpoints: list[str] = []
    limits: wire.KeyLimits | None = None
    expires_us: int | None = None


class LedgerEntry(msgspec.Struct):
    """A movement of a prepaid balance in nano-USD; positive adds to it."""

    id: int
    user_id: str
    kind: Literal["opening", "top_up", "adjustment", "period_close"]
    amount_nano: int
    reference: str | None
    note: str
    actor: str
    created_us: int


class LedgerPage(msgspec.Struct):
    """A page of movements, newest first."""

    data: list[LedgerEntry]
    next: str | None


class Tier(msgspec.Struct):
    """Limits of a kind of account, each over all keys of a user; null: none. ``prepaid``: paid from a balance."""

    id: str
    name: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    prepaid: bool


class TierPage(msgspec.Struct):
    """All tiers."""

    data: list[Tier]
    next: None


class CreateTierRequest(msgspec.Struct, omit_defaults=True):
    """A tier to be made."""

    id: str
    name: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    prepaid: bool = False


class ChangeTierRequest(msgspec.Struct, omit_defaults=True):
    """What is to change of a tier; null lifts a limit."""

    name: str | UnsetType = UNSET
    requests_per_minute: int | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    concurrency: int | UnsetType | None = UNSET
    prepaid: bool | UnsetType = UNSET


class Budget(msgspec.Struct):
    """A project's budget in nano-USD, what is used of it now, and when it begins anew (null: never)."""

    window: Literal["none", "day", "month"]
    limit_nano: int
    used_nano: int
    resets_us: int | None


class Project(msgspec.Struct):
    """A team's purse. Personal ones are made with their user."""

    id: str
    name: str
    owner_id: str
    personal: bool
    active: bool
    created_us: int
    budgets: list[Budget]


class ProjectPage(msgspec.Struct):
    """A page of projects, oldest first."""

    data: list[Project]
    next: str | None


class CreateProjectRequest(msgspec.Struct, omit_defaults=True):
    """A project to be made; ``owner`` is a name, email or id, ``budgets`` are nano-USD by window."""

    name: str
    owner: str
    budgets: dict[Literal["none", "day", "month"], int] = {}


class ChangeProjectRequest(msgspec.Struct, omit_defaults=True):
    """What is to change of a project; a budget of null is lifted."""

    name: str | UnsetType = UNSET
    active: bool | UnsetType = UNSET
    budgets: dict[Literal["none", "day", "month"], int | None] = {}


ROUTES: tuple[Route, ...] = (
    admin("GET", "/users/{id}", "get_user", "One user.", None, wire.User),
    admin("PATCH", "/users/{id}", "change_user", "Change a user.", ChangeUserRequest, wire.User),
    admin("DELETE", "/users/{id}", "deactivate_user", "Shut a user out, with all keys.", None, wire.User),
    admin("POST", "/users/{id}/apikey", "create_user_key", "Make a key for a user.", UserKeyRequest, wire.NewKey),
    listing("/users/{id}/ledger", "list_ledger", "What was paid in and taken off, newest first.", LedgerPage),
    admin("PATCH", "/api-keys/{id}", "change_key", "Change a key's rights or limits.", ChangeKeyRequest, wire.Key),
    admin("GET", "/tiers", "list_tiers", "All tiers.", None, TierPage),
    admin("POST", "/tiers", "create_tier", "Make a tier.", CreateTierRequest, Tier),
    admin("PATCH", "/tiers/{id}", "change_tier", "Change a tier; holds at once.", ChangeTierRequest, Tier),
    admin("DELETE", "/tiers/{id}", "delete_tier", "Remove a tier that nobody has.", None, Tier),
    listing("/projects", "list_projects", "Projects with their budgets, oldest first.", ProjectPage, "user"),
    admin("POST", "/projects", "create_project", "Make a project.", CreateProjectRequest, Project),
    admin("GET", "/projects/{id}", "get_project", "One project.", None, Project),
    admin("PATCH", "/projects/{id}", "change_project", "Change a project.", ChangeProjectRequest, Project),
    admin("DELETE", "/projects/{id}", "deactivate_project", "Close a project, with all its keys.", None, Project),
)
