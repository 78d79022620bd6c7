"""Shapes of the management API, for the OpenAPI document and its tests."""

from typing import Literal

import msgspec


class KeyLimits(msgspec.Struct):
    """What narrows a key beyond its user's tier; null: nothing."""

    token_limit: int | None = None
    spending_limit_nano: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    budget_day_nano: int | None = None
    budget_month_nano: int | None = None


class Key(msgspec.Struct):
    """An API key without its text. Times are microseconds since 1970, UTC; ``hint`` is its last four characters.

    ``line_id`` is the first of the keys that replaced one another: they have their limits together.
    """

    id: str
    name: str
    hint: str
    user_id: str
    project_id: str
    scopes: list[str]
    models: list[str]
    endpoints: list[str]
    limits: KeyLimits
    expires_us: int | None
    rotated_from: str | None
    grace_until_us: int | None
    revoked_us: int | None
    created_us: int
    line_id: str


class NewKey(Key):
    """A key with its text, shown this once."""

    key: str


class CreateKeyRequest(msgspec.Struct, omit_defaults=True):
    """``user`` is a name, email or id; empty lists mean all."""

    user: str
    name: str = ""
    project: str = ""
    scopes: tuple[str, ...] = ("inference",)
    models: list[str] = []
    endpoints: list[str] = []
    limits: KeyLimits | None = None
    expires_us: int | None = None


class RotateKeyRequest(msgspec.Struct, omit_defaults=True):
    """How long the old key still works."""

    grace_s: int = 0


class User(msgspec.Struct):
    """A user, and what is left of a prepaid balance."""

    id: str
    name: str
    email: str | None
    role: str
    tier_id: str
    active: bool
    password_temporary: bool
    created_us: int
    balance_nano: int


class CreateUserRequest(msgspec.Struct, omit_defaults=True):
    """A user to be made; ``tier`` is payg, sub, admin or one of your own."""

    name: str
    email: str | None = None
    role: str = "user"
    tier: str = "payg"
    password: str | None = None


class TopUpRequest(msgspec.Struct, omit_defaults=True):
    """``amount_nano`` in nano-USD, negative to take off; the same ``reference`` counts once."""

    amount_nano: int
    note: str = ""
    reference: str | None = None


class UsageEvent(msgspec.Struct):
    """One attempt of one request. Times and durations in microseconds, money in nano-USD."""

    id: int
    request_id: str
    attempt: int
    client_request_id: str | None
    opened_us: int
    settled_us: int
    user_id: str
    project_id: str
    key_id: str
    model: str
    engine: str
    endpoint: str
    stream: bool
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    audio_ms: int
    characters: int
    estimated: bool
    queued_us: int
    latency_us: int
    first_token_us: int | None
    overhead_us: int | None
    cost_nano: int
    charged_nano: int
    absorbed_nano: int
    price_version: int
    status: Literal["completed", "cancelled", "failed"]
    reason: str
    billable: bool


class ModelFile(msgspec.Struct):
    """What a model's file says of itself; empty, or 0, where nobody knows (yet). ``size_bytes``: with projector."""

    architecture: str
    parameters: str
    parameter_count: int
    quant: str
    size_bytes: int
    vector_size: int


class ModelCard(msgspec.Struct):
    """A model as operators see it."""

    id: str
    aliases: list[str]
    abilities: list[str]
    context_size: int
    state: str
    engine: str
    created_us: int
    source: str
    places: int
    ready_instances: int
    reason: str
    type: str
    file: ModelFile


class StartModelRequest(msgspec.Struct, omit_defaults=True):
    """How many instances are to be ready."""

    instances: int = 1


class LogPage(msgspec.Struct):
    """Log lines of an engine process; ``next`` is the ``after`` of what follows."""

    data: list[str]
    next: int


class Finding(msgspec.Struct):
    """One check; ``step`` says what to do if it isn't ``ok``."""

    name: str
    ok: bool
    text: str
    step: str


class KeyPage(msgspec.Struct):
    """A page of keys; send ``next`` as ``after`` for the following one."""

    data: list[Key]
    next: str | None


class UserPage(msgspec.Struct):
    """A page of users."""

    data: list[User]
    next: str | None


class UsagePage(msgspec.Struct):
    """A page of usage events, newest first."""

    data: list[UsageEvent]
    next: str | None


class ModelPage(msgspec.Struct):
    """All models."""

    data: list[ModelCard]
    next: None


class FindingPage(msgspec.Struct):
    """All checks."""

    data: list[Finding]
    next: None
