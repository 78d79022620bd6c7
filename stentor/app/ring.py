"""The LLMRing surface put together: receipts with their log, history, registry."""

import asyncio
import contextlib
from typing import Any, NamedTuple

from stentor.control.books import LocalBooks
from stentor.control.ring.certified import Certified
from stentor.control.ring.models import RingRegistry
from stentor.control.ring.operations import RingOperations
from stentor.control.ring.proofs import RingProofs
from stentor.control.ring.receipts import RingReceipts
from stentor.control.ring.talks import RingTalks
from stentor.control.ring.tenants import Tenants
from stentor.control.ring.usage import RingUsage
from stentor.control.wanted import Finding
from stentor.core.clock import Clock
from stentor.core.errors import Refused, StentorError, StoreUnavailable
from stentor.core.scheduler import Scheduler
from stentor.egress.outbound import Outbound, OutboundFailed
from stentor.egress.shared_cache import SharedCache
from stentor.receipts.health import LogHealth
from stentor.receipts.keys import Keys
from stentor.receipts.log import ReceiptLog
from stentor.receipts.office import ReceiptOffice
from stentor.receipts.sequencer import Sequencer
from stentor.registry.registry import Registry
from stentor.settings import Settings
from stentor.store.database import Database
from stentor.store.leader import Leader
from stentor.telemetry.logs import Log
from stentor.telemetry.metrics import Metrics, Samples
from stentor.vault.keyring import Keyring

DOCUMENT_MAX_BYTES = 16 * 1024 * 1024
FETCH_TIMEOUT_S = 15.0
FORGET_EVERY_S = 3600.0
KEYS_EVERY_S = 1.0  # among other nodes: how often it is looked whether one of them has changed a signing key
LAST_ENTRIES_S = 2.0
MEASURE_S = 1.0
OWN = "stentor"


class RingParts(NamedTuple):
    """What it stands on."""

    books: LocalBooks
    scheduler: Scheduler
    outbound: Outbound
    clock: Clock
    log: Log
    leader: Leader


class Ring:
    """Make it with :meth:`open`. :meth:`run` numbers what is settled, until it is cancelled. ``seals``: other nodes
    make keys, too.
    """

    def __init__(
        self, office: ReceiptOffice, sequencer: Sequencer, talks: RingTalks, leader: Leader, seals: Keyring | None
    ) -> None:
        self.office = office
        self._waiting = 0
        self.sequencer = sequencer
        self.operations: RingOperations
        self.health: LogHealth
        self.cache: SharedCache | None = None
        self._talks = talks
        self._leader = leader
        self._seals = seals

    @classmethod
    async def open(cls, settings: Settings, database: Database, keyring: Keyring, parts: RingParts) -> "Ring":
        """Take over the receipt log of ``database``. Raises StentorError."""
        books, scheduler, outbound, clock, log, leader = parts
        keys = await database.write(lambda c: Keys.open(c, keyring, settings.receipts, clock.now_us()))
        receipt_log = await ReceiptLog.open(database, settings.receipts, clock, database.node_id)
        office = ReceiptOffice(database, receipt_log, keys, keyring.receipt_salt(), clock)
        sequencer = Sequencer(database, receipt_log, keyring.receipt_salt(), clock, log)
        office.wake = sequencer.wake

        async def fetch(url: str) -> bytes:
            return await _fetch(outbound, url)

        async def list_own() -> dict[str, dict[str, Any]]:
            return await _list_own(books, scheduler, clock)

        registry = Registry(
            database, settings.registry, fetch if settings.registry.base_url else None, list_own, clock, log
        )
        cache = SharedCache(str(settings.values["CACHE_URL"]), log) if settings.values["CACHE_URL"] else None
        registry.copies = cache
        tenants = Tenants()
        usage = RingUsage(database, registry, tenants, clock)
        values = settings.values
        talks = RingTalks(database, usage, tenants, clock, values["HISTORY_LEVEL"], values["HISTORY_RETENTION_DAYS"])
        ring = cls(office, sequencer, talks, leader, keyring if database.is_shared else None)
        ring.cache = cache
        ring.health = LogHealth(database, receipt_log, office, clock)
        receipts = RingReceipts(office, Certified(database, office), usage, tenants, clock)
        ring.operations = RingOperations(
            usage, talks, receipts, RingProofs(receipt_log, office), RingRegistry(registry)
        )
        return ring

    async def run(self) -> None:
        """Work in the background until cancelled."""
        self.health.numbering = True
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.sequencer.run(), name="sequencer")
            tasks.create_task(self._forget(), name="retention")
            if self._seals is not None:
                tasks.create_task(self._follow_keys(self._seals), name="receipt-keys")

    def watch(self, metrics: Metrics) -> None:
        """Have the log measured when somebody asks."""
        log = self.office.receipt_log
        metrics.watch("stentor_receipt_log_leaves", lambda: log.row.size)
        metrics.watch("stentor_receipt_log_waiting", lambda: self._waiting)
        metrics.watch("stentor_receipt_log_leading", lambda: float(log.is_leading))
        metrics.watch("stentor_receipt_leaves_appended_total", lambda: log.appended)
        metrics.watch("stentor_receipt_checkpoint_timestamp_seconds", lambda: log.signed_us / 1e6)
        metrics.watch("stentor_cache_lookups_total", self._count_lookups)

    def _count_lookups(self) -> Samples:
        found = {} if self.cache is None else self.cache.lookups
        return [((outcome,), float(count)) for outcome, count in found.items()]

    async def measure(self) -> None:
        """Count what waits, for the metrics; while the database doesn't answer the last count stands."""
        with contextlib.suppress(TimeoutError, StoreUnavailable):
            async with asyncio.timeout(MEASURE_S):
                self._waiting = (await self.health.waiting()).total

    async def examine(self) -> list[Finding]:
        """What `stentor doctor` says of the log."""
        return [Finding(*check) for check in await self.health.examine()]

    async def _forget(self) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                if await self._leader.claim() is not None:  # whoever thinks so wrongly deletes what has to go anyway
                    await self._talks.forget_everywhere()
            await asyncio.sleep(FORGET_EVERY_S)

    async def _follow_keys(self, seals: Keyring) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                await self.office.follow_keys(seals)
            await asyncio.sleep(KEYS_EVERY_S)

    async def close(self) -> None:
        """Number what was settled last, if that goes quickly; the next start does it otherwise."""
        with contextlib.suppress(TimeoutError, StentorError):
            async with asyncio.timeout(LAST_ENTRIES_S):
                await self.sequencer.finish()
        if self.cache is not None:
            await self.cache.close()


