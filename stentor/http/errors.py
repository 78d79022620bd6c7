"""The one table from refusals to statuses and envelopes.

Every surface says errors in its own envelope; which code has which status is decided here and nowhere else.
"""

import math
import re
from typing import Any, Literal, NamedTuple

import msgspec

from stentor.core.errors import Refused

Envelope = Literal["openai", "detail", "anthropic", "ollama", "lmserv"]

_encode = msgspec.json.Encoder().encode


class Meaning(NamedTuple):
    """What a code means on the wire: HTTP status, and ``error.type`` of the OpenAI envelope."""

    status: int
    type: str
    text: str


CODES: dict[str, Meaning] = {
    "invalid_request": Meaning(400, "invalid_request_error", "A field is missing, has the wrong type or value."),
    "unsupported_parameter": Meaning(400, "invalid_request_error", "A field that clients may not set."),
    "context_length_exceeded": Meaning(400, "invalid_request_error", "The prompt doesn't fit the model's context."),
    "missing_ability": Meaning(400, "invalid_request_error", "The model can't do what the request needs."),
    "address_not_allowed": Meaning(
        400, "invalid_request_error", "An address that this server doesn't connect to for others."
    ),
    "host_not_allowed": Meaning(400, "invalid_request_error", "The Host header names a host that isn't this server."),
    "missing_api_key": Meaning(401, "authentication_error", "No API key was sent."),
    "invalid_api_key": Meaning(401, "authentication_error", "The API key is unknown, revoked or expired."),
    "session_ended": Meaning(401, "authentication_error", "The session ended: by its time, by sign-out, by a change."),
    "wrong_password": Meaning(401, "authentication_error", "The name or the password is wrong."),
    "signup_closed": Meaning(403, "permission_error", "This server takes no requests for accounts."),
    "insufficient_balance": Meaning(402, "insufficient_balance", "The prepaid balance can't cover the worst case."),
    "spending_limit": Meaning(402, "spending_limit", "The key's spending limit can't cover the worst case."),
    "budget_exceeded": Meaning(402, "budget_exceeded", "The project's budget can't cover the worst case."),
    "insufficient_scope": Meaning(403, "permission_error", "The key may not do this."),
    "csrf_failed": Meaning(403, "permission_error", "A session's change without its token, or from another website."),
    "password_change_required": Meaning(403, "permission_error", "The generated password must be changed first."),
    "insecure_sign_in": Meaning(403, "permission_error", "A password from another machine without TLS."),
    "not_found": Meaning(404, "invalid_request_error", "There is nothing at this path, or under this id."),
    "model_not_found": Meaning(404, "invalid_request_error", "No model of this name, or the key may not use it."),
    "method_not_allowed": Meaning(405, "invalid_request_error", "The path exists, the method doesn't."),
    "conflict": Meaning(
        409, "invalid_request_error", "The thing is in a state, or exists, so that this can't be done."
    ),
    "body_too_large": Meaning(413, "invalid_request_error", "The body is over the limit."),
    "unprocessable": Meaning(422, "invalid_request_error", "A body or parameter is wrong; detail lists where."),
    "rate_limit_exceeded": Meaning(429, "rate_limit_error", "Too many requests, tokens or parallel requests."),
    "quota_exceeded": Meaning(429, "insufficient_quota", "The key's token limit is used up; waiting doesn't help."),
    "internal_error": Meaning(500, "server_error", "A defect of the server; the log has the request id."),
    "engine_failed": Meaning(502, "server_error", "The model's engine died, hung or answered rubbish."),
    "model_unavailable": Meaning(503, "server_error", "The model can't be started, or keeps crashing."),
    "overloaded": Meaning(503, "server_error", "The model's queue is full, or no place came free in time."),
    "server_starting": Meaning(503, "server_error", "The server is starting up."),
    "server_shutdown": Meaning(503, "server_error", "The server is shutting down."),
    "server_restarting": Meaning(503, "server_error", "The server is restarting."),
    "hub_unavailable": Meaning(503, "server_error", "The model hub can't be asked now."),
    "store_unavailable": Meaning(503, "server_error", "The database can't be read or written now."),
}

