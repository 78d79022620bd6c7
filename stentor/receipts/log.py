"""The log: one append-only Merkle tree of usage and receipts, its sequencer's state, and its signed checkpoints.

Leaves are numbered here and nowhere else. Every append names the state it starts from (size and epoch), so that of two
who think they are the sequencer one fails and stops, and an append that was written is never written again. Nodes that
share a database share the log: one numbers (``succession``), all of them prove and sign what the database holds.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from stentor.core.clock import Clock
from stentor.core.errors import Refused, StentorError
from stentor.receipts import table
from stentor.receipts.anchor import Anchor, read_anchor, write_anchor
from stentor.receipts.merkle import (
    HASH_BYTES,
    TILE_HEIGHT,
    TILE_WIDTH,
    Appended,
    MissingTile,
    plan_append,
)
from stentor.receipts.note import Checkpoint, is_name, sign_note
from stentor.receipts.settings import ReceiptSettings
from stentor.receipts.succession import Claim, Claimant, claim_log, find_claim, holds_anchor, is_in_order, read_tree

T = TypeVar("T")
LogRow = table.LogRow


class Store(Protocol):
    """The database, as far as a log needs it."""

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run on a snapshot."""
        ...

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run in a transaction; returns when it is durable."""
        ...


class SequencerReplaced(Exception):
    """Somebody else has become the sequencer of this log."""


class Entry(NamedTuple):
    """What is to become a leaf: its hash, and the event or the receipt that it is."""

    hash: bytes
    usage_id: int | None = None
    receipt: table.ReceiptRow | None = None


class SignedCheckpoint(NamedTuple):
    """A checkpoint and its note."""

    checkpoint: Checkpoint
    note: str


class ReceiptLog:
    """The growing log of this server and of those that share its database. Make it with :meth:`open`; one sequencer
    task appends to it.
    """

    def __init__(self, store: Store, settings: ReceiptSettings, clock: Clock, claim: Claim, node_id: str) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._claim = claim
        self._row = claim.row
        self._node_id = node_id
        self._anchor: Anchor | None = None
        self.appended = 0  # leaves, by this server
        self.signed_us = 0  # when it last signed a checkpoint of the log that grows
        self.unsigned_us = 0  # since when the log has had more than that; 0: it hasn't
        self._signers: Callable[[int], list[Ed25519PrivateKey]] = lambda _: []
        self._signed: SignedCheckpoint | None = None
        self._signing = asyncio.Lock()

    @classmethod
    async def open(cls, store: Store, settings: ReceiptSettings, clock: Clock, node_id: str = "") -> "ReceiptLog":
        """Join the log, or start one where there is none or where the database was put back in time.

        ``node_id`` says who this is among the nodes that share the database; empty: nobody shares it.
        """
        if settings.origin and not is_name(settings.origin):
            raise StentorError(
                f"STENTOR_RECEIPTS_ORIGIN is '{settings.origin[:100]}', which can't name a log: write it without "
                "blanks and plus signs, like 'stentor.example.org/log'."
            )
        claimant = Claimant(node_id, settings.origin, await asyncio.to_thread(read_anchor, settings.anchor))
        try:
            claim = await store.write(lambda connection: claim_log(connection, claimant, clock.now_us()))
        except MissingTile as error:
            raise StentorError(f"The receipt log is damaged: {error}. Restore a backup.") from None
        log = cls(store, settings, clock, claim, node_id)
        log._anchor = claimant.anchor
        await log._ensure_anchor()
        return log

    def sign_with(self, signers: Callable[[int], list[Ed25519PrivateKey]]) -> None:
        """Where the keys for checkpoints come from; called with the time in UTC microseconds."""
        self._signers = signers
        self._signed = None

    @property
    def row(self) -> table.LogRow:
        """The log as this server knows it; another node may have added to it since."""
        return self._row

    @property
    def anchor(self) -> Anchor | None:
        """What this server has shown last."""
        return self._anchor

    @property
    def is_shared(self) -> bool:
        """Whether other nodes may add to it."""
        return self._node_id != ""

    @property
    def is_leading(self) -> bool:
        """Whether this server numbers the leaves, as far as it knows."""
        return self._claim.leads

    # -- who numbers ---------------------------------------------------------------------------------------------------

    async def leads(self) -> bool:
        """Whether this server numbers the leaves: it takes the log over if nobody else does any more."""
        if self._claim.leads or not self._node_id:
            return True  # if it isn't so any more, the next append says it
        claimant, known = self._claimant(), self._row

        def look(connection: Connection) -> tuple[table.LogRow | None, bool]:
            row = table.find_log(connection)
            # What didn't change since the last time was in order then.
            same = row is not None and row == known and table.is_led_by_another(connection, row, claimant.node_id)
            return row, same or (row is not None and is_in_order(connection, row, claimant))

        row, in_order = await self._store.read(look)
        if row is None or not in_order:
            return await self._take_part()
        if row.size < known.size:
            self._row = row
        self._see(row)
        return False

    async def resync(self) -> bool:
        """Read the state again after an append whose end is unknown; False if there is nothing more to do here."""
        epoch = self._claim.row.epoch
        claimant = self._claimant()

        def look(connection: Connection) -> Claim | None:
            found = find_claim(connection, claimant.node_id, epoch)
            if found is None or claimant.anchor is None:
                return found
            return found if holds_anchor(connection, found.row, claimant.anchor) else None

        found = await self._store.read(look)
        if found is not None and found.row.id == self._claim.row.id:
            self._claim, self._row = found, found.row
            return True
        self._claim = self._claim._replace(leads=False)
        if self._node_id:
            await self._take_part()
        return self.is_shared

    async def resign(self) -> None:
        """Let another node number the leaves from now on: at the end, when everything is numbered."""
        if self._node_id and self._claim.leads:
            row, self._claim = self._claim.row, self._claim._replace(leads=False)
            await self._store.write(lambda connection: table.leave_log(connection, row, self._node_id))

    def _claimant(self) -> Claimant:
        return Claimant(self._node_id, self._settings.origin, self._anchor)

    async def _take_part(self) -> bool:
        claimant = self._claimant()
        self._claim = await self._store.write(lambda connection: claim_log(connection, claimant, self._clock.now_us()))
        self._row = self._claim.row
        await self._ensure_anchor()
        return self._claim.leads

    async def _ensure_anchor(self) -> None:
        """From its first leaf on, a log without anchor is one that was put back in time."""
        async with self._signing:
            row = self._row
            if self._anchor is not None and self._anchor.origin == row.origin:
                return
            root = await self._proven(lambda connection: read_tree(connection, row.id, row.size).root())
            await self._set_anchor(Anchor(row.origin, row.size, root.hex()))

    async def _set_anchor(self, anchor: Anchor) -> None:
        await asyncio.to_thread(write_anchor, self._settings.anchor, anchor)
        self._anchor = anchor

    def _see(self, row: table.LogRow) -> None:
        """The newest there is; reads end in any order."""
        if (row.id, row.size, row.epoch) > (self._row.id, self._row.size, self._row.epoch):
            self._row = row
            self.unsigned_us = self.unsigned_us or self._clock.now_us()

    async def refresh(self) -> None:
        """Learn what others, or an append that is just being confirmed, have added."""
        before = self._row
        row = await self._store.read(table.find_log)
        if row is None or (row.id, row.size) < (before.id, before.size):
            # Put back in time while the server runs. Whoever looks next compares it with what was shown.
            self._claim = self._claim._replace(leads=False)
        else:
            self._see(row)

    # -- appending: the sequencer alone --------------------------------------------------------------------------------

    async def append(self, entries: list[Entry], event_mark: int) -> int:
        """Number ``entries`` and write them with the new state, in one transaction; returns the log's size.

        Raises SequencerReplaced, and writes nothing, if the log isn't as this sequencer left it.
        """
        row, tails, leads = self._claim
        if not leads:
            raise SequencerReplaced
        planned = plan_append(row.size, tails, [entry.hash for entry in entries])
        after = row._replace(size=planned.size, event_mark=event_mark)
        await self._store.write(lambda connection: _write(connection, row, after, planned, entries))
        self._claim = Claim(after, planned.tails, leads=True)
        self._see(after)
        self.appended += len(entries)
        return planned.size

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    async def checkpoint(self, covering: int = 0, *, fresh: bool = False) -> SignedCheckpoint:
        """A signed checkpoint of at least ``covering`` leaves; ``fresh``: of all there are.

        Before a new one is shown it is written to the anchor, so that no later start can sign a different history.
        """
        if covering > self._row.size or (fresh and self.is_shared):
            await self.refresh()
        signed = self._signed
        if signed is not None and self._is_enough(signed.checkpoint, covering, fresh):
            return signed
        async with self._signing:
            signed = self._signed
            if signed is not None and self._is_enough(signed.checkpoint, covering, fresh):
                return signed
            return await self._sign()

    def _is_enough(self, signed: Checkpoint, covering: int, fresh: bool) -> bool:
        if signed.origin != self._row.origin:
            return False
        return signed.size == self._row.size or (not fresh and covering <= signed.size)

    async def _sign(self) -> SignedCheckpoint:
        row = self._row
        root = await self._proven(lambda connection: read_tree(connection, row.id, row.size).root())
        checkpoint = Checkpoint(row.origin, row.size, root, (row.previous,) if row.previous else ())
        note = sign_note(checkpoint.text(), row.origin, self._signers(self._clock.now_us()))
        await self._set_anchor(Anchor(row.origin, row.size, root.hex()))
        self._signed = SignedCheckpoint(checkpoint, note)
        self.signed_us = self._clock.now_us()
        self.unsigned_us = 0 if row.size == self._row.size else self.signed_us
        return self._signed

    async def checkpoint_of(self, log_id: int, covering: int) -> SignedCheckpoint:
        """A signed checkpoint of at least ``covering`` leaves of the log ``log_id``, growing or not."""
        if log_id > self._row.id:
            await self.refresh()
        if log_id == self._row.id:
            return await self.checkpoint(covering)
        rows = {row.id: row for row in await self._store.read(table.list_logs)}
        return await self.old_checkpoint(rows[log_id])

    async def old_checkpoint(self, row: table.LogRow) -> SignedCheckpoint:
        """A checkpoint of a log that doesn't grow any more, as far as this database knows it."""
        root = await self._store.read(lambda connection: read_tree(connection, row.id, row.size).root())
        checkpoint = Checkpoint(row.origin, row.size, root, (row.previous,) if row.previous else ())
        return SignedCheckpoint(
            checkpoint, sign_note(checkpoint.text(), row.origin, self._signers(self._clock.now_us()))
        )

    # -- proofs --------------------------------------------------------------------------------------------------------

    async def get_row(self, origin: str) -> table.LogRow:
        """The log of this origin; empty: the one that grows. Raises Refused."""
        if self.is_shared:
            await self.refresh()
        if origin in ("", self._row.origin):
            return self._row
        for row in await self._store.read(table.list_logs):
            if row.origin == origin:
                return row
        raise Refused("not_found", f"There is no log '{origin[:100]}' here; the current one is '{self._row.origin}'.")

    async def prove_inclusion(self, log_id: int, index: int, size: int) -> tuple[bytes, list[bytes]]:
        """A leaf's hash, and the path from it to the root of the tree of ``size`` leaves."""

        def work(connection: Connection) -> tuple[bytes, list[bytes]]:
            tree = read_tree(connection, log_id, size, index)
            return tree.leaf(index), tree.inclusion(index)

        return await self._proven(work)

    async def prove_consistency(self, log_id: int, first: int, second: int) -> list[bytes]:
        """That the tree of ``first`` leaves is the beginning of that of ``second``."""
        return await self._proven(
            lambda connection: read_tree(connection, log_id, second, first - 1).consistency(first)
        )

    async def _proven(self, work: Callable[[Connection], T]) -> T:
        try:
            return await self._store.read(work)
        except MissingTile as error:
            raise Refused(
                "internal_error",
                f"The receipt log is damaged: {error}. Restore a backup.",
            ) from None

    async def read_tile(self, row: table.LogRow, level: int, index: int) -> bytes:
        """A tile as far as ``row``'s size goes. Raises Refused where there is none."""
        hashes = await self._store.read(lambda connection: table.find_tile(connection, row.id, level, index))
        count = min(TILE_WIDTH, max(0, (row.size >> (TILE_HEIGHT * level)) - index * TILE_WIDTH))
        if count == 0 or not hashes:
            raise Refused("not_found", f"There is no tile {index} at level {level}; the log has {row.size} leaves.")
        return hashes[: count * HASH_BYTES]

    async def leaf_hashes(self, row: table.LogRow, start: int, end: int) -> list[bytes]:
        """The hashes of a range of leaves."""

        def work(connection: Connection) -> list[bytes]:
            tree = read_tree(connection, row.id, end)
            return [tree.leaf(index) for index in range(start, end)]

        return await self._proven(work)


def _write(
    connection: Connection, before: table.LogRow, after: table.LogRow, planned: Appended, entries: list[Entry]
) -> None:
    if not table.advance_log(connection, before, after.size, after.event_mark):
        raise SequencerReplaced
    table.write_tiles(connection, before.id, planned.changed)
    numbered = list(enumerate(entries, before.size))
    leaves = [(index, entry.usage_id) for index, entry in numbered if entry.usage_id is not None]
    table.add_usage_leaves(connection, before.id, leaves)
    for index, entry in numbered:
        if entry.receipt is not None:
            table.set_receipt_leaf(connection, entry.receipt, before.id, index)
