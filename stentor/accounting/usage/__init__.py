"""Usage events as people read them: pages and totals."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection

from stentor.accounting.spans import SUMS
from stentor.accounting.usage import table
from stentor.core.clock import DAY_US

Subject = Literal["user_id", "project_id", "key_id", "model", "status", "day_us"]
Amount = Literal["billable_tokens", "cost_nano"]


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
    next: int | None


class UsageTotal(msgspec.Struct, frozen=True):
    """Sums over events that agree in ``subjects``, the values of what was asked to be told apart, in that order.

    ``billable_tokens`` are those that count against limits. Money is nano-USD; see :class:`UsageEvent`.
    """

    subjects: tuple[str | int, ...]
    events: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    billable_tokens: int
    cost_nano: int
    charged_nano: int
    absorbed_nano: int


def list_usage(connection: Connection, where: UsageFilter, *, before: int | None = None, limit: int = 100) -> UsagePage:
    """A page of events; ``before`` is the ``next`` of the page that came before."""
    rows = table.list_events(connection, _filters(where), before, limit + 1)
    events = [UsageEvent(*row) for row in rows[:limit]]
    more = len(rows) > limit
    return UsagePage(events, events[-1].id if more else None)


def total_usage(connection: Connection, where: UsageFilter, by: tuple[Subject, ...] = ()) -> list[UsageTotal]:
    """Totals, in all (one row) or for each combination of ``by`` that occurs, sorted. ``day_us``: a UTC day's start."""
    sums = table.sum_usage(connection, _filters(where), by)
    return [UsageTotal(key, *values) for key, values in sorted(sums.items()) if values[0] or not by]


def sum_between(
    connection: Connection, subject: tuple[str, str], amount: Amount, start_us: int, end_us: int | None
) -> int:
    """What one subject (a column and its value) used or cost from ``start_us`` until before ``end_us``."""
    where = {subject[0]: subject[1], "since_us": start_us, "until_us": end_us}
    return table.sum_usage(connection, where, ())[()][SUMS.index(amount)]


def sum_up(connection: Connection, settled_before_us: int | None) -> bool:
    """Sum up the next block of events if there is a full one; whether there was. Takes a few milliseconds.

    ``settled_before_us``: where several servers write, leave events alone that are younger.
    """
    return table.add_block(connection, settled_before_us)


def sum_up_old(connection: Connection, settled_before_us: int) -> bool:
    """Sum up what is in no block yet and all older, however little it is; whether there was any. The newest stays."""
    return table.add_old_block(connection, settled_before_us)


def forget_block(connection: Connection, settled_before_us: int) -> dict[str, int] | None:
    """Delete the oldest block of events if all of them are older; what it had charged to balances, by user.

    None when there is none. Whoever calls this closes the period in the ledger within the same transaction.
    """
    charges = table.drop_block(connection, settled_before_us)
    return None if charges is None else {row[0]: int(row[1]) for row in charges}


def list_usage_by_names(connection: Connection, project_id: str, names: Sequence[str]) -> list[UsageEvent]:
    """A project's events by request id (the first attempt) or ``request id/attempt``, newest first."""
    wanted = {tuple(name.split("/", 1)) if "/" in name else (name, "1") for name in names}
    rows = table.list_events_by_requests(connection, project_id, sorted({name[0] for name in wanted}))
    return [UsageEvent(*row) for row in rows if (row.request_id, str(row.attempt)) in wanted]


def sum_project_usage(
    connection: Connection, project_id: str, since_us: int, until_us: int
) -> list[tuple[int, str, int, int, int, int]]:
    """Sums of a project by UTC day (days since 1970) and model: requests, cost, input, output tokens."""
    where: dict[str, Any] = {"project_id": project_id, "since_us": since_us, "until_us": until_us}
    sums = table.sum_usage(connection, where, ("day_us", "model"))
    names = ("events", "cost_nano", "input_tokens", "output_tokens")
    places = [SUMS.index(name) for name in names]
    return [(key[0] // DAY_US, key[1], *(values[place] for place in places)) for key, values in sorted(sums.items())]


def list_oldest_sums(connection: Connection, settled_before_us: int) -> list[tuple[tuple[str | int, ...], list[int]]]:
    """The sums of the block that :func:`forget_block` would delete: (day, user, project, key, model), :data:`SUMS`."""
    return table.list_oldest_sums(connection, settled_before_us)


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
