"""Hooks: whom to tell of what. What signs the messages is sealed in the vault and shown once, when it was made here.

So is a hook's address, whose path is all that some services ask for: what is shown of it is its host.
"""

import secrets as random
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import Connection

from stentor.alerts import table
from stentor.alerts.outbox import Delivery
from stentor.alerts.values import EVENTS, AlertEvent
from stentor.core.errors import Refused
from stentor.vault.keyring import Keyring
from stentor.vault.secrets import (
    WEBHOOK,
    WEBHOOK_ADDRESS,
    check_name,
    check_secret,
    delete_secret,
    find_secret,
    set_secret,
)

SECRET_MIN_CHARS = 16
SECRET_BYTES = 32
WEBHOOKS_MAX = 32


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A hook to be made. ``events`` empty: all. ``secret`` None: one is made."""

    name: str
    url: str
    events: tuple[AlertEvent, ...] = ()
    secret: str | None = None

    def __repr__(self) -> str:
        return f"NewWebhook(name={self.name!r}, url={shown_address(self.url)!r})"


class Door(NamedTuple):
    """Where a hook's messages go, and what signs them."""

    url: str
    secret: str


class Webhook(msgspec.Struct, frozen=True):
    """A hook as people see it: its address's host, how much waits to be sent, and what became of what was sent last."""

    name: str
    url: str
    events: tuple[str, ...]
    created_us: int
    pending: int = 0
    last_delivery: Delivery | None = None

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


def add_webhook(connection: Connection, keyring: Keyring, new: NewWebhook, now_us: int) -> tuple[Webhook, str | None]:
    """Make a hook; also the secret, if it was made here. Raises Refused."""
    check_name(new.name)
    if new.secret is not None:
        check_secret(new.secret, "secret")
        if len(new.secret) < SECRET_MIN_CHARS:
            raise Refused(
                "invalid_request",
                f"The secret has {len(new.secret)} characters; use at least {SECRET_MIN_CHARS}, or leave it out and "
                "one is made.",
                param="secret",
            )
    if len(table.list_webhooks(connection)) >= WEBHOOKS_MAX:
        raise Refused("conflict", f"There are {WEBHOOKS_MAX} webhooks already; remove one first.")
    events = tuple(event for event in EVENTS if not new.events or event in new.events)
    if not table.add_webhook(connection, table.WebhookRow(new.name, shown_address(new.url), " ".join(events), now_us)):
        raise Refused("conflict", f"There is a webhook '{new.name}' already; remove it first.", param="name")
    made = None if new.secret is not None else "whsec_" + random.token_urlsafe(SECRET_BYTES)
    set_secret(connection, keyring, WEBHOOK, new.name, made or new.secret or "", now_us)
    set_secret(connection, keyring, WEBHOOK_ADDRESS, new.name, new.url, now_us)
    return get_webhook(connection, new.name), made


def remove_webhook(connection: Connection, name: str) -> Webhook:
    """Forget a hook, its secret, and what was to be sent to it. Raises Refused ``not_found``."""
    gone = get_webhook(connection, name)
    table.delete_webhook(connection, name)
    delete_secret(connection, WEBHOOK, name)
    delete_secret(connection, WEBHOOK_ADDRESS, name)
    return gone


def get_webhook(connection: Connection, name: str) -> Webhook:
    """One hook. Raises Refused ``not_found``."""
    row = table.find_webhook(connection, name)
    if row is None:
        raise Refused("not_found", f"There is no webhook '{name[:64]}'; `stentor webhooks list` shows all.")
    return _describe(connection, row, table.count_pending(connection))


def list_webhooks(connection: Connection) -> list[Webhook]:
    """All hooks by name."""
    pending = table.count_pending(connection)
    return [_describe(connection, row, pending) for row in table.list_webhooks(connection)]


def find_door(connection: Connection, keyring: Keyring, name: str) -> Door | None:
    """How a hook is told; None if it is gone. Raises StentorError if that can't be opened."""
    url = find_secret(connection, keyring, WEBHOOK_ADDRESS, name)
    secret = find_secret(connection, keyring, WEBHOOK, name)
    return None if url is None or secret is None else Door(url, secret)


def shown_address(url: str) -> str:
    """What may be shown of an address: its scheme and host, and whether there is more."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/" + ("…" if parts.path not in ("", "/") or parts.query else "")


def _describe(connection: Connection, row: table.WebhookRow, pending: dict[str, int]) -> Webhook:
    last = table.find_last_delivery(connection, row.name)
    delivery = None if last is None else Delivery(*last)
    return Webhook(row.name, row.url, tuple(row.events.split()), row.created_us, pending.get(row.name, 0), delivery)
