"""``INSERT … ON CONFLICT`` in words that both systems understand."""

from sqlalchemy import Table
from sqlalchemy.dialects.postgresql import Insert, insert


def upsert(table: Table) -> Insert:
    """An INSERT with ``on_conflict_do_update`` and ``on_conflict_do_nothing``; name the index elements."""
    return insert(table)
