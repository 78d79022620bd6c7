"""SQL of the keys that sign receipts and checkpoints."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select, update

from stentor.store.ring_schema import signing_keys


class KeyRow(NamedTuple):
    """A signing key as it is stored; ``sealed`` is empty for one that lives in the settings."""

    id: str
    purpose: str
    public: bytes
    data_key_id: str
    sealed: bytes
    from_us: int
    until_us: int | None


def list_keys(connection: Connection) -> list[KeyRow]:
    """All signing keys, oldest first."""
    query = select(*(signing_keys.c[name] for name in KeyRow._fields))
    return [KeyRow(*row) for row in connection.execute(query.order_by(signing_keys.c.from_us, signing_keys.c.id))]


def find_key_state(connection: Connection) -> tuple[Any, ...]:
    """Changes when any signing key does."""
    keys = signing_keys.c
    return tuple(connection.execute(select(func.count(), func.max(keys.from_us), func.max(keys.until_us))).one())


def add_key(connection: Connection, values: Mapping[str, Any]) -> None:
    """Insert a signing key."""
    connection.execute(insert(signing_keys).values(**values))


def end_key(connection: Connection, key_id: str, until_us: int) -> None:
    """Say until when a key signed."""
    connection.execute(update(signing_keys).where(signing_keys.c.id == key_id).values(until_us=until_us))
