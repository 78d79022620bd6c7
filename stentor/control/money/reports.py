"""Usage as people read it: totals by day, model, key, user or project."""

from datetime import UTC, datetime
from typing import Literal

import msgspec
from sqlalchemy import Connection

from stentor.accounting.usage import Subject, UsageFilter, UsageTotal, total_usage
from stentor.people import users
from stentor.store.database import Database

By = Literal["day", "model", "key", "user", "project"]
_COLUMNS: dict[str, Subject] = {
    "day": "day_us",
    "model": "model",
    "key": "key_id",
    "user": "user_id",
    "project": "project_id",
}


class ReportRow(msgspec.Struct, frozen=True):
    """Totals of one day (``2026-11-21``, UTC) or one subject; ``label`` is a user's name where it is known."""

    group: str
    label: str
    events: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano: int
    absorbed_nano: int


class Reports:
    """Reads; changes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def report(
        self, where: UsageFilter, by: By, *, after: str | None = None, limit: int = 100
    ) -> tuple[list[ReportRow], str | None]:
        """A page of totals in the order of days or ids, and where the next one goes on.

        ``where.user_id`` may be a name or an email as well.
        """

        def read(connection: Connection) -> list[ReportRow]:
            found = where
            if found.user_id is not None:
                found = msgspec.structs.replace(found, user_id=users.get_user(connection, found.user_id).id)
            totals = total_usage(connection, found, (_COLUMNS[by],))
            if after is not None:
                last: str | int = _day_us(after) if by == "day" else after
                totals = [total for total in totals if total.subjects[0] > last]  # type: ignore[operator]
            shown = totals[:limit]
            names = users.list_names(connection, [str(one.subjects[0]) for one in shown]) if by == "user" else {}
            return [_row(total, by, names) for total in shown]

        rows = await self._database.study(read)
        return rows, rows[-1].group if len(rows) == limit else None


def _row(total: UsageTotal, by: By, names: dict[str, str]) -> ReportRow:
    group = label = str(total.subjects[0])
    if by == "day":
        group = label = datetime.fromtimestamp(int(group) / 1e6, UTC).strftime("%Y-%m-%d")
    elif by == "user":
        label = names.get(group, group)
    return ReportRow(
        group,
        label,
        total.events,
        total.input_tokens,
        total.cached_tokens,
        total.output_tokens,
        total.cost_nano,
        total.absorbed_nano,
    )


def _day_us(text: str) -> int:
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * 1_000_000
    except ValueError:
        return 0
