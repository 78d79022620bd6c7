"""The routes of other dialects over the same chat."""

from stentor.http.dialects import messages_wire, responses_wire
from stentor.http.route import Route

ROUTES: tuple[Route, ...] = (
    Route(
        "POST", "/v1/responses", "create_response", "key", "Answer a conversation (Responses API).", "inference",
        responses_wire.ResponseRequest, responses_wire.ResponseObject, streams=True,
    ),
    Route(
        "POST", "/v1/messages", "create_message", "key", "Answer a conversation (Anthropic Messages API).",
        "inference", messages_wire.MessageRequest, messages_wire.AnthropicMessage, "anthropic", streams=True,
    ),
    Route(
        "POST", "/v1/messages/count_tokens", "count_message_tokens", "key", "How long a conversation is. Free.",
        "inference", messages_wire.MessageCountRequest, messages_wire.MessageCount, "anthropic", answers=True,
    ),
)  # fmt: skip
