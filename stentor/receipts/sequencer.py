"""The one task that numbers what was settled: events and receipts become leaves, in batches, after the fact.

Nothing waits for it. What it has done stands in the same transaction as the leaves, so a crash in between loses
nothing and repeats nothing: the next start goes on behind the mark.
"""

import asyncio
import time
from collections.abc import Callable

from sqlalchemy import Connection

from stentor.core.clock import Clock
from stentor.core.errors import StentorError, StoreUnavailable
from stentor.receipts import table
from stentor.receipts.canonical import leaf_hash
from stentor.receipts.log import Entry, ReceiptLog, SequencerReplaced, Store
from stentor.receipts.merkle import MissingTile, hash_leaf
from stentor.receipts.stored import decode_body
from stentor.receipts.usage import UsageRow, usage_leaf_bytes
from stentor.telemetry.logs import Log

GATHER_S = 0.2  # how long settlements are gathered before they are numbered together
BATCH = 1024  # leaves in one transaction: about a millisecond of the writer's time
BREATH = 128  # leaves that are made without letting others have the interpreter
IDLE_S = 5.0  # how often it looks without having been woken
LATE_S = 1.0  # among other nodes: how often the newest events are looked through for ones that were committed late
SWEEP_S = 60.0
SWEEP_US = 600 * 1_000_000
SIGN_S = 10.0  # how often a log that grows gets a checkpoint nobody has asked for
POLL_S = 0.5  # among other nodes: how often their work is looked for
FOLLOW_S = 1.0  # how often a node that doesn't number notes how far the log has come
RETRY_S = 1.0


class Sequencer:
    """Runs :meth:`run` until it is cancelled. ``wake`` costs next to nothing and may be called for every settlement."""

    def __init__(self, store: Store, receipt_log: ReceiptLog, salt_key: bytes, clock: Clock, log: Log) -> None:
        self._store = store
        self._receipt_log = receipt_log
        self._salt_key = salt_key
        self._clock = clock
        self._log = log
        self._awake = asyncio.Event()
        self._swept_s = 0.0
        self._late_s = 0.0
        self._signed_s = 0.0
        self.replaced = False

    def wake(self) -> None:
        """Something was settled. Call it on the loop."""
        self._awake.set()

    async def run(self) -> None:
        """Number what comes, until cancelled or replaced."""
        while not self.replaced:
            try:
                if await self._go_on():
                    continue
            except StoreUnavailable:
                await asyncio.sleep(RETRY_S)
                continue
            except (StentorError, MissingTile) as error:  # a damaged log is told of; the server serves without it
                self._log.event("sequencer_failed", level="error", message=str(error))
            await self._wait()

    async def _go_on(self) -> bool:
        """Number what waits; True where that has to begin again at once."""
        try:
            if await self._receipt_log.leads():
                await self.catch_up()
            else:
                self._awake.clear()
            await self._sign_in_time()
        except SequencerReplaced:
            self.replaced = not await self._receipt_log.resync()
            if self.replaced:
                self._log.event("sequencer_replaced", level="error", origin=self._receipt_log.row.origin)
            return True
        return False

    async def finish(self) -> None:
        """Number what waits, unless somebody else does: for an orderly end. Then another node may go on."""
        if self.replaced:
            return
        try:
            if await self._receipt_log.leads():
                await self.catch_up()
                await self._receipt_log.resign()
        except SequencerReplaced:
            return
        except (StentorError, MissingTile) as error:  # what isn't numbered now, the next start numbers
            self._log.event("sequencer_failed", level="error", message=str(error))

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_S if self._receipt_log.is_shared else IDLE_S):
                await self._awake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(GATHER_S)

    async def catch_up(self) -> int:
        """Number everything that waits; returns how many leaves that made.

        What comes meanwhile waits for the next time: following it would mean a transaction for every few settlements.
        """
        self._awake.clear()
        steps = [self._find_usage, self._find_receipts]
        now_s = self._clock.monotonic_s()
        if now_s - self._swept_s >= SWEEP_S:
            self._swept_s = now_s
            steps = [self._find_missed, *steps]
        elif self._receipt_log.is_shared and now_s - self._late_s >= LATE_S:
            self._late_s = now_s
            steps = [self._find_late, *steps]
        added = 0
        for find in steps:
            taken = BATCH
            while taken == BATCH:
                taken = await self._take(find)
                added += taken
        return added

    async def _take(self, find: Callable[[Connection], tuple[list[Entry], int]]) -> int:
        entries, mark = await self._store.read(find)
        if entries:
            await self._receipt_log.append(entries, mark)
        return len(entries)

    def _find_usage(self, connection: Connection) -> tuple[list[Entry], int]:
        mark = self._receipt_log.row.event_mark
        rows = table.list_new_usage(connection, mark, BATCH)
        return self._make_entries(rows), rows[-1].id if rows else mark

    def _find_missed(self, connection: Connection) -> tuple[list[Entry], int]:
        mark = self._receipt_log.row.event_mark
        since_us = self._clock.now_us() - SWEEP_US
        return self._make_entries(table.list_missed_usage(connection, mark, since_us, BATCH)), mark

    def _find_late(self, connection: Connection) -> tuple[list[Entry], int]:
        mark = self._receipt_log.row.event_mark
        return self._make_entries(table.list_late_usage(connection, mark, BATCH)), mark

    def _make_entries(self, rows: list[UsageRow]) -> list[Entry]:
        key = self._salt_key
        entries = []
        for at, row in enumerate(rows):
            if at % BREATH == 0:
                time.sleep(0)  # a reader's thread: whoever waits for the interpreter, a request for example, goes first
            entries.append(Entry(hash_leaf(usage_leaf_bytes(row, key)), row.id))
        return entries

    def _find_receipts(self, connection: Connection) -> tuple[list[Entry], int]:
        rows = table.list_pending_receipts(connection, BATCH)
        entries = [Entry(leaf_hash(decode_body(row.body)), receipt=row) for row in rows]
        return entries, self._receipt_log.row.event_mark

    async def _sign_in_time(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._signed_s >= (SIGN_S if self._receipt_log.is_leading else FOLLOW_S):
            self._signed_s = now_s
            await self._receipt_log.checkpoint(fresh=True)
