"""The audit log: written in the transaction of the change it tells of, so neither exists without the other."""

from typing import Any

import msgspec
from sqlalchemy import Connection

from stentor.audit import table


class Actor(msgspec.Struct, frozen=True):
    """Who does something (a user's name, a key's id or ``system``), by which way, and from which address.

    Ways are ``cli``, ``api``, ``console`` and ``start``.
    """

    name: str
    origin: str
    address: str = ""


SYSTEM = Actor(name="system", origin="start")


class Change(msgspec.Struct, frozen=True):
    """One audited change. ``before`` and ``after`` are JSON objects of what changed, secrets left out."""

    id: int
    created_us: int
    actor: str
    origin: str
    action: str
    subject_kind: str
    subject_id: str
    before: str | None
    after: str | None
    address: str = ""


def record_change(
    connection: Connection,
    now_us: int,
    actor: Actor,
    action: str,
    subject: tuple[str, str],
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Append a change. ``subject`` is (kind, id). Callers leave secrets out of ``before`` and ``after``."""
    table.add(
        connection,
        {
            "created_us": now_us,
            "actor": actor.name,
            "origin": actor.origin,
            "address": actor.address,
            "action": action,
            "subject_kind": subject[0],
            "subject_id": subject[1],
            "before": None if before is None else msgspec.json.encode(before, order="sorted").decode(),
            "after": None if after is None else msgspec.json.encode(after, order="sorted").decode(),
        },
    )


class ChangeFilter(msgspec.Struct, frozen=True):
    """Which changes; None: all. Times in UTC microseconds, ``until_us`` excluded."""

    actor: str | None = None
    action: str | None = None
    subject_kind: str | None = None
    subject_id: str | None = None
    since_us: int | None = None
    until_us: int | None = None


EVERY_CHANGE = ChangeFilter()


def list_changes(
    connection: Connection, *, where: ChangeFilter = EVERY_CHANGE, before_id: int | None = None, limit: int = 100
) -> list[Change]:
    """The newest changes first; page on with the last one's id."""
    return [Change(*row) for row in table.page(connection, msgspec.structs.asdict(where), before_id, limit)]


def find_newest(connection: Connection) -> int:
    """The id of the newest change, 0 without any."""
    return table.find_newest(connection)


def list_subjects(connection: Connection, after_id: int, limit: int) -> list[tuple[int, str, str]]:
    """What was changed after a change: id, kind and id of the subject, oldest first."""
    return table.list_subjects(connection, after_id, limit)
