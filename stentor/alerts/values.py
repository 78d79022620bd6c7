"""Alerts as values: what there is to tell, in the words that hooks get, and how a message is signed."""

import hashlib
import hmac
from typing import Any, Literal, get_args

import msgspec

from stentor.core.clock import time_text

AlertEvent = Literal["budget_threshold", "engine_crash_loop", "absorbed_cost"]
EVENTS: tuple[AlertEvent, ...] = get_args(AlertEvent)
TEST = "test"

SIGNATURE_HEADER = "x-stentor-signature"
ID_HEADER = "x-stentor-alert"


class Alert(msgspec.Struct, frozen=True):
    """Something to tell once for each ``source``. ``data`` are plain numbers and names: no secret, no prompt.

    ``standing``: its source doesn't pass with time.
    """

    source: str
    event: AlertEvent
    text: str
    data: dict[str, Any]
    standing: bool = False


def message_body(alert_id: str, event: str, text: str, data: dict[str, Any], created_us: int) -> str:
    """The JSON that a hook gets, byte for byte at every attempt."""
    message = {"id": alert_id, "event": event, "created_at": time_text(created_us), "text": text, "data": data}
    return msgspec.json.encode(message).decode()


def sign_message(secret: str, timestamp_s: int, body: str) -> str:
    """The header's value: ``t=<seconds>,v1=<hex>``, HMAC-SHA256 under ``secret`` of ``<seconds>.<body>``."""
    digest = hmac.new(secret.encode(), f"{timestamp_s}.{body}".encode(), hashlib.sha256).hexdigest()
    return f"t={timestamp_s},v1={digest}"


def message_headers(secret: str, timestamp_s: int, alert_id: str, body: str) -> dict[str, str]:
    """What goes with a message."""
    return {
        "Content-Type": "application/json",
        ID_HEADER: alert_id,
        SIGNATURE_HEADER: sign_message(secret, timestamp_s, body),
    }
