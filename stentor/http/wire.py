"""Shapes on the wire, for the OpenAPI document and its tests. The hot path reads and writes the same shapes raw."""

from typing import Any, Literal

import msgspec

Json = dict[str, Any]


class ChatMessage(msgspec.Struct, omit_defaults=True):
    """One message; ``content`` is a text or a list of parts (``text``, ``image_url``, ``input_audio``)."""

    role: str
    content: str | list[Json] | None = None
    name: str | None = None
    tool_calls: list[Json] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct):
    """``include_usage``: send one more frame with the tokens before the end."""

    include_usage: bool = False


class ChatCompletionRequest(msgspec.Struct, omit_defaults=True):
    """A conversation to answer. Further sampling fields of llama.cpp are passed on."""

    model: str
    messages: list[ChatMessage]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Json | list[Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: Json | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    user: str | None = None


class CompletionRequest(msgspec.Struct, omit_defaults=True):
    """A text to continue. ``prompt`` is a text, a list of one text, or token numbers."""

    model: str
    prompt: str | list[Any]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    logprobs: int | bool | None = None


class PromptTokensDetails(msgspec.Struct):
    """Part of ``prompt_tokens`` that came from the engine's cache."""

    cached_tokens: int = 0


class CompletionUsage(msgspec.Struct):
    """What the answer used, exactly as it was booked."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class AnswerMessage(msgspec.Struct, omit_defaults=True):
    """The model's message."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[Json] | None = None


class ChatChoice(msgspec.Struct, omit_defaults=True):
    """One of ``n`` answers."""

    index: int
    message: AnswerMessage
    finish_reason: str | None
    logprobs: Json | None = None


class ChatCompletion(msgspec.Struct, omit_defaults=True):
    """A whole answer."""

    id: str | None
    object: Literal["chat.completion"]
    created: int | None
    model: str | None
    choices: list[ChatChoice]
    usage: CompletionUsage
    system_fingerprint: str | None = None
    timings: Json | None = None


class TextChoice(msgspec.Struct):
    """One of ``n`` continuations."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: Json | None = None


class Completion(msgspec.Struct, omit_defaults=True):
    """A whole continuation."""

    id: str | None
    object: Literal["text_completion"]
    created: int | None
    model: str | None
    choices: list[TextChoice]
    usage: CompletionUsage
    system_fingerprint: str | None = None
    timings: Json | None = None


class Model(msgspec.Struct):
    """A model as the key sees it. ``context_size`` is tokens per request; ``state`` cold, starting, ready or failed."""

    id: str
    created: int
    owned_by: str
    context_size: int
    abilities: tuple[str, ...]
    aliases: tuple[str, ...]
    state: str
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct):
    """All models the key may use."""

    data: list[Model]
    object: Literal["list"] = "list"


class Health(msgspec.Struct):
    """``workers_idle`` are free places on ready instances; ``timestamp`` is ISO 8601."""

    status: Literal["healthy", "unhealthy"]
    database: Literal["connected", "unavailable"]
    workers_idle: int
    active_slots: int
    timestamp: str
    version: str


class Root(msgspec.Struct):
    """What answers here."""

    name: str
    version: str
    docs: str
    registry: str


class ErrorObject(msgspec.Struct, omit_defaults=True):
    """``code`` names the rule, ``message`` says what to do, ``details`` has the rule's numbers."""

    message: str
    type: str
    param: str | None
    code: str | None
    details: Json | None = None


class ErrorEnvelope(msgspec.Struct):
    """Errors of ``/v1``."""

    error: ErrorObject


class DetailEnvelope(msgspec.Struct):
    """Errors of all other paths."""

    detail: str
    code: str


class KeyLimits(msgspec.Struct):
    """What narrows a key beyond its user's tier; null: nothing."""

    token_limit: int | None = None
    spending_limit_nano: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


class Key(msgspec.Struct):
    """An API key without its text. Times are microseconds since 1970, UTC; ``hint`` is its last four characters."""

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


class StartModelRequest(msgspec.Struct, omit_defaults=True):
    """How many instances are to be ready."""

    instances: int = 1


class Slot(msgspec.Struct):
    """One engine process, with its last log lines."""

    id: str
    model: str
    state: str
    port: int
    pid: int | None
    generation: int
    running: int
    places: int
    started_us: int | None
    restarts: int
    reason: str
    log_tail: list[str]


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


class SlotPage(msgspec.Struct):
    """All engine processes."""

    data: list[Slot]
    next: None


class FindingPage(msgspec.Struct):
    """All checks."""

    data: list[Finding]
    next: None


class System(msgspec.Struct):
    """The machine: cores, memory and disk in bytes, GPUs, and the engine processes."""

    cpu: Json
    memory: Json
    disk: Json
    gpus: list[Json]
    slots: list[Slot]
