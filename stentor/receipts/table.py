"""All SQL of receipts. Usage events and prices are read here beside the log's own tables, never written."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    Connection,
    Text,
    and_,
    bindparam,
    cast,
    extract,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)

from stentor.receipts.usage import UsageRow
from stentor.store.bulk import BulkInsert
from stentor.store.ring_schema import (
    merkle_logs,
    merkle_tiles,
    receipt_items,
    receipts,
    usage_runs,
)
from stentor.store.schema import nodes, prices, usage_blocks, usage_events

LATE_IDS = 4096  # more than all nodes together have in groups that are being committed


class LogRow(NamedTuple):
    """A log: ``previous`` is the note line that names the one before, or empty; ``leader`` the node that numbers."""

    id: int
    origin: str
    size: int
    epoch: int
    event_mark: int
    previous: str
    created_us: int
    leader: str = ""


class ReceiptRow(NamedTuple):
    """A stored receipt; ``body`` is its JSON without proof."""

    project_id: str
    id: str
    shape: str
    receipt_type: str
    metered_by: str
    body: str
    log_id: int | None
    leaf_index: int | None
    created_us: int


_USAGE = (
    usage_events.c.id,
    usage_events.c.request_id,
    usage_events.c.attempt,
    usage_events.c.settled_us,
    usage_events.c.project_id,
    usage_events.c.model,
    usage_events.c.input_tokens,
    usage_events.c.cached_tokens,
    usage_events.c.output_tokens,
    usage_events.c.audio_ms,
    usage_events.c.characters,
    usage_events.c.cost_nano,
    usage_events.c.price_version,
    usage_events.c.billable,
    prices.c.input_nano,
    prices.c.cached_nano,
    prices.c.output_nano,
    prices.c.audio_second_nano,
    prices.c.character_nano,
    prices.c.request_nano,
)
_PRICED = usage_events.outerjoin(prices, prices.c.version == usage_events.c.price_version)
_LOG = tuple(merkle_logs.c[name] for name in LogRow._fields)
_RECEIPT = tuple(receipts.c[name] for name in ReceiptRow._fields)
# The end of the run that an event would stand in: runs don't overlap, so the one that begins before it is the one.
_RUN_END = (
    select(usage_runs.c.first_usage + usage_runs.c.leaves)
    .where(usage_runs.c.first_usage <= usage_events.c.id)
    .order_by(usage_runs.c.first_usage.desc())
    .limit(1)
    .scalar_subquery()
)
_IS_NO_LEAF = func.coalesce(_RUN_END, 0) <= usage_events.c.id
# Made once: the sequencer asks several times a second, and making it takes longer than running it.
_new = (
    select(*_USAGE)
    .select_from(_PRICED)
    .where(usage_events.c.id > bindparam("after_id", type_=BigInteger))
    .order_by(usage_events.c.id)
    .limit(bindparam("most", type_=BigInteger))
    .subquery()
)
# All rows as one text: the driver hands the interpreter over at every row, which costs more than the row.
_NEW_USAGE = {
    "sqlite": select(func.json_group_array(func.json_array(*_new.c))),
    "postgresql": select(cast(func.json_agg(func.json_build_array(*_new.c)), Text)),
}
_decode_usage = msgspec.json.Decoder(list[UsageRow], strict=False).decode  # SQLite's true is 1
_insert_runs = BulkInsert(usage_runs, ("log_id", "first_leaf", "first_usage", "leaves"))

# -- logs and tiles --------------------------------------------------------------------------------------------------


def find_log(connection: Connection) -> LogRow | None:
    """The log that grows, or None before the first start."""
    row = connection.execute(select(*_LOG).order_by(merkle_logs.c.id.desc()).limit(1)).one_or_none()
    return None if row is None else LogRow(*row)


def list_logs(connection: Connection) -> list[LogRow]:
    """All logs, oldest first."""
    return [LogRow(*row) for row in connection.execute(select(*_LOG).order_by(merkle_logs.c.id))]


def add_log(connection: Connection, origin: str, previous: str, event_mark: int, now_us: int) -> LogRow:
    """Start a log."""
    values = {"size": 0, "epoch": 0, "event_mark": event_mark, "previous": previous, "created_us": now_us, "leader": ""}
    row = connection.execute(insert(merkle_logs).values(origin=origin, **values).returning(*_LOG)).one()
    return LogRow(*row)


def is_led_by_another(connection: Connection, log: LogRow, node_id: str) -> bool:
    """Whether another node than ``node_id`` numbers this log's leaves, and lives by the database's clock."""
    if not node_id or log.leader in ("", node_id):
        return False
    now_us = cast(extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)
    query = select(literal(1)).where(nodes.c.id == log.leader, nodes.c.lease_until_us >= now_us)
    return connection.execute(query).first() is not None


def take_over_log(connection: Connection, log_id: int, node_id: str) -> LogRow:
    """Become the log's sequencer: whoever was it before can't append any more."""
    statement = update(merkle_logs).where(merkle_logs.c.id == log_id)
    statement = statement.values(epoch=merkle_logs.c.epoch + 1, leader=node_id)
    return LogRow(*connection.execute(statement.returning(*_LOG)).one())


def leave_log(connection: Connection, log: LogRow, node_id: str) -> None:
    """Be its sequencer no more, if it is."""
    here = (merkle_logs.c.id == log.id, merkle_logs.c.epoch == log.epoch, merkle_logs.c.leader == node_id)
    connection.execute(update(merkle_logs).where(*here).values(leader=""))


def advance_log(connection: Connection, log: LogRow, size: int, event_mark: int) -> bool:
    """Move the log from what ``log`` says to ``size``; False if somebody else did something to it meanwhile."""
    statement = update(merkle_logs).where(
        merkle_logs.c.id == log.id, merkle_logs.c.size == log.size, merkle_logs.c.epoch == log.epoch
    )
    return connection.execute(statement.values(size=size, event_mark=event_mark)).rowcount == 1


def find_tile(connection: Connection, log_id: int, level: int, tile_index: int) -> bytes:
    """A tile's hashes; empty where there is none."""
    query = select(merkle_tiles.c.hashes).where(
        merkle_tiles.c.log_id == log_id, merkle_tiles.c.level == level, merkle_tiles.c.tile_index == tile_index
    )
    found = connection.execute(query).scalar_one_or_none()
    return b"" if found is None else bytes(found)


