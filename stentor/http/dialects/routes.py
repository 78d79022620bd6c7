"""The routes of other dialects over the same chat."""

from stentor.http.dialects import responses_wire
from stentor.http.route import Route

ROUTES: tuple[Route, ...] = (
    Route(
        "POST", "/v1/responses", "create_response", "key", "Answer a conversation (Responses API).", "inference",
        responses_wire.ResponseRequest, responses_wire.ResponseObject, streams=True,
    ),
)  # fmt: skip
