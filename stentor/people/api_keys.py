"""API keys: made, found by their keyed hash, rotated with a grace time, revoked."""

from typing import Any

import msgspec
from sqlalchemy import Connection

from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ProjectId, UserId, new_uuid7
from stentor.core.principal import SCOPES
from stentor.people import table
from stentor.people.key_text import hint_of
from stentor.people.values import ApiKey, KeyLimits

_LIMITS = tuple(field for field in KeyLimits.__struct_fields__)
_TUPLES = ("scopes", "models", "endpoints")


class NewKey(msgspec.Struct, frozen=True):
    """What a new key is made from; everything beyond user and project narrows it.

    ``rotated_from`` is the key that it replaces, and ``line_id`` that one's line.
    """

    user_id: UserId
    project_id: ProjectId
    name: str = ""
    scopes: tuple[str, ...] = ("inference",)
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    limits: KeyLimits = KeyLimits()
    expires_us: int | None = None
    rotated_from: KeyId | None = None
    line_id: KeyId | None = None


def _from_row(row: table.AnyRow) -> ApiKey:
    values = dict(row._mapping)
    values["limits"] = KeyLimits(**{name: values.pop(name) for name in _LIMITS})
    for name in _TUPLES:
        values[name] = tuple(values[name].split())
    return ApiKey(**values)


def list_keys(
    connection: Connection, *, user_id: UserId | None = None, before_id: KeyId | None = None, limit: int = 100
) -> list[ApiKey]:
    """Keys, newest first; page on with the last one's id."""
    return [_from_row(row) for row in table.list_keys(connection, user_id, before_id, limit)]


def find_key(connection: Connection, key_id: KeyId) -> ApiKey | None:
    """One key by its id."""
    row = table.find_key(connection, key_id)
    return None if row is None else _from_row(row)


def get_key(connection: Connection, key_id: KeyId) -> ApiKey:
    """One key by its id. Raises Refused for an unknown one."""
    return get_key_of(connection, key_id, None)


def get_key_of(connection: Connection, key_id: KeyId, user_id: str | None) -> ApiKey:
    """As :func:`get_key`; a key of another user than ``user_id`` isn't found. None: anybody's."""
    key = find_key(connection, key_id)
    if key is None or user_id not in (None, key.user_id):
        raise Refused("not_found", f"There is no API key with the id '{key_id}'; `stentor keys list` shows all.")
    return key


def find_successor(connection: Connection, key: ApiKey) -> KeyId | None:
    """The key that replaced this one, or None."""
    return None if key.grace_until_us is None else table.find_successor(connection, key.id)


def check_newest(connection: Connection, key: ApiKey) -> None:
    """Raises Refused for a key that was replaced: what a line has together is its newest key's."""
    newer = find_successor(connection, key)
    if newer is not None:
        raise Refused(
            "conflict", f"The key {key.id} was replaced by {newer}, with which it shares its limits; use that."
        )


def get_key_in_line(connection: Connection, key_id: KeyId) -> ApiKey:
    """As :func:`get_key`, with the limits that hold: those of the newest key of its line."""
    key = get_key(connection, key_id)
    return msgspec.structs.replace(key, limits=find_limits(connection, key))


def find_limits(connection: Connection, key: ApiKey) -> KeyLimits:
    """The limits that hold for a key: those of the newest one of its line."""
    while (newer := find_successor(connection, key)) is not None:
        key = get_key(connection, newer)
    return key.limits


def list_line(connection: Connection, line_id: KeyId) -> list[KeyId]:
    """The keys of a line, oldest first."""
    return table.list_line(connection, line_id)


def list_lines(connection: Connection) -> dict[str, str]:
    """The line of each key that replaced another."""
    return table.list_lines(connection)


def find_key_by_digest(connection: Connection, digest: bytes) -> ApiKey | None:
    """The key behind a keyed hash, valid or not."""
    row = table.find_key_by_digest(connection, digest)
    return None if row is None else _from_row(row)


def find_digest(connection: Connection, key_id: KeyId) -> bytes | None:
    """The keyed hash under which a key is stored."""
    return table.find_digest(connection, key_id)


