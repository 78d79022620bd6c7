"""Usage summed up over many blocks, by few things at a time: what reports read in place of every block's sums."""

from sqlalchemy import Connection

from stentor.accounting.spans import table
from stentor.accounting.spans.table import (
    ROLLUPS,
    SUMS,
    Rollup,
    drop_with_block,
    find_rollup,
    size,
    sums_of_spans,
    without_span,
)


def find_next_span(connection: Connection) -> int | None:
    """The next span whose blocks are all there and that isn't summed up yet."""
    return table.find_next(connection)


def roll_up(connection: Connection, span: int, rollup: Rollup) -> None:
    """Sum a span's blocks up in one way; again, it changes nothing. Takes a few milliseconds."""
    table.roll_up(connection, span, rollup)


def finish_span(connection: Connection, span: int) -> bool:
    """Once it is summed up in every way: have reports read the span. False if blocks of it were dropped meanwhile."""
    return table.finish(connection, span)


__all__ = [
    "ROLLUPS",
    "SUMS",
    "Rollup",
    "drop_with_block",
    "find_next_span",
    "find_rollup",
    "finish_span",
    "roll_up",
    "size",
    "sums_of_spans",
    "without_span",
]
