"""Secrets of others that the server keeps: sealed with a data key, bound to their row, named by kind and name.

Nothing here hands a secret to an API: what is listed is a name and, of long ones, the last four characters.
"""

import re

import msgspec
from sqlalchemy import Connection

from stentor.core.errors import Refused
from stentor.core.ids import new_uuid7
from stentor.vault import table
from stentor.vault.keyring import Keyring

HUB_TOKEN = "hf_token"  # noqa: S105  # the kind, not a token
PROVIDER = "provider"
WEBHOOK = "webhook"
WEBHOOK_ADDRESS = "webhook_address"
_TABLE = "secrets"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TEXT = re.compile(r"[!-~]{1,4096}")
_HINTED_FROM_CHARS = 16


class Secret(msgspec.Struct, frozen=True):
    """What may be known of a secret: ``hint`` is its last four characters, empty for a short one."""

    id: str
    kind: str
    name: str
    hint: str
    created_us: int
    updated_us: int


def check_name(name: str) -> None:
    """Raises Refused for a name that isn't one."""
    if not _NAME.fullmatch(name):
        raise Refused(
            "invalid_request",
            f"The name '{name[:64]}' can't be used: letters, digits, '.', '_' and '-', at most 64.",
            param="name",
        )


def check_secret(text: str, param: str) -> None:
    """Raises Refused, without repeating it, for a secret that can't stand in an HTTP header."""
    if not _TEXT.fullmatch(text):
        raise Refused(
            "invalid_request",
            f"The {param} must be 1 to 4096 visible ASCII characters without spaces; it has {len(text)} characters.",
            param=param,
        )


def choose_hint(text: str) -> str:
    """The last four characters, where they give little away."""
    return text[-4:] if len(text) >= _HINTED_FROM_CHARS else ""


def set_secret(
    connection: Connection, keyring: Keyring, kind: str, name: str, text: str, now_us: int
) -> tuple[Secret, bool]:
    """Seal ``text`` under (kind, name) in place of what was there; says whether there was something."""
    old = table.find_secret(connection, kind, name)
    row_id = old.id if old is not None else new_uuid7()
    data_key_id, sealed = keyring.seal(text.encode(), _TABLE, row_id)
    values = {"data_key_id": data_key_id, "sealed": sealed, "hint": choose_hint(text), "updated_us": now_us}
    if old is None:
        table.add_secret(connection, {"id": row_id, "kind": kind, "name": name, "created_us": now_us, **values})
    else:
        table.change_secret(connection, row_id, values)
    created_us = now_us if old is None else old.created_us
    return Secret(row_id, kind, name, choose_hint(text), created_us, now_us), old is not None


def list_secrets(connection: Connection, kind: str | None = None) -> list[Secret]:
    """What is kept, by kind and name."""
    return [_describe(row) for row in table.list_secrets(connection, kind)]


def find_secret(connection: Connection, keyring: Keyring, kind: str, name: str) -> str | None:
    """The secret's text, or None. Raises StentorError if it can't be opened."""
    row = table.find_secret(connection, kind, name)
    return None if row is None else open_secret(keyring, row)


def find_latest(connection: Connection, keyring: Keyring, kind: str) -> str | None:
    """The secret of this kind that was set last, or None."""
    rows = table.list_secrets(connection, kind)
    return open_secret(keyring, max(rows, key=lambda row: (row.updated_us, row.id))) if rows else None


def open_secret(keyring: Keyring, row: table.SecretRow) -> str:
    """The text of a row. Raises StentorError if it was changed, or moved from elsewhere."""
    return keyring.unseal(row.data_key_id, row.sealed, _TABLE, row.id).decode()


def delete_secret(connection: Connection, kind: str, name: str) -> None:
    """Forget a secret. Raises Refused ``not_found``."""
    if not table.delete_secret(connection, kind, name):
        raise Refused("not_found", f"There is no {kind} named '{name[:64]}'.")


def _describe(row: table.SecretRow) -> Secret:
    return Secret(row.id, row.kind, row.name, row.hint, row.created_us, row.updated_us)
