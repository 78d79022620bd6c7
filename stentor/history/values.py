"""What goes in and out of conversations, templates and client logs on the wire; times are RFC 3339 texts."""

from typing import Annotated, Any, Literal

import msgspec

Json = dict[str, Any]
Role = Literal["system", "user", "assistant", "tool"]
LoggingLevel = Literal["none", "metadata", "full"]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Name = Annotated[str, msgspec.Meta(max_length=255)]
Title = Annotated[str, msgspec.Meta(max_length=500)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
MaxTokens = Annotated[int, msgspec.Meta(gt=0, le=2**53 - 1)]
Usd = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class ConversationCreate(msgspec.Struct, omit_defaults=True):
    """A new conversation. ``project_id`` is a label and chooses nobody's data; ``api_key_id`` is ignored."""

    title: Title | None = None
    system_prompt: str | None = None
    model_alias: Name | None = None
    temperature: Temperature | None = None
    max_tokens: MaxTokens | None = None
    api_key_id: Any = None
    project_id: Name | None = None


class ConversationUpdate(msgspec.Struct, omit_defaults=True):
    """What changes; what is left out or null stays."""

    title: Title | None = None
    system_prompt: str | None = None
    model_alias: Name | None = None
    temperature: Temperature | None = None
    max_tokens: MaxTokens | None = None


class Conversation(msgspec.Struct):
    """A conversation with its sums; ``total_cost`` is in US dollars."""

    id: str
    title: str | None
    system_prompt: str | None
    model_alias: str
    temperature: float
    max_tokens: int | None
    api_key_id: str | None
    project_id: str | None
    message_count: int
    total_input_tokens: int
    total_output_tokens: int
    total_cost: float
    created_at: str
    updated_at: str
    last_message_at: str | None


class MessageCreate(msgspec.Struct, omit_defaults=True):
    """A message; ``content`` is a text or a list of parts. ``metadata.cost`` (US dollars) is added to the sums."""

    role: Role
    content: str | list[Any] | None = None
    tool_calls: list[Json] | None = None
    tool_results: list[Json] | None = None
    metadata: Json | None = None
    conversation_id: Any = None
    receipt_id: Name | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None


class MessageBatch(msgspec.Struct, omit_defaults=True):
    """Messages to be kept: ``full``, ``metadata`` (a hash in place of the content), or ``none``."""

    messages: Annotated[list[MessageCreate], msgspec.Meta(max_length=10_000)]
    conversation_id: Any = None
    logging_level: LoggingLevel = "full"
    create_receipt: bool = True


class Message(msgspec.Struct):
    """A message as it was kept."""

    id: str
    conversation_id: str
    role: str
    content: str | list[Any] | None
    content_hash: str | None
    input_tokens: int | None
    output_tokens: int | None
    tool_calls: list[Json] | None
    tool_results: list[Json] | None
    metadata: Json
    receipt_id: str | None
    timestamp: str


class ConversationWithMessages(Conversation):
    """A conversation and its messages, the oldest first."""

    messages: list[Message]


class FoundMessage(Message):
    """A message that a search found, with its conversation's title."""

    title: str | None


class ConversationMetadata(msgspec.Struct, omit_defaults=True):
    """Who answered and what it cost, as the client saw it."""

    provider: Name
    model: Name
    alias: Name | None = None
    profile: Name | None = None
    origin: Name | None = "llmring"
    cost: Usd | None = None
    input_cost: Usd | None = None
    output_cost: Usd | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cached_tokens: Count | None = None


class ConversationLogRequest(msgspec.Struct):
    """One whole exchange: what was asked, what was answered, what it cost."""

    messages: Annotated[list[Json], msgspec.Meta(max_length=10_000)]
    response: Json
    metadata: ConversationMetadata


class ConversationLogResponse(msgspec.Struct):
    """The conversation it became, and the answer's message."""

    conversation_id: str
    message_id: str
    receipt: None = None


class Deleted(msgspec.Struct):
    """How many messages went."""

    deleted_count: int
    retention_days: int


class Said(msgspec.Struct):
    """That it was done."""

    message: str


class TemplateCreate(msgspec.Struct, omit_defaults=True):
    """A new template."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    created_by: Name
    description: str | None = None
    system_prompt: str | None = None
    model: Name | None = None
    temperature: Temperature | None = None
    max_tokens: MaxTokens | None = None
    tool_config: Json | None = None
    api_key_id: Any = None
    project_id: Name | None = None


class TemplateUpdate(msgspec.Struct, omit_defaults=True):
    """What changes; what is left out or null stays."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None
    description: str | None = None
    system_prompt: str | None = None
    model: Name | None = None
    temperature: Temperature | None = None
    max_tokens: MaxTokens | None = None
    tool_config: Json | None = None
    is_active: bool | None = None


class Template(msgspec.Struct):
    """A conversation to start from."""

    id: str
    name: str
    description: str | None
    system_prompt: str | None
    model: str
    temperature: float
    max_tokens: int | None
    tool_config: Json
    api_key_id: str | None
    project_id: str | None
    created_by: str
    is_active: bool
    usage_count: int
    created_at: str
    updated_at: str
    last_used_at: str | None


class TemplateStats(msgspec.Struct):
    """How often a template was used."""

    template_id: str
    template_name: str
    usage_count: int
    last_used_at: str | None
    created_at: str


class UsageLogRequest(msgspec.Struct, omit_defaults=True):
    """A call that a client made, wherever it went. Without ``cost`` the registry's price is taken."""

    model: Name
    provider: Name
    input_tokens: Count
    output_tokens: Count
    cached_input_tokens: Count = 0
    alias: Name | None = None
    profile: Name | None = None
    cost: Usd | None = None
    latency_ms: Count | None = None
    origin: Name | None = None
    id_at_origin: Name | None = None
    metadata: Json | None = None


class UsageLogResponse(msgspec.Struct):
    """The log's id and what the call cost, in US dollars."""

    log_id: str
    cost: float
    timestamp: str


class UsageLogEntry(msgspec.Struct):
    """A call; ``metered_by`` says who counted."""

    id: str
    logged_at: str
    provider: str
    model: str
    alias: str | None
    profile: str | None
    origin: str | None
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cost: float
    metadata: Json | None
    conversation_id: str | None
    id_at_origin: str | None
    metered_by: str


class UsageSummary(msgspec.Struct):
    """Everything in the window; ``total_cost`` is an exact decimal."""

    total_requests: int
    total_cost: str
    total_tokens: int
    unique_models: int
    unique_origins: int


class PeriodUsage(msgspec.Struct):
    """One day, week (its Monday) or month (its first)."""

    date: str
    requests: int
    cost: str
    top_model: str


class GroupUsage(msgspec.Struct):
    """One model or alias."""

    requests: int
    cost: str
    input_tokens: int
    output_tokens: int


class OriginUsage(msgspec.Struct):
    """One origin."""

    requests: int
    cost: str


class UsageStats(msgspec.Struct):
    """Sums over the window, and by period, model, origin, alias."""

    summary: UsageSummary
    by_day: list[PeriodUsage]
    by_model: dict[str, GroupUsage]
    by_origin: dict[str, OriginUsage]
    by_alias: dict[str, GroupUsage]


class UncertifiedLogs(msgspec.Struct):
    """Calls without a receipt."""

    logs: list[UsageLogEntry]
    total: int
    limit: int
    offset: int


class CertifiedLogs(UncertifiedLogs):
    """The calls behind a receipt."""

    receipt_id: str