async def _fetch(outbound: Outbound, url: str) -> bytes:
    """A document of the registry's source, whose address the operator wrote. Raises StentorError."""
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            answer = await outbound.send("GET", url, headers={"Accept": "application/json"}, trusted=True)
            try:
                if answer.status != 200:
                    raise OutboundFailed("rubbish", f"{url} answered {answer.status}", answered=True)
                body = await answer.read_at_most(DOCUMENT_MAX_BYTES + 1)
            finally:
                answer.release()
    except TimeoutError:
        raise OutboundFailed("timeout", f"{url} did not answer within {FETCH_TIMEOUT_S:.0f} s") from None
    if len(body) > DOCUMENT_MAX_BYTES:
        raise OutboundFailed("rubbish", f"{url} is over {DOCUMENT_MAX_BYTES} bytes", answered=True)
    return body


async def _list_own(books: LocalBooks, scheduler: Scheduler, clock: Clock) -> dict[str, dict[str, Any]]:
    """This server's models as the registry says them, with the prices of this moment."""
    models: dict[str, dict[str, Any]] = {}
    for card in await scheduler.list_models():
        try:
            price = books.prices.get_price(card.id, clock.now_us())
        except Refused:
            continue
        cached_nano = price.input_nano if price.cached_nano is None else price.cached_nano
        models[f"{OWN}:{card.id}"] = {
            "provider": OWN,
            "model_name": card.id,
            "display_name": card.id,
            "description": None,
            "max_input_tokens": card.context_size,
            "max_output_tokens": card.context_size,
            "supports_vision": "image" in card.abilities,
            "supports_function_calling": "text" in card.abilities,
            "supports_json_mode": "text" in card.abilities,
            "supports_parallel_tool_calls": False,
            "tool_call_format": None,
            "dollars_per_million_tokens_input": price.input_nano / 1e9,
            "dollars_per_million_tokens_cached_input": cached_nano / 1e9,
            "dollars_per_million_tokens_output": price.output_nano / 1e9,
            "is_active": True,
            "aliases": list(card.aliases),
            "abilities": list(card.abilities),
        }
    return models
