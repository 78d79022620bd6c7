"""All SQL of the vault."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select

from stentor.store.schema import data_keys


class DataKeyRow(NamedTuple):
    """A wrapped data key."""

    id: str
    purpose: str
    master_key_id: str
    wrapped: bytes
    retired_us: int | None


def list_data_keys(connection: Connection) -> list[DataKeyRow]:
    """All data keys, oldest first."""
    query = select(
        data_keys.c.id,
        data_keys.c.purpose,
        data_keys.c.master_key_id,
        data_keys.c.wrapped,
        data_keys.c.retired_us,
    ).order_by(data_keys.c.created_us, data_keys.c.id)
    return [DataKeyRow(*row) for row in connection.execute(query)]


def add_data_key(connection: Connection, values: dict[str, Any]) -> None:
    """Insert one wrapped data key."""
    connection.execute(insert(data_keys).values(**values))
