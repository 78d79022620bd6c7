"""All SQL of alerts: hooks, what happened, the outbox; and the one question they ask of keys, projects and buckets."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from stentor.store.schema import alerts, api_keys, bucket, deliveries, project_budgets, projects, users, webhooks
from stentor.store.upsert import upsert

AnyRow = Row[*tuple[Any, ...]]

_MANY = 500  # names in one statement

# -- hooks -------------------------------------------------------------------------------------------------------------


class WebhookRow(NamedTuple):
    """Whom to tell; ``url`` is what may be shown of it, ``events`` are separated by blanks."""

    name: str
    url: str
    events: str
    created_us: int


def add_webhook(connection: Connection, row: WebhookRow) -> bool:
    """Insert a hook; False where its name is taken."""
    statement = upsert(webhooks).values(**row._asdict()).on_conflict_do_nothing().returning(webhooks.c.name)
    return connection.execute(statement).one_or_none() is not None


def list_webhooks(connection: Connection) -> list[WebhookRow]:
    """All hooks by name."""
    return [WebhookRow(*row) for row in connection.execute(select(webhooks).order_by(webhooks.c.name))]


def find_webhook(connection: Connection, name: str) -> WebhookRow | None:
    """One hook."""
    row = connection.execute(select(webhooks).where(webhooks.c.name == name)).one_or_none()
    return None if row is None else WebhookRow(*row)


def delete_webhook(connection: Connection, name: str) -> None:
    """Remove a hook and what was to be sent to it."""
    connection.execute(delete(deliveries).where(deliveries.c.webhook == name))
    connection.execute(delete(webhooks).where(webhooks.c.name == name))


def count_pending(connection: Connection) -> dict[str, int]:
    """How much waits to be sent, by hook."""
    query = select(deliveries.c.webhook, func.count()).where(deliveries.c.state == "pending")
    return {row[0]: row[1] for row in connection.execute(query.group_by(deliveries.c.webhook))}


_DELIVERY = (
    deliveries.c.alert_id,
    deliveries.c.webhook,
    alerts.c.event,
    deliveries.c.state,
    deliveries.c.attempts,
    deliveries.c.http_status,
    deliveries.c.problem,
    deliveries.c.tried_us,
)


def _select_deliveries() -> Select[Any]:
    return select(*_DELIVERY).join(alerts, alerts.c.id == deliveries.c.alert_id)


def find_last_delivery(connection: Connection, webhook: str) -> AnyRow | None:
    """What was sent to a hook last, or tried."""
    query = _select_deliveries().where(deliveries.c.webhook == webhook, deliveries.c.tried_us.is_not(None))
    query = query.order_by(deliveries.c.tried_us.desc(), deliveries.c.alert_id.desc()).limit(1)
    return connection.execute(query).one_or_none()


# -- alerts and the outbox ---------------------------------------------------------------------------------------------


def add_alert(connection: Connection, values: dict[str, Any]) -> bool:
    """Insert an alert; False where its source was told of before."""
    statement = upsert(alerts).values(**values).on_conflict_do_nothing(index_elements=[alerts.c.source])
    return connection.execute(statement.returning(alerts.c.id)).one_or_none() is not None


def find_sources(connection: Connection, sources: Sequence[str]) -> set[str]:
    """Which of these were told of."""
    found: set[str] = set()
    for start in range(0, len(sources), _MANY):
        query = select(alerts.c.source).where(alerts.c.source.in_(sources[start : start + _MANY]))
        found |= set(connection.execute(query).scalars())
    return found


def add_deliveries(connection: Connection, alert_id: str, names: Sequence[str], now_us: int) -> None:
    """Put an alert into the outbox, for each of these hooks."""
    rows = [
        {"alert_id": alert_id, "webhook": name, "state": "pending", "attempts": 0, "next_us": now_us, "problem": ""}
        for name in names
    ]
    if rows:
        connection.execute(insert(deliveries), rows)


class DueRow(NamedTuple):
    """What is to be sent now."""

    alert_id: str
    webhook: str
    event: str
    body: str
    created_us: int
    attempts: int


def list_due(connection: Connection, now_us: int, per_hook: int) -> list[DueRow]:
    """What is due, oldest alert first, at most ``per_hook`` for each hook."""
    place = func.row_number().over(partition_by=deliveries.c.webhook, order_by=deliveries.c.alert_id).label("place")
    due = select(deliveries.c.alert_id, deliveries.c.webhook, deliveries.c.attempts, place)
    first = due.where(deliveries.c.state == "pending", deliveries.c.next_us <= now_us).subquery()
    query = (
        select(
            first.c.alert_id,
            first.c.webhook,
            alerts.c.event,
            alerts.c.body,
            alerts.c.created_us,
            first.c.attempts,
        )
        .join(alerts, alerts.c.id == first.c.alert_id)
        .join(webhooks, webhooks.c.name == first.c.webhook)
        .where(first.c.place <= per_hook)
        .order_by(first.c.alert_id, first.c.webhook)
    )
    return [DueRow(*row) for row in connection.execute(query)]


def change_delivery(connection: Connection, alert_id: str, webhook: str, values: dict[str, Any]) -> None:
    """Note what became of an attempt."""
    here = (deliveries.c.alert_id == alert_id) & (deliveries.c.webhook == webhook)
    connection.execute(update(deliveries).where(here).values(**values))


def put_off(connection: Connection, webhook: str, now_us: int, next_us: int) -> None:
    """Let what is due at a hook wait until then."""
    due = (deliveries.c.webhook == webhook) & (deliveries.c.state == "pending") & (deliveries.c.next_us <= now_us)
    connection.execute(update(deliveries).where(due).values(next_us=next_us))


def list_alerts(connection: Connection, before: str | None, limit: int) -> list[AnyRow]:
    """Alerts, newest first: id, event, body, created_us."""
    query = select(alerts.c.id, alerts.c.event, alerts.c.body, alerts.c.created_us)
    if before is not None:
        query = query.where(alerts.c.id < before)
    return list(connection.execute(query.order_by(alerts.c.id.desc()).limit(limit)))


def list_deliveries(connection: Connection, alert_ids: Sequence[str]) -> list[AnyRow]:
    """What became of these alerts, by hook."""
    query = _select_deliveries().where(deliveries.c.alert_id.in_(alert_ids))
    return list(connection.execute(query.order_by(deliveries.c.alert_id, deliveries.c.webhook)))


def forget_alerts(connection: Connection, before_us: int, limit: int) -> int:
    """Remove old alerts that nothing waits for any more; how many. Standing ones stay, or they would be told again."""
    waiting = exists().where(deliveries.c.alert_id == alerts.c.id, deliveries.c.state == "pending")
    old = select(alerts.c.id).where(alerts.c.created_us < before_us, ~alerts.c.standing, ~waiting)
    ids = list(connection.execute(old.order_by(alerts.c.id).limit(limit)).scalars())
    if ids:
        connection.execute(delete(deliveries).where(deliveries.c.alert_id.in_(ids)))
        connection.execute(delete(alerts).where(alerts.c.id.in_(ids)))
    return len(ids)


# -- limits that are being used up -------------------------------------------------------------------------------------


class UseRow(NamedTuple):
    """How much of a limit is used: what of, whose, and in which window; ``id`` names the key or project of now."""

    kind: str
    subject: str
    window: str
    window_start: int
    used: int
    limit: int
    name: str
    owner: str
    id: str = ""


_KEY_LIMITS = (
    ("key_tokens", "none", api_keys.c.token_limit),
    ("key_spending", "none", api_keys.c.spending_limit_nano),
    ("key_budget", "day", api_keys.c.budget_day_nano),
    ("key_budget", "month", api_keys.c.budget_month_nano),
)


def list_used_up(connection: Connection, percent: int, starts: dict[str, tuple[int, ...]]) -> list[UseRow]:
    """Limits of keys and projects of which roughly ``percent`` or more is used, by window and window's starts.

    A few too many where limits are tiny: multiplying would pass what a column holds.
    """
    rows: list[UseRow] = []
    for kind, window, limit in _KEY_LIMITS:
        query = _select_use(kind, window, starts[window], limit, percent, (api_keys.c.name, api_keys.c.id))
        # Of keys that replaced one another the newest has what all of them used.
        newest = (api_keys.c.line_id == bucket.c.subject) & api_keys.c.grace_until_us.is_(None)
        query = query.join(api_keys, newest).join(users, users.c.id == api_keys.c.user_id)
        rows += [UseRow(*row) for row in connection.execute(query.where(api_keys.c.revoked_us.is_(None)))]
    for window in ("none", "day", "month"):
        query = _select_use(
            "project_budget",
            window,
            starts[window],
            project_budgets.c.limit_nano,
            percent,
            (projects.c.name, projects.c.id),
        )
        query = query.join(projects, projects.c.id == bucket.c.subject).join(users, users.c.id == projects.c.owner_id)
        mine = (project_budgets.c.project_id == projects.c.id) & (project_budgets.c.window == window)
        rows += [UseRow(*row) for row in connection.execute(query.join(project_budgets, mine))]
    return rows


def _select_use(
    kind: str,
    window: str,
    starts: tuple[int, ...],
    limit: ColumnElement[Any],
    percent: int,
    shown: tuple[ColumnElement[Any], ColumnElement[Any]],
) -> Select[Any]:
    """``shown`` are the name and the id of whose limit it is."""
    columns = (bucket.c.kind, bucket.c.subject, bucket.c.window, bucket.c.window_start, bucket.c.used)
    return (
        select(*columns, limit, shown[0], users.c.name, shown[1])
        .select_from(bucket)
        .where(
            bucket.c.kind == kind,
            bucket.c.window == window,
            bucket.c.window_start.in_(starts),
            bucket.c.used > 0,
            or_(limit < literal(100), bucket.c.used >= limit // literal(100) * literal(percent)),
        )
        .order_by(bucket.c.subject, bucket.c.window_start)
    )
