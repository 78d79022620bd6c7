"""Webhooks and alerts: wire types and routes. The secret that signs the messages is shown once."""

from typing import Literal

import msgspec

from stentor.alerts.values import AlertEvent
from stentor.http.route import Route, admin, listing
from stentor.http.wire import Json


class Delivery(msgspec.Struct):
    """How far an alert has come with one webhook; ``problem`` says why the last attempt failed."""

    alert_id: str
    webhook: str
    event: str
    state: Literal["pending", "delivered", "failed"]
    attempts: int
    http_status: int | None
    problem: str
    tried_us: int | None


class Webhook(msgspec.Struct):
    """Whom alerts are sent to: how many wait, and what became of the last attempt. Of the address the host is shown."""

    name: str
    url: str
    events: list[AlertEvent]
    created_us: int
    pending: int
    last_delivery: Delivery | None


class WebhookPage(msgspec.Struct):
    """All webhooks by name."""

    data: list[Webhook]
    next: None


class CreateWebhookRequest(msgspec.Struct, omit_defaults=True):
    """A webhook to be made. Its address must be public, or allowed by EGRESS_ALLOW. ``events`` empty: all.

    ``secret`` (16 visible characters or more) signs the messages; null: one is made and shown once.
    """

    name: str
    url: str
    events: list[AlertEvent] = []
    secret: str | None = None


class NewWebhook(Webhook):
    """A new webhook; ``secret`` is shown this once, null where the request brought it."""

    secret: str | None


class WebhookTest(msgspec.Struct):
    """What came of a message with the event ``test``."""

    name: str
    alert_id: str
    ok: bool
    http_status: int | None
    text: str


class Alert(msgspec.Struct):
    """Something that operators were told of: the message, and whom it went to."""

    id: str
    event: AlertEvent
    created_us: int
    message: Json
    deliveries: list[Delivery]


class AlertPage(msgspec.Struct):
    """A page of alerts, newest first."""

    data: list[Alert]
    next: str | None


ROUTES: tuple[Route, ...] = (
    admin("GET", "/webhooks", "list_webhooks", "Whom alerts are sent to, with the last delivery.", None, WebhookPage),
    admin("POST", "/webhooks", "create_webhook", "Send alerts there, too.", CreateWebhookRequest, NewWebhook),
    admin("DELETE", "/webhooks/{name}", "delete_webhook", "Send no more alerts there.", None, Webhook),
    admin("POST", "/webhooks/{name}/test", "test_webhook", "Send a message that means nothing.", None, WebhookTest),
    listing("/alerts", "list_alerts", "Alerts with their deliveries, newest first.", AlertPage),
)
