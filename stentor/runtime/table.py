"""All SQL of registered models: those of a node, and those that every node knows (of the node named nothing)."""

from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from stentor.store.schema import registered_models


def list_models(connection: Connection, node_id: str) -> list[tuple[str, str, int, int]]:
    """Id, definition, and times of making and last change, by id; a node's own model after everybody's."""
    query = (
        select(
            registered_models.c.id,
            registered_models.c.definition,
            registered_models.c.created_us,
            registered_models.c.updated_us,
        )
        .where(registered_models.c.node_id.in_(("", node_id)))
        .order_by(registered_models.c.id, registered_models.c.node_id)
    )
    return [tuple(row) for row in connection.execute(query)]


def add_model(connection: Connection, values: dict[str, Any]) -> None:
    """Insert one model."""
    connection.execute(insert(registered_models).values(**values))


def change_model(connection: Connection, model: str, node_id: str, values: dict[str, Any]) -> None:
    """Change what a node knows under this id."""
    connection.execute(update(registered_models).where(_known(model, node_id)).values(**values))


def delete_model(connection: Connection, model: str, node_id: str) -> None:
    """Remove what a node knows under this id."""
    connection.execute(delete(registered_models).where(_known(model, node_id)))


def _known(model: str, node_id: str) -> ColumnElement[bool]:
    return (registered_models.c.id == model) & registered_models.c.node_id.in_(("", node_id))
