"""Alerts on their way out: put into the outbox in the transaction of what caused them, and taken out once told."""

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection

from stentor.alerts import table
from stentor.alerts.thresholds import GRACE_US, choose_passed
from stentor.alerts.values import Alert, message_body
from stentor.core.clock import DAY_US
from stentor.core.ids import new_uuid7

ATTEMPTS_MAX = 8
FIRST_PAUSE_S = 5
LONGEST_PAUSE_S = 3600
KEEP_US = 90 * DAY_US
FORGET_SLICE = 200


class Delivery(msgspec.Struct, frozen=True):
    """How far an alert has come with one hook. ``tried_us`` is None before the first attempt; ``problem`` is empty
    where there was none; ``http_status`` is None where no answer came.
    """

    alert_id: str
    webhook: str
    event: str
    state: str
    attempts: int
    http_status: int | None
    problem: str
    tried_us: int | None


class ToldAlert(msgspec.Struct, frozen=True):
    """An alert, its message, and whom it went to."""

    id: str
    event: str
    created_us: int
    message: msgspec.Raw
    deliveries: list[Delivery]


Due = table.DueRow
list_due = table.list_due


class Attempt(msgspec.Struct, frozen=True):
    """What came of sending: ``problem`` empty: it was taken."""

    http_status: int | None
    problem: str


def choose_pause_s(attempts: int) -> int:
    """How long to wait after so many attempts failed: 5 s, three times as long each time, an hour at most."""
    return min(int(FIRST_PAUSE_S * 3 ** (attempts - 1)), LONGEST_PAUSE_S)


def raise_alerts(connection: Connection, alerts: Iterable[Alert], now_us: int) -> int:
    """Put what wasn't told before into the outbox, for every hook that wants it; how many alerts that were.

    Where no hook wants an event, nothing is written.
    """
    hooks = table.list_webhooks(connection)
    raised = 0
    for alert in sorted(alerts, key=lambda each: each.source):  # in order, so that two nodes never wait for each other
        names = [hook.name for hook in hooks if alert.event in hook.events.split()]
        if not names:
            continue
        alert_id = new_uuid7()
        values = {
            "id": alert_id,
            "source": alert.source,
            "event": alert.event,
            "body": message_body(alert_id, alert.event, alert.text, alert.data, now_us),
            "standing": alert.standing,
            "created_us": now_us,
        }
        if table.add_alert(connection, values):
            table.add_deliveries(connection, alert_id, names, now_us)
            raised += 1
    return raised


def find_passed(connection: Connection, thresholds: Sequence[int], starts: dict[str, tuple[int, ...]]) -> list[Alert]:
    """An alert for every threshold (percent) that a key's or project's limit has passed and nobody was told of.

    None where no hook wants to know.
    """
    if not thresholds or not any("budget_threshold" in hook.events.split() for hook in table.list_webhooks(connection)):
        return []
    rows = table.list_used_up(connection, min(thresholds), starts)
    passed = [alert for row in rows for alert in choose_passed(row, thresholds)]
    told = table.find_sources(connection, [alert.source for alert in passed])
    return [alert for alert in passed if alert.source not in told]


def note_attempt(connection: Connection, due: Due, attempt: Attempt, now_us: int) -> str:
    """Write down what came of an attempt; the delivery's state from now on.

    What else is due at a hook that failed waits until this one is tried again.
    """
    attempts = due.attempts + 1
    state = "delivered" if not attempt.problem else "failed" if attempts >= ATTEMPTS_MAX else "pending"
    next_us = now_us + choose_pause_s(attempts) * 1_000_000
    values = {
        "state": state,
        "attempts": attempts,
        "next_us": next_us,
        "http_status": attempt.http_status,
        "problem": attempt.problem,
        "tried_us": now_us,
    }
    table.change_delivery(connection, due.alert_id, due.webhook, values)
    if state == "pending":
        table.put_off(connection, due.webhook, now_us, next_us)
    return state


def list_alerts(connection: Connection, *, before: str | None, limit: int) -> list[ToldAlert]:
    """Alerts, newest first; page on with the last one's id."""
    rows = table.list_alerts(connection, before, limit)
    by_alert: dict[str, list[Delivery]] = {}
    for row in table.list_deliveries(connection, [row.id for row in rows]):
        by_alert.setdefault(row.alert_id, []).append(Delivery(*row))
    return [
        ToldAlert(row.id, row.event, row.created_us, msgspec.Raw(row.body.encode()), by_alert.get(row.id, []))
        for row in rows
    ]


def forget_alerts(connection: Connection, now_us: int) -> int:
    """Remove a slice of what is older than ninety days; how many."""
    return table.forget_alerts(connection, now_us - KEEP_US, FORGET_SLICE)


def choose_starts(day: tuple[int, int], month: tuple[int, int], now_us: int) -> dict[str, tuple[int, ...]]:
    """The windows to look at, by name: those that run (start, and the start of the one before), and those just over."""
    ran = {
        name: starts if now_us - starts[0] < GRACE_US else starts[:1]
        for name, starts in (("day", day), ("month", month))
    }
    return {"none": (0,), **ran}
