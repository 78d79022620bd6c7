"""All SQL of the audit log."""

from typing import Any

from sqlalchemy import Connection, func, insert, select

from stentor.store.schema import audit

_FILTERS = ("actor", "action", "subject_kind", "subject_id")


def add(connection: Connection, values: dict[str, Any]) -> None:
    """Append one row."""
    connection.execute(insert(audit).values(**values))


def page(connection: Connection, filters: dict[str, Any], before_id: int | None, limit: int) -> list[Any]:
    """Rows, newest first, older than ``before_id``; ``filters`` by column, and ``since_us`` and ``until_us``."""
    query = select(
        audit.c.id,
        audit.c.created_us,
        audit.c.actor,
        audit.c.origin,
        audit.c.action,
        audit.c.subject_kind,
        audit.c.subject_id,
        audit.c.before,
        audit.c.after,
        audit.c.address,
    ).order_by(audit.c.id.desc())
    for name in _FILTERS:
        if filters.get(name) is not None:
            query = query.where(audit.c[name] == filters[name])
    if filters.get("since_us") is not None:
        query = query.where(audit.c.created_us >= filters["since_us"])
    if filters.get("until_us") is not None:
        query = query.where(audit.c.created_us < filters["until_us"])
    if before_id is not None:
        query = query.where(audit.c.id < before_id)
    return list(connection.execute(query.limit(limit)))


def find_newest(connection: Connection) -> int:
    """The largest id, or 0."""
    return int(connection.execute(select(func.coalesce(func.max(audit.c.id), 0))).scalar_one())


def list_subjects(connection: Connection, after_id: int, limit: int) -> list[tuple[int, str, str]]:
    """Id, subject_kind, subject_id of rows after ``after_id``, oldest first."""
    query = select(audit.c.id, audit.c.subject_kind, audit.c.subject_id).where(audit.c.id > after_id)
    rows = connection.execute(query.order_by(audit.c.id).limit(limit))
    return [(row.id, row.subject_kind, row.subject_id) for row in rows]
