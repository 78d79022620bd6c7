"""All SQL of spans: :data:`SPAN` successive blocks of usage, whose sums are summed up once more.

A block has its sums by all subjects at once, so a report over many blocks reads a row for each user, project, key,
model, status and day that met in them. Hardly a report asks for more than one or two of these: a span has its sums by
those alone. Blocks never change, so what is made of them is exact; a span goes as soon as one of its blocks does.
"""

from collections.abc import Mapping, Set
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, delete, func, literal, select

from stentor.store.schema import span_sums, usage_blocks, usage_spans, usage_sums
from stentor.store.upsert import upsert

Rollup = tuple[str, ...]

SPAN = 16  # blocks; stored spans are of this size
NO_DAY = -1
ROLLUPS: tuple[Rollup, ...] = (
    ("day_us",),
    ("user_id",),
    ("project_id",),
    ("key_id",),
    ("model",),
    ("status",),
    ("day_us", "user_id"),
    ("day_us", "project_id"),
    ("day_us", "key_id"),
    ("day_us", "model"),
    ("day_us", "status"),
    ("user_id", "model"),
)
_PLACES = (span_sums.c.subject, span_sums.c.other)
SUMS = (
    "events", "input_tokens", "cached_tokens", "output_tokens", "billable_tokens", "cost_nano", "charged_nano",
    "absorbed_nano",
)  # fmt: skip


def _texts(rollup: Rollup) -> list[str]:
    return [name for name in rollup if name != "day_us"]


# -- making spans ------------------------------------------------------------------------------------------------------


def size() -> int:
    """How many blocks make a span."""
    return SPAN


def find_next(connection: Connection) -> int | None:
    """The next span whose blocks are all there and that isn't made yet."""
    oldest, newest = connection.execute(select(func.min(usage_blocks.c.block), func.max(usage_blocks.c.block))).one()
    if oldest is None:
        return None
    last = connection.execute(select(func.max(usage_spans.c.span))).scalar_one()
    first_whole = -(-(oldest - 1) // SPAN)
    span = int(first_whole if last is None else max(last + 1, first_whole))
    return span if newest >= (span + 1) * SPAN else None


def _of_span(block: ColumnElement[Any], span: int) -> ColumnElement[bool]:
    return and_(block > span * SPAN, block <= (span + 1) * SPAN)


def roll_up(connection: Connection, span: int, rollup: Rollup) -> None:
    """Sum the blocks of a span up by some of their columns."""
    texts = [usage_sums.c[name] for name in _texts(rollup)]
    shown = [*texts, literal(""), literal("")][:2]
    day = usage_sums.c.day_us if "day_us" in rollup else literal(NO_DAY)
    totals = [func.sum(usage_sums.c[name]) for name in SUMS]
    sums = select(literal(",".join(rollup)), *shown, day, literal(span), *totals)
    sums = sums.where(_of_span(usage_sums.c.block, span)).group_by(*(usage_sums.c[name] for name in rollup))
    columns = ("told", "subject", "other", "day_us", "span", *SUMS)
    connection.execute(upsert(span_sums).from_select(columns, sums).on_conflict_do_nothing())


def finish(connection: Connection, span: int) -> bool:
    """Have a span count that is summed up in every way, if all its blocks are still there; whether they are."""
    query = select(func.count(), func.min(usage_blocks.c.first_us), func.max(usage_blocks.c.last_us))
    count, first_us, last_us = connection.execute(query.where(_of_span(usage_blocks.c.block, span))).one()
    if count < SPAN:
        drop(connection, span)
        return False
    values = {"span": span, "first_us": first_us, "last_us": last_us}
    connection.execute(upsert(usage_spans).values(**values).on_conflict_do_nothing())
    return True


def drop(connection: Connection, span: int) -> None:
    """Forget a span; its blocks are read themselves again."""
    connection.execute(delete(usage_spans).where(usage_spans.c.span == span))
    connection.execute(delete(span_sums).where(span_sums.c.span == span))


def drop_with_block(connection: Connection, block: int) -> None:
    """Forget the span of a block that goes."""
    drop(connection, (block - 1) // SPAN)


# -- reading -----------------------------------------------------------------------------------------------------------


def find_rollup(names: Set[str]) -> Rollup | None:
    """The first rollup that tells all of ``names`` apart, if there is one."""
    return next((rollup for rollup in ROLLUPS if names <= set(rollup)), None)


def _within(time: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """Of spans: that they lie as a whole in the time from ``since_us`` until before ``until_us``, where these are."""
    found = []
    if "since_us" in time:
        found.append(usage_spans.c.first_us >= time["since_us"])
    if "until_us" in time:
        found.append(usage_spans.c.last_us < time["until_us"])
    return found


def without_span(time: Mapping[str, Any]) -> ColumnElement[bool]:
    """Of blocks: that no span speaks for them in this time. :data:`SPAN` is the parameter ``span_blocks``."""
    mine = usage_spans.c.span == (usage_blocks.c.block - 1) // bindparam("span_blocks")
    return ~select(usage_spans.c.span).where(mine, *_within(time)).exists()


def sums_of_spans(
    rollup: Rollup, equal: Mapping[str, Any], by: tuple[str, ...], time: Mapping[str, Any]
) -> Select[Any]:
    """Sums over all spans that lie in ``time`` as a whole: ``by``, then the sums. ``equal``: values by column."""
    columns = dict(zip(_texts(rollup), _PLACES, strict=False)) | {"day_us": span_sums.c.day_us}
    groups = [columns[name] for name in by]
    query = select(*groups, *(func.coalesce(func.sum(span_sums.c[name]), 0) for name in SUMS))
    query = query.where(span_sums.c.told == ",".join(rollup))
    query = query.where(*(columns[name] == value for name, value in equal.items()))
    if within := _within(time):
        query = query.where(span_sums.c.span.in_(select(usage_spans.c.span).where(*within)))
    else:
        # One that is being made has sums already and doesn't count yet.
        query = query.where(span_sums.c.span <= select(func.max(usage_spans.c.span)).scalar_subquery())
    return query.group_by(*groups) if groups else query
