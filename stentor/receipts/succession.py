"""Which log goes on, and who numbers its leaves: one node at a time, found out in the transaction that takes it over.

A node that has the database for itself always does. Among several it is the one that the log's row names, as long as
that node's lease in ``nodes`` holds; each that takes the log over counts ``epoch`` up, so that the one before can't
append any more, however late it wakes. A log that lacks something that this node has shown is never gone on with.
"""

from typing import NamedTuple

from sqlalchemy import Connection

from stentor.core.ids import new_uuid7
from stentor.receipts import table
from stentor.receipts.anchor import Anchor
from stentor.receipts.merkle import EMPTY_ROOT, HASH_BYTES, TILE_HEIGHT, TILE_WIDTH, MissingTile, Tree, plan_tiles
from stentor.receipts.note import Checkpoint, previous_line


class Claimant(NamedTuple):
    """Who asks: ``node_id`` empty for one that has the database for itself; ``origin`` as the operator wants it."""

    node_id: str
    origin: str
    anchor: Anchor | None


class Claim(NamedTuple):
    """The log that grows. ``leads``: the claimant numbers its leaves, and goes on from ``tails``."""

    row: table.LogRow
    tails: tuple[bytes, ...]
    leads: bool


def claim_log(connection: Connection, claimant: Claimant, now_us: int) -> Claim:
    """Take the log over if nobody leads it; begin one where there is none or where it was put back in time.

    In a write transaction: of several claimants one gets it.
    """
    row = table.find_log(connection)
    led = row is not None and table.is_led_by_another(connection, row, claimant.node_id)
    if row is None or not _goes_on(connection, row, claimant, led=led):
        row, led = _begin_log(connection, row, claimant, now_us), False
    if led:
        return Claim(row, (), leads=False)
    row = table.take_over_log(connection, row.id, claimant.node_id)
    return Claim(row, _read_tails(connection, row), leads=True)


def find_claim(connection: Connection, node_id: str, epoch: int) -> Claim | None:
    """The state as it is now, if ``node_id`` still leads as it did at ``epoch``."""
    row = table.find_log(connection)
    if row is None or (row.leader, row.epoch) != (node_id, epoch):
        return None
    return Claim(row, _read_tails(connection, row), leads=True)


def is_in_order(connection: Connection, row: table.LogRow, claimant: Claimant) -> bool:
    """Whether somebody else leads this log, and it holds all that the claimant has shown."""
    return table.is_led_by_another(connection, row, claimant.node_id) and holds_anchor(connection, row, claimant.anchor)


def holds_anchor(connection: Connection, row: table.LogRow, anchor: Anchor | None) -> bool:
    """Whether ``row`` and the logs before it hold what ``anchor`` says was shown, or name its loss themselves."""
    if anchor is None:
        return False
    shown: table.LogRow | None = row
    if anchor.origin != row.origin:
        shown = next((one for one in table.list_logs(connection) if one.origin == anchor.origin), None)
    if shown is not None and _holds(connection, shown, anchor):
        return True
    named = Checkpoint(row.origin, row.size, b"", (row.previous,)).previous
    return named is not None and named.origin == anchor.origin and named.size >= anchor.size


def _holds(connection: Connection, row: table.LogRow, anchor: Anchor) -> bool:
    if row.size < anchor.size:
        return False
    try:
        return read_tree(connection, row.id, anchor.size).root().hex() == anchor.root
    except MissingTile:
        return False


def _goes_on(connection: Connection, row: table.LogRow, claimant: Claimant, *, led: bool) -> bool:
    if claimant.anchor is None:
        # A folder that has shown nothing. Who leads has compared the log with what it has shown itself.
        return led or row.size == 0
    if not holds_anchor(connection, row, claimant.anchor):
        return False
    return led or _is_named(row.origin, claimant.origin or _own_name(row))


def _begin_log(connection: Connection, before: table.LogRow | None, claimant: Claimant, now_us: int) -> table.LogRow:
    """A new log that names the one before, whose sequencer is let go."""
    base = claimant.origin or _own_name(before)
    if before is None and claimant.anchor is None:
        return table.add_log(connection, base, "", 0, now_us)
    mark = 0
    if before is not None:
        mark = table.take_over_log(connection, before.id, claimant.node_id).event_mark
    old = _last_shown(connection, before, claimant.anchor)
    return table.add_log(connection, f"{base}~{new_uuid7()[-12:]}", previous_line(old), mark, now_us)


def _own_name(row: table.LogRow | None) -> str:
    """The name that this database's logs have had from the first on."""
    return f"stentor/{new_uuid7()}" if row is None else row.origin.partition("~")[0]


def _is_named(origin: str, base: str) -> bool:
    return origin == base or origin.startswith(f"{base}~")


def _last_shown(connection: Connection, row: table.LogRow | None, anchor: Anchor | None) -> Checkpoint:
    if anchor is not None:
        return Checkpoint(anchor.origin, anchor.size, bytes.fromhex(anchor.root))
    assert row is not None
    root = read_tree(connection, row.id, row.size).root() if row.size else EMPTY_ROOT
    return Checkpoint(row.origin, row.size, root)


def read_tree(connection: Connection, log_id: int, size: int, leaf: int | None = None) -> Tree:
    """The first ``size`` leaves of a log as a tree over its tiles; ``leaf`` says which path is wanted, if one is."""
    places = plan_tiles(size, leaf)
    tiles = table.list_tiles(connection, log_id, places) if places else {}  # all at once: a database may be far away

    def read_tile(level: int, index: int) -> bytes:
        tile = tiles.get((level, index))
        return table.find_tile(connection, log_id, level, index) if tile is None else tile

    return Tree(size, read_tile)


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