def list_tiles(connection: Connection, log_id: int, places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """Those of the tiles (level, index) that there are."""
    tiles = merkle_tiles.c
    query = select(tiles.level, tiles.tile_index, tiles.hashes).where(
        tiles.log_id == log_id, tuple_(tiles.level, tiles.tile_index).in_(places)
    )
    return {(level, tile_index): bytes(hashes) for level, tile_index, hashes in connection.execute(query)}


def write_tiles(connection: Connection, log_id: int, tiles: Mapping[tuple[int, int], bytes]) -> None:
    """Insert or overwrite tiles."""
    for (level, tile_index), hashes in tiles.items():
        here = {"log_id": log_id, "level": level, "tile_index": tile_index}
        statement = update(merkle_tiles).where(*(merkle_tiles.c[name] == value for name, value in here.items()))
        if connection.execute(statement.values(hashes=hashes)).rowcount == 0:
            connection.execute(insert(merkle_tiles).values(hashes=hashes, **here))


# -- leaves ----------------------------------------------------------------------------------------------------------


def list_new_usage(connection: Connection, after_id: int, limit: int) -> list[UsageRow]:
    """Events beyond the mark, oldest first: what a log takes moves its mark with it."""
    query = _NEW_USAGE[connection.dialect.name]
    return _decode_usage(connection.execute(query, {"after_id": after_id, "most": limit}).scalar_one() or "[]")


def list_missed_usage(connection: Connection, until_id: int, since_us: int, limit: int) -> list[UsageRow]:
    """Events up to the mark that no log has: a transaction with a lower number can be the later one to commit.

    Only where several servers write: one alone commits in the order of its numbers.
    """
    if connection.dialect.name == "sqlite":
        return []
    first_id = select(func.min(usage_blocks.c.first_id)).where(usage_blocks.c.last_us >= since_us).scalar_subquery()
    covered = select(func.max(usage_blocks.c.end_id)).scalar_subquery()
    query = select(*_USAGE).select_from(_PRICED)
    query = query.where(
        usage_events.c.id >= func.coalesce(first_id, covered, 1),
        usage_events.c.id <= until_id,
        _IS_NO_LEAF,
    )
    return [UsageRow._make(row) for row in connection.execute(query.order_by(usage_events.c.id).limit(limit))]


def list_late_usage(connection: Connection, until_id: int, limit: int) -> list[UsageRow]:
    """Those of the last events up to the mark that no log has: nodes commit their groups in any order."""
    query = select(*_USAGE).select_from(_PRICED)
    query = query.where(usage_events.c.id > until_id - LATE_IDS, usage_events.c.id <= until_id, _IS_NO_LEAF)
    return [UsageRow._make(row) for row in connection.execute(query.order_by(usage_events.c.id).limit(limit))]


class Waiting(NamedTuple):
    """How many events and receipts are to become leaves, and when the first event of them was settled."""

    total: int
    first_us: int | None


def count_waiting(connection: Connection, mark: int, most: int) -> Waiting:
    """What waits beyond the mark; nothing is counted beyond ``most``."""
    first = list_new_usage(connection, mark, 1)
    beyond = select(usage_events.c.id).where(usage_events.c.id > mark).limit(most)
    pending = select(receipts.c.id).where(receipts.c.log_id.is_(None)).limit(most)
    counts = [
        connection.execute(select(func.count()).select_from(query.subquery())).scalar_one()
        for query in (beyond, pending)
    ]
    return Waiting(sum(counts), first[0].settled_us if first else None)


def count_leaves(connection: Connection, log_id: int, start: int, end: int) -> int:
    """How many of the leaves from ``start`` to before ``end`` are known to be an event or a receipt."""
    runs = select(usage_runs.c.first_leaf, usage_runs.c.leaves).where(
        usage_runs.c.log_id == log_id,
        usage_runs.c.first_leaf < end,
        usage_runs.c.first_leaf + usage_runs.c.leaves > start,
    )
    found = connection.execute(runs).all()
    of_usage = sum(min(int(first + leaves), end) - max(int(first), start) for first, leaves in found)
    kept = select(func.count()).where(
        receipts.c.log_id == log_id, receipts.c.leaf_index >= start, receipts.c.leaf_index < end
    )
    return of_usage + int(connection.execute(kept).scalar_one())


def add_usage_leaves(connection: Connection, log_id: int, leaves: Sequence[tuple[int, int]]) -> None:
    """Say which leaf (index) is which event (id)."""
    runs: list[tuple[int, int, int, int]] = []
    first_leaf = first_usage = count = 0
    for leaf_index, usage_id in leaves:
        if count and leaf_index == first_leaf + count and usage_id == first_usage + count:
            count += 1
            continue
        if count:
            runs.append((log_id, first_leaf, first_usage, count))
        first_leaf, first_usage, count = leaf_index, usage_id, 1
    if count:
        runs.append((log_id, first_leaf, first_usage, count))
    if runs:
        _insert_runs.run(connection, runs)


def find_usage(connection: Connection, request_id: str, attempt: int, project_id: str | None) -> UsageRow | None:
    """An event; ``project_id`` None: any project's."""
    query = (
        select(*_USAGE)
        .select_from(_PRICED)
        .where(usage_events.c.request_id == request_id, usage_events.c.attempt == attempt)
    )
    if project_id is not None:
        query = query.where(usage_events.c.project_id == project_id)
    row = connection.execute(query).one_or_none()
    return None if row is None else UsageRow._make(row)


def find_usage_leaf(connection: Connection, usage_id: int) -> tuple[int, int] | None:
    """Log and index of an event's leaf; None: it is in no log yet."""
    query = select(usage_runs).where(usage_runs.c.first_usage <= usage_id)
    run = connection.execute(query.order_by(usage_runs.c.first_usage.desc()).limit(1)).one_or_none()
    if run is None or usage_id >= run.first_usage + run.leaves:
        return None
    return run.log_id, run.first_leaf + usage_id - run.first_usage


def list_usage_leaves(connection: Connection, log_id: int, start: int, end: int) -> list[tuple[int, UsageRow]]:
    """The events behind the leaves from ``start`` to before ``end``, by index."""
    here = usage_runs.c.log_id == log_id
    first = select(func.max(usage_runs.c.first_leaf)).where(here, usage_runs.c.first_leaf <= start).scalar_subquery()
    place = (usage_runs.c.first_leaf + usage_events.c.id - usage_runs.c.first_usage).label("leaf_index")
    of_run = and_(
        usage_events.c.id >= usage_runs.c.first_usage,
        usage_events.c.id < usage_runs.c.first_usage + usage_runs.c.leaves,
    )
    query = (
        select(place, *_USAGE)
        .select_from(usage_runs.join(_PRICED, of_run))
        .where(here, usage_runs.c.first_leaf >= func.coalesce(first, 0), usage_runs.c.first_leaf < end)
        .where(place >= start, place < end)
        .order_by(place)
    )
    return [(row[0], UsageRow._make(row[1:])) for row in connection.execute(query)]


def list_receipt_leaves(connection: Connection, log_id: int, start: int, end: int) -> list[ReceiptRow]:
    """The receipts behind the leaves from ``start`` to before ``end``, by index."""
    query = select(*_RECEIPT).where(
        receipts.c.log_id == log_id, receipts.c.leaf_index >= start, receipts.c.leaf_index < end
    )
    return [ReceiptRow(*row) for row in connection.execute(query.order_by(receipts.c.leaf_index))]


# -- receipts --------------------------------------------------------------------------------------------------------


def list_pending_receipts(connection: Connection, limit: int) -> list[ReceiptRow]:
    """Receipts that are to be taken into the log, oldest first."""
    query = select(*_RECEIPT).where(receipts.c.log_id.is_(None))
    query = query.order_by(receipts.c.created_us, receipts.c.project_id, receipts.c.id)
    return [ReceiptRow(*row) for row in connection.execute(query.limit(limit))]


def set_receipt_leaf(connection: Connection, row: ReceiptRow, log_id: int, leaf_index: int) -> None:
    """Say which leaf a receipt is."""
    here = and_(receipts.c.project_id == row.project_id, receipts.c.id == row.id)
    connection.execute(update(receipts).where(here).values(log_id=log_id, leaf_index=leaf_index))


def add_receipt(connection: Connection, row: ReceiptRow) -> None:
    """Insert a receipt."""
    connection.execute(insert(receipts).values(**row._asdict()))


def find_receipt(connection: Connection, project_id: str, receipt_id: str) -> ReceiptRow | None:
    """A project's receipt."""
    query = select(*_RECEIPT).where(receipts.c.project_id == project_id, receipts.c.id == receipt_id)
    row = connection.execute(query).one_or_none()
    return None if row is None else ReceiptRow(*row)


def list_receipts(connection: Connection, project_id: str, limit: int, offset: int) -> list[ReceiptRow]:
    """A project's receipts, newest first."""
    query = select(*_RECEIPT).where(receipts.c.project_id == project_id)
    query = query.order_by(receipts.c.created_us.desc(), receipts.c.id.desc()).limit(limit).offset(offset)
    return [ReceiptRow(*row) for row in connection.execute(query)]


def count_receipts(connection: Connection, project_id: str) -> int:
    """How many receipts a project has."""
    query = select(func.count()).select_from(receipts).where(receipts.c.project_id == project_id)
    return int(connection.execute(query).scalar_one())


def add_items(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Say which logs a receipt certifies."""
    if rows:
        connection.execute(insert(receipt_items), list(rows))


def list_items(connection: Connection, project_id: str, receipt_id: str) -> list[tuple[str, str]]:
    """Kind and id of the logs that a receipt certifies."""
    query = select(receipt_items.c.kind, receipt_items.c.item_id).where(
        receipt_items.c.project_id == project_id, receipt_items.c.receipt_id == receipt_id
    )
    return [(row[0], row[1]) for row in connection.execute(query.order_by(receipt_items.c.item_id))]


def list_certified(connection: Connection, project_id: str, kind: str, item_ids: Sequence[str]) -> set[str]:
    """Which of these logs have a receipt."""
    found: set[str] = set()
    for start in range(0, len(item_ids), 500):
        query = select(receipt_items.c.item_id).where(
            receipt_items.c.project_id == project_id,
            receipt_items.c.kind == kind,
            receipt_items.c.item_id.in_(item_ids[start : start + 500]),
        )
        found.update(row[0] for row in connection.execute(query))
    return found
