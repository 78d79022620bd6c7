"""The log: one append-only Merkle tree of usage and receipts, its sequencer's state, and its signed checkpoints.

Leaves are numbered here and nowhere else. Every append names the state it starts from (size and epoch), so that of two
who think they are the sequencer one fails and stops, and an append that was written is never written again.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from stentor.core.clock import Clock
from stentor.core.errors import Refused, StentorError
from stentor.core.ids import new_uuid7
from stentor.receipts import table
from stentor.receipts.anchor import Anchor, read_anchor, write_anchor
from stentor.receipts.merkle import (
    EMPTY_ROOT,
    HASH_BYTES,
    TILE_HEIGHT,
    TILE_WIDTH,
    Appended,
    MissingTile,
    Tree,
    plan_append,
)
from stentor.receipts.note import Checkpoint, is_name, previous_line, sign_note
from stentor.receipts.settings import ReceiptSettings

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


def _tree(connection: Connection, log_id: int, size: int) -> Tree:
    return Tree(size, lambda level, index: table.find_tile(connection, log_id, level, index))


class ReceiptLog:
    """The growing log of this server. Make it with :meth:`open`; one sequencer task appends to it."""

    def __init__(
        self, store: Store, settings: ReceiptSettings, clock: Clock, row: table.LogRow, tails: tuple[bytes, ...]
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._row = row
        self._tails = tails
        self._signers: Callable[[int], list[Ed25519PrivateKey]] = lambda _: []
        self._signed: SignedCheckpoint | None = None
        self._signing = asyncio.Lock()

    @classmethod
    async def open(cls, store: Store, settings: ReceiptSettings, clock: Clock) -> "ReceiptLog":
        """Take the log over, or start one where there is none or where the database was put back in time."""
        if settings.origin and not is_name(settings.origin):
            raise StentorError(
                f"STENTOR_RECEIPTS_ORIGIN is '{settings.origin[:100]}', which can't name a log: write it without "
                "blanks and plus signs, like 'stentor.example.org/log'."
            )
        anchor = await asyncio.to_thread(read_anchor, settings.anchor)

        def work(connection: Connection) -> tuple[table.LogRow, tuple[bytes, ...]]:
            row = _choose_log(connection, settings, anchor, clock.now_us())
            row = table.take_over_log(connection, row.id)
            return row, _read_tails(connection, row)

        row, tails = await store.write(work)
        if anchor is None or anchor.origin != row.origin:
            # From its first leaf on, a log without anchor is one that was put back in time.
            begun = Anchor(row.origin, 0, EMPTY_ROOT.hex())
            await asyncio.to_thread(write_anchor, settings.anchor, begun)
        return cls(store, settings, clock, row, tails)

    def sign_with(self, signers: Callable[[int], list[Ed25519PrivateKey]]) -> None:
        """Where the keys for checkpoints come from; called with the time in UTC microseconds."""
        self._signers = signers
        self._signed = None

    @property
    def row(self) -> table.LogRow:
        """The log as this sequencer knows it."""
        return self._row

    # -- appending: the sequencer alone --------------------------------------------------------------------------------

    async def append(self, entries: list[Entry], event_mark: int) -> int:
        """Number ``entries`` and write them with the new state, in one transaction; returns the log's size.

        Raises SequencerReplaced, and writes nothing, if the log isn't as this sequencer left it.
        """
        row = self._row
        planned = plan_append(row.size, self._tails, [entry.hash for entry in entries])
        after = row._replace(size=planned.size, event_mark=event_mark)
        await self._store.write(lambda connection: _write(connection, row, after, planned, entries))
        self._row, self._tails = after, planned.tails
        return planned.size

    async def resync(self) -> bool:
        """Read the state again after an append whose end is unknown; False if the log has another sequencer."""

        def work(connection: Connection) -> tuple[table.LogRow, tuple[bytes, ...]] | None:
            row = table.find_log(connection)
            if row is None or (row.id, row.epoch) != (self._row.id, self._row.epoch):
                return None
            return row, _read_tails(connection, row)

        found = await self._store.read(work)
        if found is not None:
            self._row, self._tails = found
        return found is not None

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    async def checkpoint(self, covering: int = 0, *, fresh: bool = False) -> SignedCheckpoint:
        """A signed checkpoint of at least ``covering`` leaves; ``fresh``: of all there are.

        Before a new one is shown it is written to the anchor, so that no later start can sign a different history.
        """
        signed = self._signed
        if signed is not None and self._is_enough(signed.checkpoint.size, covering, fresh):
            return signed
        async with self._signing:
            signed = self._signed
            if signed is not None and self._is_enough(signed.checkpoint.size, covering, fresh):
                return signed
            return await self._sign()

    def _is_enough(self, size: int, covering: int, fresh: bool) -> bool:
        return size == self._row.size or (not fresh and covering <= size)

    async def _sign(self) -> SignedCheckpoint:
        row = self._row
        root = await self._proven(lambda connection: _tree(connection, row.id, row.size).root())
        checkpoint = Checkpoint(row.origin, row.size, root, (row.previous,) if row.previous else ())
        note = sign_note(checkpoint.text(), row.origin, self._signers(self._clock.now_us()))
        anchor = Anchor(row.origin, row.size, root.hex())
        await asyncio.to_thread(write_anchor, self._settings.anchor, anchor)
        self._signed = SignedCheckpoint(checkpoint, note)
        return self._signed

    async def old_checkpoint(self, row: table.LogRow) -> SignedCheckpoint:
        """A checkpoint of a log that doesn't grow any more, as far as this database knows it."""
        root = await self._store.read(lambda connection: _tree(connection, row.id, row.size).root())
        checkpoint = Checkpoint(row.origin, row.size, root, (row.previous,) if row.previous else ())
        return SignedCheckpoint(
            checkpoint, sign_note(checkpoint.text(), row.origin, self._signers(self._clock.now_us()))
        )

    # -- proofs --------------------------------------------------------------------------------------------------------

    async def get_row(self, origin: str) -> table.LogRow:
        """The log of this origin; empty: the one that grows. Raises Refused."""
        if origin in ("", self._row.origin):
            return self._row
        for row in await self._store.read(table.list_logs):
            if row.origin == origin:
                return row
        raise Refused("not_found", f"There is no log '{origin[:100]}' here; the current one is '{self._row.origin}'.")

    async def prove_inclusion(self, log_id: int, index: int, size: int) -> tuple[bytes, list[bytes]]:
        """A leaf's hash, and the path from it to the root of the tree of ``size`` leaves."""

        def work(connection: Connection) -> tuple[bytes, list[bytes]]:
            tree = _tree(connection, log_id, size)
            return tree.leaf(index), tree.inclusion(index)

        return await self._proven(work)

    async def prove_consistency(self, log_id: int, first: int, second: int) -> list[bytes]:
        """That the tree of ``first`` leaves is the beginning of that of ``second``."""
        return await self._proven(lambda connection: _tree(connection, log_id, second).consistency(first))

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
            tree = _tree(connection, row.id, end)
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


