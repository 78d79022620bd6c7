"""Usage reports, the audit log, the configuration and sign-ups: wire types and routes."""

from typing import Literal

import msgspec

from stentor.http.admin import wire
from stentor.http.route import Route, admin, listing
from stentor.http.wire import Json


class ReportRow(msgspec.Struct):
    """Totals of one day (2026-11-21, UTC) or one subject. Money in nano-USD."""

    group: str
    label: str
    events: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano: int
    absorbed_nano: int


class ReportPage(msgspec.Struct):
    """A page of totals, in the order of days or ids."""

    data: list[ReportRow]
    next: str | None


class Change(msgspec.Struct):
    """One change of state: who, by which way and from where, what; secrets are left out."""

    id: int
    created_us: int
    actor: str
    origin: str
    address: str
    action: str
    subject_kind: str
    subject_id: str
    before: Json | None
    after: Json | None


class ChangePage(msgspec.Struct):
    """A page of changes, newest first."""

    data: list[Change]
    next: str | None


class SettingRow(msgspec.Struct):
    """A setting: its value as text (secrets masked), and where it came from."""

    name: str
    value: str
    origin: str
    group: str
    text: str


class ConfigurationPage(msgspec.Struct):
    """All settings."""

    data: list[SettingRow]
    next: None


class SignupRequest(msgspec.Struct, omit_defaults=True):
    """A request for an account."""

    email: str
    tier: Literal["payg", "sub"] = "payg"
    message: str = ""


class SignupTaken(msgspec.Struct):
    """The same for everybody, known or not."""

    status: Literal["pending"]
    detail: str


class RegisterRequest(msgspec.Struct, omit_defaults=True):
    """What ``llmring register`` sends."""

    email: str
    organization: str | None = None
    project_name: str | None = None
    accept_terms: bool = False


class Registered(msgspec.Struct):
    """A key that works once an administrator has approved; the same answer for everybody, known or not."""

    api_key: str
    api_key_active: bool


class Signup(msgspec.Struct):
    """A request for an account, and what became of it."""

    id: str
    email: str
    tier_id: str
    message: str
    address: str
    state: Literal["pending", "approved", "rejected"]
    user_id: str | None
    decided_by: str
    created_us: int
    decided_us: int | None


class SignupPage(msgspec.Struct):
    """A page of requests, newest first."""

    data: list[Signup]
    next: str | None


class ApproveRequest(msgspec.Struct, omit_defaults=True):
    """Another tier or name than what was asked for."""

    tier: str | None = None
    name: str | None = None


class Approved(msgspec.Struct):
    """The new user and a first key, whose text is shown this once."""

    signup: Signup
    user: wire.User
    key: wire.NewKey


ROUTES: tuple[Route, ...] = (
    listing(
        "/usage/report", "report_usage", "Totals by day, model, key, user or project; as CSV on request.", ReportPage,
        "by", "user", "project", "key", "model", "status", "since_us", "until_us",
    )._replace(also=("text/csv",)),
    listing(
        "/audit", "list_audit", "Who changed what, newest first.", ChangePage,
        "actor", "action", "subject_kind", "subject", "since_us", "until_us",
    )._replace(also=("text/csv",)),
    admin("GET", "/config", "list_configuration", "All settings, secrets masked.", None, ConfigurationPage),
    listing("/signups", "list_signups", "Requests for accounts, newest first.", SignupPage, "state"),
    admin("POST", "/signups/{id}/approve", "approve_signup", "Let somebody in.", ApproveRequest, Approved),
    admin("POST", "/signups/{id}/reject", "reject_signup", "Say no.", None, Signup),
    Route(
        "POST", "/api/signup", "ask_signup", "public", "Ask for an account.", "",
        SignupRequest, SignupTaken, "detail", managed=True,
    ),
    Route(
        "POST", "/api/v1/cli/register", "register_cli", "public", "Ask for an account from llmring's command line.", "",
        RegisterRequest, Registered, "detail", managed=True,
    ),
)  # fmt: skip
