"""All SQL of registered models."""

from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from stentor.store.schema import registered_models


def list_models(connection: Connection) -> list[tuple[str, str, int, int]]:
    """Id, definition, and times of making and last change, by id."""
    query = select(
        registered_models.c.id,
        registered_models.c.definition,
        registered_models.c.created_us,
        registered_models.c.updated_us,
    ).order_by(registered_models.c.id)
    return [tuple(row) for row in connection.execute(query)]


def add_model(connection: Connection, values: dict[str, Any]) -> None:
    """Insert one model."""
    connection.execute(insert(registered_models).values(**values))


def change_model(connection: Connection, model: str, definition: str, now_us: int) -> None:
    """Replace the definition of one."""
    query = update(registered_models).where(registered_models.c.id == model)
    connection.execute(query.values(definition=definition, updated_us=now_us))


def delete_model(connection: Connection, model: str) -> None:
    """Remove one."""
    connection.execute(delete(registered_models).where(registered_models.c.id == model))
