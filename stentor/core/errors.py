"""The refusals that every part may raise and every surface can say.

A domain raises the small error that names its rule; ``http/errors.py`` alone knows statuses and envelopes. Refusals
cross the line between worker and authority, so they are plain data: a code, a message, and the numbers behind it.
"""

from typing import Any

import msgspec

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What the decoder raises over JSON that somebody else wrote: no JSON, another shape, no text, too deep."""


class StentorError(Exception):
    """An error whose text was written for the person who reads it: what happened, which value, what to do next."""


class Refused(StentorError):
    """A request that a rule refuses.

    ``code`` is one of the contract's error codes (``insufficient_balance``, ``rate_limit_exceeded``,
    ``model_not_found``, …), ``param`` names the offending field, ``retry_after_s`` is set where waiting helps, and
    ``details`` holds the rule's numbers (limit, left, resets at).
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.details = details or {}


class StoreUnavailable(Refused):
    """The store can't be read or written now. Never answered as 401: the key may be perfectly good."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            "store_unavailable",
            f"The server's database can't be written right now ({problem}). Nothing was charged; try again shortly.",
            retry_after_s=2.0,
        )


class InDoubt(StoreUnavailable):
    """The database was lost while it committed: whether it did is found out once it is back."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.message = (
            f"The server's database was lost while it wrote ({problem}). "
            "Whether this counts is found out once it is back; try again shortly."
        )
        self.args = (self.message,)


class LeasesLost(StoreUnavailable):
    """This node was silent for so long that the others took back what it had borrowed; nothing was written."""

    def __init__(self) -> None:
        super().__init__("this node was out of touch for too long")


class NotLeader(StentorError):
    """Another node does this job of the cluster, or has done it in between; nothing was written."""

    def __init__(self, job: str) -> None:
        super().__init__(f"another node leads the job '{job}'")


class AuthorityLost(Refused):
    """The line between this worker and the node authority is down; the server is being restarted."""

    def __init__(self) -> None:
        super().__init__(
            "server_restarting",
            "The server is restarting. Nothing was charged; try again shortly.",
            retry_after_s=2.0,
        )
