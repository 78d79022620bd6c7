"""Many rows in few statements: the write path of settlements.

A statement costs the driver one hand-over of the interpreter's lock (SQLite) or one round trip (PostgreSQL), so a group
goes in with one statement for its number of rows, or as one array for each column. The SQL is compiled once from the
table's definition and run on the driver directly.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from sqlalchemy import Connection, Table, insert
from sqlalchemy.dialects import postgresql, sqlite

from stentor.store.driver import raw_of

_AT_ONCE = 32  # rows in one statement: its text and its plan (some 4 kB a row) are kept, one for each number of rows


class BulkInsert:
    """``INSERT`` of tuples in the order of ``columns``; ``tail`` is an ``ON CONFLICT`` clause or empty."""

    def __init__(self, table: Table, columns: Sequence[str], tail: str = "", returning: Sequence[str] = ()) -> None:
        """``returning``: what PostgreSQL says of each row that was written (:meth:`run_returning`)."""
        single = str(insert(table).values({name: None for name in columns}).compile(dialect=sqlite.dialect()))
        head, _, row = single.partition(" VALUES ")
        assert row.count("?") == len(columns)
        names = head[head.index("(") + 1 : head.rindex(")")].replace('"', "").split(", ")
        # Core sorts columns by the table; tuples come in our order.
        assert names == list(columns), f"columns must be in the table's order: {names}"
        self._single = (head, row, tail)
        self._statements: dict[int, str] = {}
        dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
        types = [table.c[name].type.compile(dialect) for name in columns]
        arrays = ", ".join(f"${place}::{kind}[]" for place, kind in enumerate(types, 1))
        self._arrays = f"{head} SELECT * FROM unnest({arrays}) {tail}".rstrip()  # noqa: S608 - names of our own tables
        self._returning = f"{self._arrays} RETURNING {', '.join(returning)}" if returning else ""

    def run(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> int:
        """Insert ``rows``; returns how many were written or updated, those skipped by the tail not counted."""
        raw = raw_of(connection)
        if connection.dialect.name == "postgresql":
            _, _, tag = raw.link.fetch(self._arrays, tuple(zip(*rows, strict=True)))
            return int(tag.rpartition(" ")[2])
        written = 0
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            written += raw.execute(self._statement(len(part)), tuple(chain.from_iterable(part))).rowcount
        return written

    def _statement(self, size: int) -> str:
        found = self._statements.get(size)
        if found is None:
            head, row, tail = self._single
            found = self._statements[size] = f"{head} VALUES {', '.join([row] * size)} {tail}".rstrip()
        return found

    def run_returning(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> list[Any]:
        """As :meth:`run`, on PostgreSQL: one record for each row that was written."""
        _, found, _ = raw_of(connection).link.fetch(self._returning, tuple(zip(*rows, strict=True)))
        return list(found)
