"""Why one try of a request failed: by the request's fault, or by that of whoever was to answer."""

import re

from stentor.core.errors import Refused

_UNREADABLE = (
    "Failed to parse messages: ",
    "Failed to parse tools: ",
    "Unknown reasoning format: ",
    "Failed to load image or audio file",
)
_FIELD = re.compile(r"Field '(\w{1,64})': ")
_LIBRARY_WORDS = re.compile(r"\[json\.exception\.[\w.]+\] ")
# What llama.cpp says of a chat template that stops, newer and older builds; the words before are parts of the template.
_TEMPLATE = re.compile(r"\nError: (Jinja Exception: )?(.+)$|^()(.+?) at row \d+, column \d+:\n", re.DOTALL)


class EngineRefused(Refused):
    """The engine said no to the request itself; its reason is the client's to read."""


class EngineFailed(Exception):
    """The attempt failed for reasons that aren't the client's. ``suspect``: look at the instance before using it.

    ``retry_after_s`` is for how long a remote upstream asked to be left alone; ``refusal`` what the client is told if
    nobody else answers, where that isn't the ordinary word.
    """

    def __init__(
        self,
        reason: str,
        problem: str,
        *,
        suspect: bool,
        retry_after_s: float = 0.0,
        refusal: Refused | None = None,
    ) -> None:
        super().__init__(problem)
        self.reason = reason
        self.suspect = suspect
        self.retry_after_s = retry_after_s
        self.refusal = refusal


def refused_by_engine(said: str) -> EngineRefused:
    """An engine's word on a request that can't be. llama-server begins with the field where one is to blame."""
    template = _TEMPLATE.search(said)
    if template is not None:
        refuses = template[1] is not None or template[2] is None
        verb, words = "refuses" if refuses else "can't put into words", template[2] or template[4]
        reason = f"The model's chat template {verb} this conversation: {words.strip()[:500]}"
        return EngineRefused("invalid_request", reason, param="messages")
    field = _FIELD.match(said)
    reason = _LIBRARY_WORDS.sub("", said)[:500] or "the engine gave no reason"
    return EngineRefused(
        "invalid_request", f"The model's engine refuses this request: {reason}", param=field[1] if field else None
    )


def is_the_requests_fault(said: str) -> bool:
    """Whether llama-server, which answers such requests with 500, means the request: there is nothing to try again and
    nobody to suspect."""
    return said.startswith(_UNREADABLE) or _TEMPLATE.search(said) is not None


def engine_error(problem: str, said: str, *, is_server_error: bool = True) -> EngineFailed:
    """The failure of an engine that reports an error; ``said`` are its own words.

    llama-server can't read back every answer of a model ("… does not match the expected … format", 500): it is as well
    as before, nobody need look at it, and another try may say something else.
    """
    suspect = is_server_error and " does not match the expected " not in said
    return EngineFailed("engine_error", problem, suspect=suspect)
