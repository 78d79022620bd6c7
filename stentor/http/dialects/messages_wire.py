"""Shapes of ``/v1/messages`` on the wire, for the OpenAPI document and its tests."""

from typing import Literal

import msgspec

from stentor.http.wire import Json


class MessageParam(msgspec.Struct):
    """One turn: a text, or blocks (``text``, ``image``, ``thinking``, ``tool_use``, ``tool_result``, ``document``)."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Json]


class MessageCountRequest(msgspec.Struct, omit_defaults=True):
    """A conversation whose tokens are to be counted, as it would be sent to ``/v1/messages``."""

    messages: list[MessageParam]
    model: str | None = None
    system: str | list[Json] | None = None
    tools: list[Json] | None = None
    tool_choice: Json | None = None
    thinking: Json | None = None


class MessageRequest(MessageCountRequest, omit_defaults=True):
    """A conversation to answer. Images come inside the request (base64); tools are the caller's to run."""

    max_tokens: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    output_config: Json | None = None
    metadata: Json | None = None


class MessageUsage(msgspec.Struct):
    """What the answer used. The prompt is ``input_tokens`` and ``cache_read_input_tokens`` together."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicMessage(msgspec.Struct):
    """A whole answer; ``content`` holds ``text``, ``thinking`` and ``tool_use`` blocks."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Json]
    stop_reason: Literal["end_turn", "max_tokens", "tool_use", "refusal"] | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageCount(msgspec.Struct, omit_defaults=True):
    """How long the prompt is, template and tools included, as the model's engine or its upstream counts.

    ``estimated``: neither does, and the texts were counted here.
    """

    input_tokens: int
    estimated: bool = False


class AnthropicErrorObject(msgspec.Struct):
    """``message`` says what to do."""

    type: str
    message: str


class AnthropicError(msgspec.Struct):
    """Errors of ``/v1/messages``, in answers and in streams."""

    type: Literal["error"]
    error: AnthropicErrorObject
