"""Trying again at the hub: which failures pass, how long to wait, when to give up."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from stentor.core.lazy import load

_DELAY_MAX_S = 30.0
_PATIENCE_MAX_S = 120.0


class Problem(Exception):
    """Why the order can't be carried out. ``passing``: trying again may help, after ``wait_s`` at least."""

    def __init__(self, kind: str, text: str, *, passing: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.kind = kind
        self.passing = passing
        self.wait_s = wait_s


def tell(event: str, **fields: Any) -> None:
    """Write one event."""
    sys.stdout.buffer.write(msgspec.json.encode({"event": event, **fields}) + b"\n")
    sys.stdout.buffer.flush()


class Attempts:
    """Attempts with growing pauses from ``backoff_first_s``; ``tries`` in a row that got nowhere are the last."""

    def __init__(self, tries: int, backoff_first_s: float) -> None:
        self._tries = tries
        self._backoff_first_s = backoff_first_s
        self._errors = load("huggingface_hub.errors")

    def __iter__(self) -> Iterator["Attempt"]:
        """One attempt after the other, until one succeeds; the count begins again whenever one got further."""
        failures = 0
        while True:
            attempt = Attempt(self._explain)
            yield attempt
            problem = attempt.problem
            if problem is None:
                return
            failures = 1 if attempt.progressed else failures + 1
            if not problem.passing or failures >= self._tries:
                raise problem
            delay_s = min(_DELAY_MAX_S, self._backoff_first_s * 2 ** (failures - 1))
            tell("waiting", text=str(problem), delay_s=max(delay_s, problem.wait_s))
            time.sleep(max(delay_s, problem.wait_s))

    def _explain(self, error: Exception) -> Problem | None:
        """The library's errors as Problems; None for what is none of them."""
        if isinstance(error, Problem):
            return error
        if isinstance(error, OSError) and not isinstance(error, self._errors.HfHubHTTPError):
            return Problem("disk", error.strerror or str(error))
        if isinstance(error, self._errors.HfHubHTTPError):
            return self._explain_status(error)
        return None

    def _explain_status(self, error: Any) -> Problem:
        errors, status = self._errors, error.response.status_code
        said = f"status {status}"
        if isinstance(error, errors.GatedRepoError):
            return Problem("gated", said)
        if isinstance(error, errors.RevisionNotFoundError):
            return Problem("no_revision", said)
        if isinstance(error, errors.EntryNotFoundError):
            return Problem("no_file", said)
        if isinstance(error, errors.RepositoryNotFoundError):
            return Problem("no_repo", said)
        if isinstance(error, errors.DisabledRepoError):
            return Problem("disabled", said)
        if status in (401, 403):
            return Problem("unauthorized" if status == 401 else "forbidden", said)
        if status == 404:
            return Problem("no_repo", said)
        passing = status in (408, 425, 429) or status >= 500
        kind = "busy" if status == 429 else "unavailable"
        return Problem(kind, said, passing=passing, wait_s=_read_patience(error.response.headers))


class Attempt:
    """One try; the errors that ``explain`` knows are kept as ``problem``, all others go on."""

    def __init__(self, explain: Any) -> None:
        self._explain = explain
        self.problem: Problem | None = None
        self.progressed = False

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        self.problem = self._explain(error) if isinstance(error, Exception) else None
        return self.problem is not None


def _read_patience(headers: Any) -> float:
    text = headers.get("retry-after", "")
    return min(_PATIENCE_MAX_S, float(text)) if text.isdigit() else 0.0
