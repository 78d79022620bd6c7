"""Books that are watched: what passes through them is counted, and logged where somebody should know."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from stentor.control.owned import Closing, OwnedBooks
from stentor.core.books import Close, Extend, Grant, Open, Settled
from stentor.core.errors import Refused
from stentor.core.ids import KeyId
from stentor.core.principal import Principal
from stentor.telemetry.logs import Level, Log
from stentor.telemetry.metrics import Metrics


class _Known(NamedTuple):
    grant: Grant
    endpoint: str
    owner: str


class ObservedBooks:
    """Counts every grant, refusal and settlement of ``books``, for all workers of this machine."""

    def __init__(self, books: OwnedBooks, metrics: Metrics, log: Log) -> None:
        self._books = books
        self._metrics = metrics
        self._log = log
        self._tells_all = log.says("debug")
        self._open: dict[tuple[str, int], _Known] = {}
        self.on_settled: Callable[[], None] = _nobody_waits

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

    def on_changed(self, listener: Callable[[KeyId], None]) -> None:
        """See ``Books.on_changed``."""
        self._books.on_changed(listener)

    async def open(self, ask: Open, owner: str = "") -> Grant:
        """See ``Books.open``."""
        try:
            grant = await self._books.open(ask, owner)
        except Refused as refusal:
            self._metrics.observe_refused(ask.endpoint, refusal.code)
            raise
        self._open[ask.request_id, ask.attempt] = _Known(grant, ask.endpoint, owner)
        return grant

    def try_open(self, ask: Open, owner: str = "") -> Grant | None:
        """See ``OwnedBooks.try_open``."""
        try:
            grant = self._books.try_open(ask, owner)
        except Refused as refusal:
            self._metrics.observe_refused(ask.endpoint, refusal.code)
            raise
        if grant is not None:
            self._open[ask.request_id, ask.attempt] = _Known(grant, ask.endpoint, owner)
        return grant

    async def extend(self, more: Extend) -> None:
        """See ``Books.extend``."""
        try:
            await self._books.extend(more)
        except Refused as refusal:
            known = self._open.get((more.request_id, more.attempt))
            self._metrics.observe_refused(known.endpoint if known is not None else "", refusal.code)
            raise

    async def close(self, end: Close) -> Settled:
        """See ``Books.close``."""
        known = self._open.pop((end.request_id, end.attempt), None)
        if known is None:
            return await self._books.close(end)
        try:
            closing = self._books.begin_close(end)
            if closing is not None and await closing.written:
                settled = closing.settled
            else:
                settled = await self._books.close(end)
        except Refused as refusal:
            self._metrics.observe_refused(known.endpoint, refusal.code)
            raise
        self._note(known, end, settled)
        return settled

    def begin_close(self, end: Close) -> Closing | None:
        """See ``OwnedBooks.begin_close``."""
        known = self._open.get((end.request_id, end.attempt))
        closing = self._books.begin_close(end)
        if closing is None or known is None:
            return closing
        del self._open[end.request_id, end.attempt]

        def note(written: asyncio.Future[bool]) -> None:
            error = written.exception()
            if isinstance(error, Refused):
                self._metrics.observe_refused(known.endpoint, error.code)
            elif error is None and written.result():
                self._note(known, end, closing.settled)

        closing.written.add_done_callback(note)
        return closing

    def _note(self, known: _Known, end: Close, settled: Settled) -> None:
        self._metrics.observe_closed(known.grant, known.endpoint, end, settled)
        self.on_settled()
        unusual = end.outcome == "failed" or settled.absorbed_nano > 0
        if unusual or self._tells_all:
            self._tell(known.grant, end, settled, "warning" if unusual else "debug")

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
        lost = [key for key, known in self._open.items() if known.owner == owner]
        for key in lost:
            del self._open[key]
        if lost:
            self._log.event("worker_requests_lost", level="warning", worker=owner, count=len(lost))
        self._books.abandon(owner)


def _nobody_waits() -> None:
    return
