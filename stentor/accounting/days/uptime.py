"""How long the server could serve: a check a minute, a row a day, ninety days."""

import msgspec
from sqlalchemy import Connection

from stentor.accounting.days import table
from stentor.core.clock import DAY_US

KEEP_DAYS = 90


class UptimeDay(msgspec.Struct, frozen=True):
    """Sums over a day's checks: how many, how many good, their latency, the models that were ready."""

    day_us: int
    checks: int
    good: int
    latency_us: int
    models: int


def add_checks(connection: Connection, day: UptimeDay) -> None:
    """Add to a day; what is older than ninety days goes."""
    table.add_check(connection, day.day_us, (day.checks, day.good, day.latency_us, day.models))
    table.delete_uptime(connection, day.day_us - KEEP_DAYS * DAY_US)


def list_days(connection: Connection, since_us: int) -> list[UptimeDay]:
    """Days since then that saw a check."""
    return [UptimeDay(*row) for row in table.list_uptime(connection, since_us)]
