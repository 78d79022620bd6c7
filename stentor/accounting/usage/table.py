"""All SQL that reads usage events, and sums them up in blocks.

A settlement pays for every index on the events, so there is none but their ids and the request's. Instead the events of
successive ids are summed up, :data:`BLOCK` at a time, a moment after they were written: a question about sums adds up
what blocks say, and a page of events looks into those blocks alone that hold any. What no block covers yet, the tail,
and blocks that a question's time cuts in two, are read event by event: answers are exact at any moment.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from stentor.accounting import spans
from stentor.accounting.spans import SUMS
from stentor.core.clock import DAY_US
from stentor.store.schema import usage_blocks, usage_days, usage_events, usage_sums
from stentor.store.upsert import upsert

AnyRow = Row[*tuple[Any, ...]]

BLOCK = 2000

SUBJECTS = ("user_id", "project_id", "key_id", "model", "status")
FOLDED_BY = ("day_us", "user_id", "project_id", "key_id", "model")

Filters = dict[str, Any]

_IS_MARK = usage_blocks.c.first_id == usage_blocks.c.end_id  # what is left of the last block when its events are gone


# -- making blocks -----------------------------------------------------------------------------------------------------


_NO_END = 2**63 - 1
_END = select(func.max(usage_blocks.c.end_id))


def _covered_until(connection: Connection) -> int:
    """The first id that no block covers."""
    return connection.execute(_END).scalar_one() or 1


def add_block(connection: Connection, settled_before_us: int | None) -> bool:
    """Sum up the next block, if it is full; whether it was.

    ``settled_before_us``: leave a block alone that has younger events. Where several servers write, an event may become
    visible after events with higher ids did.
    """
    first = _covered_until(connection)
    end = first + BLOCK
    within = and_(usage_events.c.id >= first, usage_events.c.id < end)
    newest = connection.execute(select(func.max(usage_events.c.id))).scalar_one()
    if newest is None or newest < end - 1:
        return False
    oldest_us, last_us = connection.execute(
        select(func.min(usage_events.c.settled_us), func.max(usage_events.c.settled_us)).where(within)
    ).one()
    if settled_before_us is not None and last_us is not None and last_us >= settled_before_us:
        return False
    _put_block(connection, (first, end), (oldest_us or 0, last_us or 0))
    return True


def add_old_block(connection: Connection, settled_before_us: int) -> bool:
    """Sum up as a block of its own, however small, what no block covers yet and is all older; whether there was any.

    The newest event of all is left out: were it forgotten, its id could be given out a second time.
    """
    first = _covered_until(connection)
    loose = usage_events.c.id >= first
    younger = select(func.min(usage_events.c.id)).where(loose, usage_events.c.settled_us >= settled_before_us)
    newest = connection.execute(select(func.max(usage_events.c.id)).where(loose)).scalar_one()
    end = min(connection.execute(younger).scalar_one() or newest or first, newest or first, first + BLOCK)
    times = select(func.min(usage_events.c.settled_us), func.max(usage_events.c.settled_us))
    oldest_us, last_us = connection.execute(times.where(loose, usage_events.c.id < end)).one()
    if last_us is None:
        return False
    _put_block(connection, (first, end), (oldest_us, last_us))
    return True


def _put_block(connection: Connection, ids: tuple[int, int], times: tuple[int, int]) -> None:
    """Sum up the events of ``ids``, the last excluded, that were settled at ``times``, the last included."""
    within = and_(usage_events.c.id >= ids[0], usage_events.c.id < ids[1])
    number = connection.execute(select(func.coalesce(func.max(usage_blocks.c.block), 0))).scalar_one() + 1
    values = {"block": number, "first_id": ids[0], "end_id": ids[1], "first_us": times[0], "last_us": times[1]}
    statement = upsert(usage_blocks).values(**values).on_conflict_do_nothing().returning(usage_blocks.c.block)
    if connection.execute(statement).one_or_none() is None:
        return  # another server was quicker
    connection.execute(delete(usage_blocks).where(usage_blocks.c.block == number - 1, _IS_MARK))
    groups = [_subject("day_us"), *(usage_events.c[name] for name in SUBJECTS)]
    sums = select(literal(number), *groups, *_event_sums()).where(within).group_by(*groups)
    connection.execute(insert(usage_sums).from_select(("block", "day_us", *SUBJECTS, *SUMS), sums))


def _find_oldest(connection: Connection, settled_before_us: int) -> AnyRow | None:
    query = select(usage_blocks).where(~_IS_MARK).order_by(usage_blocks.c.block).limit(1)
    row = connection.execute(query).one_or_none()
    if row is None or row.last_us >= settled_before_us:
        return None
    newest = connection.execute(select(func.max(usage_events.c.id))).scalar_one()
    # The newest event stays, or its id could be given out a second time.
    return None if newest is None or newest < row.end_id else row


def list_oldest_sums(connection: Connection, settled_before_us: int) -> list[tuple[tuple[Any, ...], list[int]]]:
    """What :func:`drop_block` would forget, by :data:`FOLDED_BY`, in the order of :data:`SUMS`."""
    row = _find_oldest(connection, settled_before_us)
    if row is None:
        return []
    columns = [usage_sums.c[name] for name in FOLDED_BY]
    query = select(*columns, *(func.sum(usage_sums.c[name]) for name in SUMS)).where(usage_sums.c.block == row.block)
    width = len(FOLDED_BY)
    rows = connection.execute(query.group_by(*columns).order_by(*columns))
    return [(tuple(each[:width]), [int(value) for value in each[width:]]) for each in rows]


def drop_block(connection: Connection, settled_before_us: int) -> list[AnyRow] | None:
    """Forget the oldest block and its events if all of them are older; what it charged: user_id, charged_nano.

    None if there is no such block.
    """
    row = _find_oldest(connection, settled_before_us)
    if row is None:
        return None
    of_block = usage_sums.c.block == row.block
    charged = select(usage_sums.c.user_id, func.sum(usage_sums.c.charged_nano)).where(of_block)
    charges = list(connection.execute(charged.group_by(usage_sums.c.user_id).order_by(usage_sums.c.user_id)))
    spans.drop_with_block(connection, row.block)
    connection.execute(delete(usage_sums).where(of_block))
    this = usage_blocks.c.block == row.block
    if row.end_id < _covered_until(connection):
        connection.execute(delete(usage_blocks).where(this))
    else:  # the last one goes on saying from where on nothing is covered
        connection.execute(update(usage_blocks).where(this).values(first_id=row.end_id, first_us=0, last_us=0))
    connection.execute(delete(usage_events).where(usage_events.c.id >= row.first_id, usage_events.c.id < row.end_id))
    return charges


# -- reading -----------------------------------------------------------------------------------------------------------


def _subject(name: str) -> ColumnElement[Any]:
    if name == "day_us":
        return usage_events.c.settled_us - usage_events.c.settled_us % DAY_US
    return usage_events.c[name]


def _event_sums() -> list[ColumnElement[Any]]:
    billable = case((usage_events.c.billable, usage_events.c.input_tokens + usage_events.c.output_tokens), else_=0)
    values = [billable if name == "billable_tokens" else usage_events.c[name] for name in SUMS[1:]]
    return [func.count(), *(func.coalesce(func.sum(value), 0) for value in values)]


def _matching(table: Any, filters: Filters) -> list[ColumnElement[bool]]:
    return [table.c[name] == filters[name] for name in SUBJECTS if filters.get(name) is not None]


def _matching_events(filters: Filters) -> list[ColumnElement[bool]]:
    found = _matching(usage_events, filters)
    if filters.get("request_id") is not None:
        found.append(usage_events.c.request_id == filters["request_id"])
    if filters.get("since_us") is not None:
        found.append(usage_events.c.settled_us >= filters["since_us"])
    if filters.get("until_us") is not None:
        found.append(usage_events.c.settled_us < filters["until_us"])
    return found


def _in_time(filters: Filters) -> tuple[list[ColumnElement[bool]], ColumnElement[bool] | None]:
    """Of blocks: that they touch the time asked for, and that the time cuts them in two (None where no time is)."""
    touch: list[ColumnElement[bool]] = []
    cuts: list[ColumnElement[bool]] = []
    since_us, until_us = filters.get("since_us"), filters.get("until_us")
    if since_us is not None:
        touch.append(usage_blocks.c.last_us >= since_us)
        cuts.append(usage_blocks.c.first_us < since_us)
    if until_us is not None:
        touch.append(usage_blocks.c.first_us < until_us)
        cuts.append(usage_blocks.c.last_us >= until_us)
    return touch, or_(*cuts) if cuts else None


def _between(first: int, end: int | None) -> ColumnElement[bool]:
    if end is None:
        return usage_events.c.id >= first
    return and_(usage_events.c.id >= first, usage_events.c.id < end)


class _Questions(NamedTuple):
    """The statements of one kind of question, made once: to make them takes longer than to run them.

    Their parameters are the filters' values by name, and ``first`` and ``last`` of a run of ids or of blocks.
    """

    spans: Select[Any] | None
    loose_blocks: Select[Any]  # those that no span speaks for: some at the end, and where the time cuts a span in two
    block_run: Select[Any]
    blocks: Select[Any]
    folded: Select[Any] | None
    cut_ids: Select[Any] | None
    event_run: Select[Any]


@lru_cache(maxsize=512)
def _questions(asked: frozenset[str], by: tuple[str, ...]) -> _Questions:
    filters: Filters = {name: bindparam(name) for name in asked}
    equal = {name: filters[name] for name in SUBJECTS if name in asked}
    touch, cut = _in_time(filters)
    whole = [*touch, *([] if cut is None else [~cut])]
    rollup = spans.find_rollup(equal.keys() | set(by))
    blocks = _sums_of(usage_sums, equal, by)
    groups = [_subject(name) for name in by]
    events = select(*groups, *_event_sums()).where(*_matching_events(filters))
    events = events.group_by(*groups) if groups else events
    first: BindParameter[int] = bindparam("first")
    last: BindParameter[int] = bindparam("last")
    block = usage_blocks.c.block
    return _Questions(
        None if rollup is None else spans.sums_of_spans(rollup, equal, by, filters),
        select(block).where(spans.without_span(filters), *whole).order_by(block),
        blocks.where(usage_sums.c.block.between(first, last)),
        # Without a time all of them: read in one go, without looking each block up.
        blocks if cut is None else blocks.where(usage_sums.c.block.in_(select(block).where(*whole))),
        _sums_of_days(filters, by),
        None if cut is None else select(usage_blocks.c.first_id, usage_blocks.c.end_id - 1).where(*touch, cut),
        # Between two ends always: PostgreSQL, before it knows a table, expects a third of it behind a single one.
        events.where(usage_events.c.id.between(first, last)),
    )


def _sums_of(table: Any, equal: Filters, by: tuple[str, ...]) -> Select[Any]:
    columns = [table.c[name] for name in by]
    totals = [func.coalesce(func.sum(table.c[name]), 0) for name in SUMS]
    query = select(*columns, *totals).where(*(table.c[name] == value for name, value in equal.items()))
    return query.group_by(*columns) if columns else query


def _sums_of_days(filters: Filters, by: tuple[str, ...]) -> Select[Any] | None:
    """Sums over what was folded away, by whole days; a status isn't known of it any more."""
    if "status" in filters or "status" in by:
        return None
    query = _sums_of(usage_days, {name: filters[name] for name in FOLDED_BY[1:] if name in filters}, by)
    if "since_us" in filters:
        query = query.where(usage_days.c.day_us >= filters["since_us"])
    if "until_us" in filters:
        query = query.where(usage_days.c.day_us < filters["until_us"])
    return query


