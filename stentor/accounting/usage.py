"""Usage events as people read them: pages and totals."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection

from stentor.accounting import table

Subject = Literal["user_id", "project_id", "key_id", "model"]


class UsageEvent(msgspec.Struct, frozen=True):
    """One attempt of one request. Times are UTC microseconds, durations ``*_us``, money nano-USD.

    ``cost_nano`` is what the caller owes, ``charged_nano`` what of it the balance paid (0 for tiers without one),
    ``absorbed_nano`` what the house paid because more was used than reserved.
    """

    id: int
    request_id: str
    attempt: int
    client_request_id: str | None
    opened_us: int
    settled_us: int
    user_id: str
    project_id: str
    key_id: str
    model: str
    engine: str
    endpoint: str
    stream: bool
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    audio_ms: int
    characters: int
    estimated: bool
    queued_us: int
    latency_us: int
    first_token_us: int | None
    overhead_us: int | None
    cost_nano: int
    charged_nano: int
    absorbed_nano: int
    price_version: int
    status: str
    reason: str
    billable: bool


class UsageFilter(msgspec.Struct, frozen=True):
    """Which events; None: all. Times in UTC microseconds, ``until_us`` excluded."""

    user_id: str | None = None
    project_id: str | None = None
    key_id: str | None = None
    model: str | None = None
    request_id: str | None = None
    status: str | None = None
    since_us: int | None = None
    until_us: int | None = None


class UsagePage(msgspec.Struct, frozen=True):
    """Events, newest first; ``next`` is the cursor of the following page, None on the last."""

    events: list[UsageEvent]
    next: tuple[int, int] | None


class UsageTotal(msgspec.Struct, frozen=True):
    """Sums over events, of one subject or (``subject`` None) of all."""

    subject: str | None
    events: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano: int
    absorbed_nano: int


def list_usage(
    connection: Connection, where: UsageFilter, *, before: tuple[int, int] | None = None, limit: int = 100
) -> UsagePage:
    """A page of events; ``before`` is the ``next`` of the page that came before."""
    rows = table.list_events(connection, _filters(where), before, limit + 1)
    events = [UsageEvent(*row) for row in rows[:limit]]
    more = len(rows) > limit
    return UsagePage(events, (events[-1].settled_us, events[-1].id) if more else None)


def total_usage(connection: Connection, where: UsageFilter, by: Subject | None = None) -> list[UsageTotal]:
    """Totals, in all (one row) or by subject."""
    rows = table.sum_usage(connection, _filters(where), by)
    return [UsageTotal(*row) if by is not None else UsageTotal(None, *row) for row in rows]


def list_usage_by_names(connection: Connection, project_id: str, names: Sequence[str]) -> list[UsageEvent]:
    """A project's events by request id (the first attempt) or ``request id/attempt``, newest first."""
    wanted = {tuple(name.split("/", 1)) if "/" in name else (name, "1") for name in names}
    rows = table.list_events_by_requests(connection, project_id, sorted({name[0] for name in wanted}))
    return [UsageEvent(*row) for row in rows if (row.request_id, str(row.attempt)) in wanted]


def sum_project_usage(
    connection: Connection, project_id: str, since_us: int, until_us: int
) -> list[tuple[int, str, int, int, int, int]]:
    """Sums of a project by UTC day (days since 1970) and model: requests, cost, input, output tokens."""
    rows = table.sum_project_usage(connection, project_id, since_us, until_us)
    return [(int(row[0]), row[1], row[2], int(row[3]), int(row[4]), int(row[5])) for row in rows]


def _filters(where: UsageFilter) -> dict[str, Any]:
    return msgspec.structs.asdict(where)


class RecentUse(msgspec.Struct, frozen=True):
    """What the minute windows need of an event."""

    key_id: str
    attempt: int
    opened_us: int
    settled_us: int
    tokens: int


def list_recent(connection: Connection, user_id: str, since_us: int) -> list[RecentUse]:
    """A user's events since then, by time."""
    return [RecentUse(*row) for row in table.list_recent(connection, user_id, since_us)]