_INTERNAL = CODES["internal_error"]
# ``error.type`` by status, as the Anthropic API has it; every other status of a server's own is ``api_error``.
_ANTHROPIC_TYPES = {
    401: "authentication_error", 402: "billing_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error",
}  # fmt: skip
# Where Ollama's clients make and remove models, which only the operator does here.
OLLAMA_MAKING = frozenset(f"/api/{name}" for name in ("pull", "push", "create", "copy", "delete"))
# Ollama's own paths; the rest of /api is ours.
_OLLAMA_PATHS = OLLAMA_MAKING | {
    f"/api/{name}" for name in ("chat", "generate", "embed", "embeddings", "tags", "show", "ps", "version")
}
# Where OpenAI's clients knock whose base URL lacks /v1 or has too many slashes; they show nothing of another envelope.
_WITHOUT_V1 = re.compile(r"/+(v1/+)?(chat/completions|completions|embeddings|models|responses|rerank|audio/\w+)/?")


def envelope_of(path: str) -> Envelope:
    """The envelope of errors on ``path``, whether there is anything or not."""
    if path.startswith("/v1"):
        return "anthropic" if path == "/v1/messages" or path.startswith("/v1/messages/") else "openai"
    if path in _OLLAMA_PATHS:
        return "ollama"
    if _WITHOUT_V1.fullmatch(path):
        return "openai"
    return "lmserv" if path == "/chat" else "detail"


def meaning_of(refusal: Refused) -> Meaning:
    """Status and type of a refusal; an unlisted code is a defect and answered as one."""
    return CODES.get(refusal.code, _INTERNAL)


def status_of(refusal: Refused, envelope: Envelope) -> int:
    """The HTTP status of a refusal on a surface."""
    if envelope == "anthropic" and refusal.code == "overloaded":
        return 529
    return meaning_of(refusal).status


def openai_error(refusal: Refused) -> dict[str, Any]:
    """The OpenAI envelope's ``error`` object, with the rule's numbers beside the four standard fields."""
    error: dict[str, Any] = {
        "message": refusal.message,
        "type": meaning_of(refusal).type,
        "param": refusal.param,
        "code": refusal.code,
    }
    if refusal.details:
        error["details"] = refusal.details
    return error


def error_object(refusal: Refused, envelope: Envelope) -> dict[str, Any]:
    """The body of an error answer, as plain JSON values."""
    if envelope == "openai":
        return {"error": openai_error(refusal)}
    if envelope == "anthropic":
        status = status_of(refusal, envelope)
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": refusal.message}}
    numbers = {"details": refusal.details} if refusal.details else {}
    if envelope == "ollama":
        return {"error": refusal.message, "code": refusal.code, **numbers}
    if "errors" in refusal.details:
        return {"detail": refusal.details["errors"]}
    bad_key = envelope == "lmserv" and meaning_of(refusal).status == 401
    return {"detail": "Bad API key" if bad_key else refusal.message, "code": refusal.code, **numbers}


def error_body(refusal: Refused, envelope: Envelope) -> bytes:
    """The JSON body of an error answer."""
    return _encode(error_object(refusal, envelope))


def error_frame(refusal: Refused) -> bytes:
    """An error within a stream that has begun."""
    return b"data: " + _encode({"error": openai_error(refusal)}) + b"\n\n"


_WAITING_IS_VAIN = frozenset({"quota_exceeded", "insufficient_balance", "spending_limit", "budget_exceeded"})


def _is_hopeless(refusal: Refused) -> bool:
    """Whether the same request would be refused again, however long the client waits."""
    if refusal.code == "rate_limit_exceeded":  # larger than a whole minute's tokens, or it would say when
        return refusal.retry_after_s is None
    return refusal.code in _WAITING_IS_VAIN


def error_headers(refusal: Refused) -> list[tuple[bytes, bytes]]:
    """The headers that tell a client whether and when to try again."""
    headers: list[tuple[bytes, bytes]] = []
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(refusal.retry_after_s))))
    if _is_hopeless(refusal):
        headers.append((b"x-should-retry", b"false"))
    if refusal.code in ("missing_api_key", "invalid_api_key"):
        headers.append((b"www-authenticate", b"Bearer"))
    details = refusal.details
    if refusal.code == "method_not_allowed" and "allowed" in details:
        headers.append((b"allow", ", ".join(details["allowed"]).encode()))
    for name, field in (("limit", "limit"), ("remaining", "left"), ("reset", "resets_at")):
        if refusal.code == "rate_limit_exceeded" and details.get(field) is not None:
            unit = details.get("unit") or "requests"
            headers.append((f"x-ratelimit-{name}-{unit}".encode(), str(details[field]).encode()))
    return headers