def sum_usage(connection: Connection, filters: Filters, by: tuple[str, ...]) -> dict[tuple[Any, ...], list[int]]:
    """Sums in the order of :data:`SUMS`, by the values of ``by`` (of :data:`SUBJECTS`, or ``day_us``)."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for row in _list_sums(connection, {name: value for name, value in filters.items() if value is not None}, by):
        key, values = tuple(row[: len(by)]), [int(value) for value in row[len(by) :]]
        known = found.get(key)
        found[key] = values if known is None else [a + b for a, b in zip(known, values, strict=True)]
    return found


def _list_sums(connection: Connection, values: Filters, by: tuple[str, ...]) -> Iterator[AnyRow]:
    """Sums of parts that are everything together: spans, blocks, days, and events one by one."""
    ask = _questions(frozenset(values), by)
    if "request_id" in values:
        yield from connection.execute(ask.event_run, {**values, "first": 0, "last": _NO_END})
        return
    if ask.spans is None:
        yield from connection.execute(ask.blocks, values)
    else:
        yield from connection.execute(ask.spans, values)
        loose = connection.execute(ask.loose_blocks, {**values, "span_blocks": spans.size()}).scalars()
        for first, last in _runs(loose):
            yield from connection.execute(ask.block_run, {**values, "first": first, "last": last})
    if ask.folded is not None:
        yield from connection.execute(ask.folded, values)
    tail = {"first": _covered_until(connection), "last": _NO_END}
    yield from connection.execute(ask.event_run, {**values, **tail})
    if ask.cut_ids is not None:
        for first, last in connection.execute(ask.cut_ids, values).all():
            yield from connection.execute(ask.event_run, {**values, "first": first, "last": last})


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Rising numbers as runs without a gap, each from its first to its last."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def list_events(connection: Connection, filters: Filters, before_id: int | None, limit: int) -> list[AnyRow]:
    """Events with all columns, newest first; ``before_id`` is the id of the last one seen."""
    found: list[AnyRow] = []
    for first, end in _candidate_ranges(connection, filters, before_id):
        query = select(usage_events).where(_between(first, end), *_matching_events(filters))
        if before_id is not None:
            query = query.where(usage_events.c.id < before_id)
        found += connection.execute(query.order_by(usage_events.c.id.desc()).limit(limit - len(found)))
        if len(found) >= limit:
            break
    return found


def _candidate_ranges(
    connection: Connection, filters: Filters, before_id: int | None
) -> Iterator[tuple[int, int | None]]:
    """Ids among which there may be events that match, newest first."""
    if filters.get("request_id") is not None:
        yield 0, None
        return
    tail = _covered_until(connection)
    if before_id is None or before_id > tail:
        yield tail, None
    touch, _ = _in_time(filters)
    subjects = _matching(usage_sums, filters)
    query = select(usage_blocks.c.first_id, usage_blocks.c.end_id).where(*touch)
    if before_id is not None:
        query = query.where(usage_blocks.c.first_id < before_id)
    if subjects:
        query = query.where(
            select(usage_sums.c.block).where(usage_sums.c.block == usage_blocks.c.block, *subjects).exists()
        )
    for row in connection.execute(query.order_by(usage_blocks.c.block.desc())):
        yield row[0], row[1]


def list_events_by_requests(connection: Connection, project_id: str, request_ids: Sequence[str]) -> list[AnyRow]:
    """All attempts of a project's requests, newest first."""
    rows: list[AnyRow] = []
    for start in range(0, len(request_ids), 500):
        query = select(usage_events).where(
            usage_events.c.project_id == project_id,
            usage_events.c.request_id.in_(request_ids[start : start + 500]),
        )
        rows += connection.execute(query)
    return sorted(rows, key=lambda row: row.id, reverse=True)


def list_recent(connection: Connection, user_id: str, since_us: int) -> list[AnyRow]:
    """A user's events since then, by time: key_id, attempt, opened_us, settled_us, billable tokens."""
    younger = select(func.min(usage_blocks.c.first_id)).where(usage_blocks.c.last_us >= since_us)
    first = connection.execute(younger).scalar_one() or _covered_until(connection)
    billable = case((usage_events.c.billable, usage_events.c.input_tokens + usage_events.c.output_tokens), else_=0)
    query = select(
        usage_events.c.key_id, usage_events.c.attempt, usage_events.c.opened_us, usage_events.c.settled_us, billable
    ).where(usage_events.c.id >= first, usage_events.c.user_id == user_id, usage_events.c.settled_us >= since_us)
    return list(connection.execute(query.order_by(usage_events.c.settled_us, usage_events.c.id)))
