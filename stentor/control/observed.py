"""Books that are watched: what passes through them is counted, and logged where somebody should know."""

from collections.abc import Callable

from stentor.control.desk import OwnedBooks
from stentor.core.books import Close, Grant, Open, Settled
from stentor.core.errors import Refused
from stentor.core.ids import KeyId
from stentor.core.principal import Principal
from stentor.telemetry.logs import Level, Log
from stentor.telemetry.metrics import Metrics


class ObservedBooks:
    """Counts every grant, refusal and settlement of ``books``, for all workers of this machine."""

    def __init__(self, books: OwnedBooks, metrics: Metrics, log: Log) -> None:
        self._books = books
        self._metrics = metrics
        self._log = log
        self._tells_all = log.says("debug")
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

    def try_open(self, ask: Open, owner: str = "") -> Grant | None:
        """See ``OwnedBooks.try_open``."""
        try:
            grant = self._books.try_open(ask, owner)
        except Refused as refusal:
            self._metrics.observe_refused(ask.endpoint, refusal.code)
            raise
        if grant is not None:
            self._open[ask.request_id, ask.attempt] = grant, ask.endpoint, owner
        return grant

    async def close(self, end: Close) -> Settled:
        """See ``Books.close``."""
        known = self._open.pop((end.request_id, end.attempt), None)
        if known is None:
            return await self._books.close(end)
        grant, endpoint, _ = known
        try:
            settled = await self._books.close(end)
        except Refused as refusal:
            self._metrics.observe_refused(endpoint, refusal.code)
            raise
        self._metrics.observe_closed(grant, endpoint, end, settled)
        unusual = end.outcome == "failed" or settled.absorbed_nano > 0
        if unusual or self._tells_all:
            self._tell(grant, end, settled, "warning" if unusual else "debug")
        return settled

    def _tell(self, grant: Grant, end: Close, settled: Settled, level: Level) -> None:
        name = "request_closed" if level == "debug" else "cost_absorbed"
        usage = settled.usage
        self._log.event(
            "request_failed" if end.outcome == "failed" else name,
            level=level,
            request_id=end.request_id,
            attempt=end.attempt,
            model=grant.model,
            instance=grant.instance,
            outcome=end.outcome,
            reason=end.reason,
            latency_ms=end.latency_us / 1000,
            queued_ms=grant.queued_us / 1000,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
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