def _read_tails(connection: Connection, row: table.LogRow) -> tuple[bytes, ...]:
    """The short last tile of each level."""
    tails = []
    level = 0
    while level == 0 or row.size >> (TILE_HEIGHT * level):
        count = row.size >> (TILE_HEIGHT * level)
        short = count % TILE_WIDTH
        tile = table.find_tile(connection, row.id, level, count // TILE_WIDTH) if short else b""
        if len(tile) < short * HASH_BYTES:
            raise MissingTile(level, count // TILE_WIDTH)
        tails.append(tile[: short * HASH_BYTES])
        level += 1
    return tuple(tails)


def _choose_log(connection: Connection, settings: ReceiptSettings, anchor: Anchor | None, now_us: int) -> table.LogRow:
    """The log to go on with, or a new one that names the one before."""
    row = table.find_log(connection)
    base = settings.origin or _own_name(row)
    if row is None and anchor is None:
        return table.add_log(connection, base, "", 0, now_us)
    if row is not None and _continues(connection, row, anchor) and _is_named(row.origin, base):
        return row
    old = _last_shown(connection, row, anchor)
    mark = 0 if row is None else row.event_mark
    return table.add_log(connection, f"{base}~{new_uuid7()[-12:]}", previous_line(old), mark, now_us)


def _own_name(row: table.LogRow | None) -> str:
    """The name that this database's logs have had from the first on."""
    return f"stentor/{new_uuid7()}" if row is None else row.origin.partition("~")[0]


def _is_named(origin: str, base: str) -> bool:
    return origin == base or origin.startswith(f"{base}~")


def _continues(connection: Connection, row: table.LogRow, anchor: Anchor | None) -> bool:
    """Whether the database holds everything that was shown."""
    if anchor is None:
        return row.size == 0
    if anchor.origin != row.origin or anchor.size > row.size:
        return False
    return _tree(connection, row.id, anchor.size).root().hex() == anchor.root


def _last_shown(connection: Connection, row: table.LogRow | None, anchor: Anchor | None) -> Checkpoint:
    if anchor is not None:
        return Checkpoint(anchor.origin, anchor.size, bytes.fromhex(anchor.root))
    assert row is not None
    root = _tree(connection, row.id, row.size).root() if row.size else EMPTY_ROOT
    return Checkpoint(row.origin, row.size, root)