def add_key(connection: Connection, new: NewKey, text: str, digest: bytes, now_us: int) -> ApiKey:
    """Store a key's hash and what it may do. ``text`` is used for its last characters only."""
    return add_known_key(connection, new, hint_of(text), digest, now_us)


def add_known_key(connection: Connection, new: NewKey, hint: str, digest: bytes, now_us: int) -> ApiKey:
    """As :func:`add_key`, where only its owner knows the text any more."""
    _check(new)
    key_id = KeyId(new_uuid7())
    key = ApiKey(
        id=key_id,
        name=new.name,
        hint=hint,
        user_id=new.user_id,
        project_id=new.project_id,
        scopes=tuple(scope for scope in SCOPES if scope in new.scopes),
        models=tuple(sorted(set(new.models))),
        endpoints=tuple(sorted(set(new.endpoints))),
        limits=new.limits,
        expires_us=new.expires_us,
        rotated_from=new.rotated_from,
        grace_until_us=None,
        revoked_us=None,
        created_us=now_us,
        line_id=new.line_id or key_id,
    )
    values = msgspec.structs.asdict(key) | msgspec.structs.asdict(key.limits) | {"digest": digest}
    del values["limits"]
    for name in _TUPLES:
        values[name] = " ".join(values[name])
    table.add_key(connection, values)
    return key


def _check(new: NewKey) -> None:
    unknown = sorted(set(new.scopes) - set(SCOPES))
    if unknown or not new.scopes:
        said = f"'{unknown[0]}' isn't a scope" if unknown else "A key needs a scope"
        raise Refused("invalid_request", f"{said}; there are {', '.join(SCOPES)}.", param="scopes")
    if len(new.name) > 128:
        raise Refused("invalid_request", "A key's name has at most 128 characters.", param="name")
    for field, values in (("models", new.models), ("endpoints", new.endpoints)):
        if any(not value or any(c.isspace() for c in value) for value in values):
            raise Refused("invalid_request", f"An entry of {field} is empty or holds a space.", param=field)
    if new.expires_us is not None and not 0 <= new.expires_us < 2**63:
        raise Refused("invalid_request", "expires_us is microseconds since 1970, below 2^63.", param="expires_us")
    for field in _LIMITS:
        value = getattr(new.limits, field)
        if value is not None and not 0 <= value < 2**63:
            raise Refused("invalid_request", f"{field} must be 0 or more.", param=field)


def change_key(connection: Connection, key: ApiKey, changes: dict[str, Any]) -> ApiKey:
    """Change ``name``, ``models``, ``endpoints``, ``limits`` or ``expires_us``; returns the key. Raises Refused."""
    changed = msgspec.structs.replace(key, **changes)
    _check(
        NewKey(
            key.user_id,
            key.project_id,
            changed.name,
            key.scopes,
            changed.models,
            changed.endpoints,
            changed.limits,
            changed.expires_us,
        )
    )
    values = {name: getattr(changed, name) for name in changes if name != "limits"}
    for name in _TUPLES:
        if name in values:
            values[name] = " ".join(values[name])
    values |= msgspec.structs.asdict(changed.limits)
    table.update_key(connection, key.id, values)
    return changed


def revoke_key(connection: Connection, key_id: KeyId, now_us: int) -> ApiKey:
    """End a key now. Revoking a revoked key changes nothing. Raises Refused for an unknown one."""
    key = get_key(connection, key_id)
    if key.revoked_us is None:
        table.update_key(connection, key_id, {"revoked_us": now_us})
        key = msgspec.structs.replace(key, revoked_us=now_us)
    return key


def restore_key(connection: Connection, key_id: KeyId) -> None:
    """Let a revoked key work again: only for the operator's fixed key, whose text is theirs."""
    table.update_key(connection, key_id, {"revoked_us": None})


def end_with_grace(connection: Connection, key_id: KeyId, grace_until_us: int) -> ApiKey:
    """Let a key that was replaced work a little longer. A shorter end that was set before stays."""
    key = get_key(connection, key_id)
    if key.grace_until_us is None or grace_until_us < key.grace_until_us:
        table.update_key(connection, key_id, {"grace_until_us": grace_until_us})
        key = msgspec.structs.replace(key, grace_until_us=grace_until_us)
    return key
