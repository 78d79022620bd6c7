"""``/user/api``: what users see and do about themselves, and the public list of models."""

from typing import Literal

import msgspec

from stentor.http.admin import people, wire
from stentor.http.admin.reports import ReportRow
from stentor.http.route import Route, account


class Me(wire.User):
    """The caller, with the tier's limits and what is left of the balance."""

    tier: people.Tier


class UsageTotals(msgspec.Struct):
    """Sums over events; money in nano-USD."""

    events: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano: int
    absorbed_nano: int


class OwnUsage(msgspec.Struct):
    """The last ``days`` days, UTC: in all, by day, by model."""

    days: int
    totals: UsageTotals
    daily: list[ReportRow]
    models: list[ReportRow]


class ModelPrice(msgspec.Struct):
    """Nano-USD per million units."""

    version: int
    input_nano: int
    output_nano: int
    cached_nano: int | None
    audio_second_nano: int
    character_nano: int
    request_nano: int


class OwnModel(msgspec.Struct):
    """A model that the caller may use; ``price`` null: not known, so it can't be used."""

    id: str
    aliases: list[str]
    abilities: list[str]
    context_size: int
    state: str
    price: ModelPrice | None


class OwnModelPage(msgspec.Struct):
    """All models that the caller may use."""

    data: list[OwnModel]
    next: None


class PublicModel(msgspec.Struct):
    """What anyone may know of a model."""

    id: str
    abilities: list[str]
    context_size: int
    state: str


class PublicModelPage(msgspec.Struct):
    """All models."""

    data: list[PublicModel]
    next: None


class LimitWindow(msgspec.Struct):
    """What any sixty seconds allow (null: everything), and what of it is left now."""

    limit: int | None
    remaining: int | None


class RateLimits(msgspec.Struct):
    """The tier's limits over all keys of the caller."""

    requests: LimitWindow
    tokens: LimitWindow
    concurrency: LimitWindow


class UptimeDay(msgspec.Struct):
    """One day, UTC: the share of its minutes in which the server could serve; null: before the first check."""

    date: str
    status: Literal["up", "degraded", "down", "unknown"]
    uptime_percent: float | None
    avg_latency_ms: float | None
    avg_models: float | None


class Uptime(msgspec.Struct):
    """The last ``days`` days, at most ninety."""

    days: int
    overall_uptime_percent: float | None
    daily: list[UptimeDay]


class OwnKeyRequest(people.UserKeyRequest, omit_defaults=True):
    """A key of the caller's own: for inference, ring or mcp, as the key that asks where nothing is said."""

    scopes: tuple[str, ...] = ()


ROUTES: tuple[Route, ...] = (
    account("GET", "/me", "get_me", "Who the caller is.", None, Me),
    account("GET", "/usage", "get_own_usage", "The caller's usage by day and model.", None, OwnUsage)._replace(
        query=("days",)
    ),
    account("GET", "/models", "list_own_models", "Models with prices.", None, OwnModelPage),
    account("GET", "/ratelimit", "get_own_limits", "What of the limits is left.", None, RateLimits),
    account("GET", "/keys", "list_own_keys", "The caller's keys, newest first.", None, wire.KeyPage)._replace(
        query=("after", "limit")
    ),
    account("POST", "/keys", "create_own_key", "Make a key.", OwnKeyRequest, wire.NewKey),
    account("PATCH", "/keys/{id}", "change_own_key", "Change a key.", people.ChangeKeyRequest, wire.Key),
    account("POST", "/keys/{id}/revoke", "revoke_own_key", "End a key now.", None, wire.Key),
    account("POST", "/keys/{id}/rotate", "rotate_own_key", "Replace a key.", wire.RotateKeyRequest, wire.NewKey),
    Route(
        "GET", "/api/models", "list_public_models", "public", "What is served here.", "",
        None, PublicModelPage, "detail", managed=True,
    ),
    Route(
        "GET", "/api/uptime", "get_uptime", "public", "How often the server could serve.", "",
        None, Uptime, "detail", query=("days",), managed=True,
    ),
)  # fmt: skip
