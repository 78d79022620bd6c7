"""All SQL of what is kept by the day."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, select

from stentor.store.schema import uptime, usage_days
from stentor.store.upsert import upsert

AnyRow = Row[*tuple[Any, ...]]

FOLDED_SUMS = (
    "events",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "billable_tokens",
    "cost_nano",
    "charged_nano",
    "absorbed_nano",
)


def add_to_day(connection: Connection, name: tuple[Any, ...], sums: Sequence[int]) -> None:
    """Add to a folded day's row (day, user, project, key, model), making it if it is missing."""
    keys = ("day_us", "user_id", "project_id", "key_id", "model")
    values = dict(zip(keys, name, strict=True)) | dict(zip(FOLDED_SUMS, sums, strict=True))
    statement = upsert(usage_days).values(**values)
    added = {column: usage_days.c[column] + statement.excluded[column] for column in FOLDED_SUMS}
    connection.execute(statement.on_conflict_do_update(index_elements=[usage_days.c[key] for key in keys], set_=added))


def add_check(connection: Connection, day_us: int, sums: tuple[int, int, int, int]) -> None:
    """Add checks, good ones, microseconds and models to a day's uptime."""
    columns = ("checks", "good", "latency_us", "models")
    statement = upsert(uptime).values(day_us=day_us, **dict(zip(columns, sums, strict=True)))
    added = {column: uptime.c[column] + statement.excluded[column] for column in columns}
    connection.execute(statement.on_conflict_do_update(index_elements=[uptime.c.day_us], set_=added))


def list_uptime(connection: Connection, since_us: int) -> list[AnyRow]:
    """Days since then: day, checks, good, latency, models."""
    query = select(uptime.c.day_us, uptime.c.checks, uptime.c.good, uptime.c.latency_us, uptime.c.models)
    return list(connection.execute(query.where(uptime.c.day_us >= since_us).order_by(uptime.c.day_us)))


def delete_uptime(connection: Connection, before_us: int) -> None:
    """Remove days before then."""
    connection.execute(delete(uptime).where(uptime.c.day_us < before_us))
