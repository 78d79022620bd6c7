"""What an upstream's error answer means, and what of it a client may read."""

from urllib.parse import urlsplit

import msgspec

from stentor.core.books import Grant
from stentor.core.errors import Refused
from stentor.flows.failure import EngineFailed, EngineRefused
from stentor.telemetry.scrub import scrub_text

_REQUEST_FAULTS = frozenset({400, 413, 414, 415, 422})
_BUSY = frozenset({429, 529})
_TOO_LONG_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_TOO_LONG_WORDS = ("prompt is too long", "maximum context length", "context window")


class _Error(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None


class _Body(msgspec.Struct):
    error: _Error | str | None = None
    detail: str | None = None
    message: str | None = None


_decode = msgspec.json.Decoder(_Body).decode


def read_remote_error(grant: Grant, status: int, body: bytes, retry_after_s: float) -> EngineRefused | EngineFailed:
    """The request's fault, which the client is told in the upstream's words without its secrets, or the upstream's."""
    error = _read(body)
    if status in _REQUEST_FAULTS:
        message = _tidy(error.message or "it gave no reason", grant)
        if error.code in _TOO_LONG_CODES or error.type in _TOO_LONG_CODES or _sounds_too_long(message):
            return EngineRefused(
                "context_length_exceeded",
                f"The prompt doesn't fit the context of '{grant.model}': {message}",
                param="messages",
            )
        return EngineRefused("invalid_request", f"The model's upstream refuses this request: {message}")
    problem = f"it answered status {status}"
    if status in _BUSY:
        wait_s = max(retry_after_s, 1.0)
        refusal = Refused(
            "overloaded",
            f"The upstream of '{grant.model}' takes no more requests now. Nothing was charged; try again later.",
            retry_after_s=wait_s,
        )
        return EngineFailed("upstream_busy", problem, suspect=True, retry_after_s=retry_after_s, refusal=refusal)
    reason = "upstream_credential" if status in (401, 403) else "upstream_error"
    return EngineFailed(reason, problem, suspect=True, retry_after_s=retry_after_s if status == 503 else 0.0)


def _read(body: bytes) -> _Error:
    try:
        whole = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _Error()
    if isinstance(whole.error, _Error):
        return whole.error
    return _Error(whole.error or whole.detail or whole.message)


def _sounds_too_long(message: str) -> bool:
    lower = message.lower()
    return any(words in lower for words in _TOO_LONG_WORDS)


def _tidy(message: str, grant: Grant) -> str:
    """``message`` without the credential, without the upstream's address, without anything shaped like a key."""
    host = urlsplit(grant.url).hostname or ""
    for hidden in (grant.token, grant.url, host):
        if len(hidden) > 3:
            message = message.replace(hidden, "[hidden]")
    return scrub_text(" ".join(message.split()))
