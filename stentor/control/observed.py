"""Books that are watched: what passes through them is counted, and logged where somebody should know."""

from collections.abc import Callable

from stentor.control.desk import OwnedBooks
from stentor.core.books import Close, Grant, Open, Settled
from stentor.core.errors import Refused
from stentor.core.ids import KeyId
from stentor.core.principal import Principal
from stentor.telemetry.logs import Log
from stentor.telemetry.metrics import Metrics


class ObservedBooks:
    """Counts every grant, refusal and settlement of ``books``, for all workers of this machine."""

    def __init__(self, books: OwnedBooks, metrics: Metrics, log: Log) -> None:
        self._books = books
        self._metrics = metrics
        self._log = log
        self._open: dict[tuple[str, int], tuple[Grant, str, str]] = {}

    @property
    def open_requests(self) -> int:
        """Requests that hold a grant now."""
        return len(self._open)

    async def find_principal(self, key_digest: bytes) -> Principal | None:
        """See ``Books.find_principal``."""
        return await self._books.find_principal(key_digest)

    async def find_problem(self) -> str | None:
        """See ``Books.find_problem``."""
        return await self._books.find_problem()

    def on_revoked(self, listener: Callable[[KeyId], None]) -> None:
        """See ``Books.on_revoked``."""
        self._books.on_revoked(listener)

    async def open(self, ask: Open, owner: str = "") -> Grant:
        """See ``Books.open``."""
        try:
            grant = await self._books.open(ask, owner)
        except Refused as refusal:
            self._metrics.observe_refused(ask.endpoint, refusal.code)
            raise
        self._open[ask.request_id, ask.attempt] = grant, ask.endpoint, owner
        return grant

    async def close(self, end: Close) -> Settled:
        """See ``Books.close``."""
        known = self._open.pop((end.request_id, end.attempt), None)
        settled = await self._books.close(end)
        if known is not None:
            grant, endpoint, _ = known
            self._metrics.observe_closed(grant, endpoint, end, settled)
            if settled.absorbed_nano or end.outcome == "failed":
                self._log_unusual(grant, end, settled)
        return settled

    def _log_unusual(self, grant: Grant, end: Close, settled: Settled) -> None:
        self._log.event(
            "request_failed" if end.outcome == "failed" else "cost_absorbed",
            level="warning",
            request_id=end.request_id,
            attempt=end.attempt,
            model=grant.model,
            instance=grant.instance,
            reason=end.reason,
            cost_nano=settled.cost_nano,
            absorbed_nano=settled.absorbed_nano,
        )

    def abandon(self, owner: str) -> None:
        """See ``OwnedBooks.abandon``."""
        lost = [key for key, (_, _, opener) in self._open.items() if opener == owner]
        for key in lost:
            del self._open[key]
        if lost:
            self._log.event("worker_requests_lost", level="warning", worker=owner, count=len(lost))
        self._books.abandon(owner)
