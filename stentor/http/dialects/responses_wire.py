"""Shapes of ``/v1/responses`` on the wire, for the OpenAPI document and its tests."""

from typing import Literal

import msgspec

from stentor.http.wire import Json


class ResponseRequest(msgspec.Struct, omit_defaults=True):
    """A conversation to answer, as a text or as items. Nothing is kept: ``store`` can't be true."""

    input: str | list[Json]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    text: Json | None = None
    reasoning: Json | None = None
    include: list[str] | None = None
    store: bool | None = None
    metadata: Json | None = None


class InputTokensDetails(msgspec.Struct):
    """Part of ``input_tokens`` that came from the engine's cache."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(msgspec.Struct):
    """Part of ``output_tokens`` that were thoughts, where the engine says so."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    """What the answer used, exactly as it was booked."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    """Why an answer ended before its end."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseObject(msgspec.Struct):
    """A whole answer; ``output`` holds messages, function calls and reasoning in the order in which they came."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    background: bool
    error: Json | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[Json]
    previous_response_id: str | None
    store: bool
    truncation: str
    usage: ResponseUsage | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: Json | None
    parallel_tool_calls: bool | None
    temperature: float | None
    tool_choice: str | Json | None
    tools: list[Json] | None
    top_p: float | None
    text: Json | None
    reasoning: Json | None
    user: str | None
