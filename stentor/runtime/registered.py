"""Models that were registered while the server ran: kept in the store, one definition each.

What a node's engines run is that node's own; a model that runs elsewhere is every node's.
"""

from typing import Any

import msgspec
from sqlalchemy import Connection

from stentor.core.ids import ModelId
from stentor.runtime import table
from stentor.runtime.spec import InvalidModel, ModelSpec, read_spec


def write_spec(spec: ModelSpec) -> dict[str, Any]:
    """A definition as plain values, without what is as it always is."""
    fields = msgspec.to_builtins(spec, enc_hook=str)
    usual = msgspec.to_builtins(ModelSpec(id=spec.id), enc_hook=str)
    return {name: value for name, value in fields.items() if name == "id" or value != usual[name]}


def list_registered(connection: Connection, node_id: str) -> tuple[dict[ModelId, ModelSpec], list[str]]:
    """A node's definitions by id, and in words what is wrong with those that this version can't use."""
    found: dict[ModelId, ModelSpec] = {}
    problems: list[str] = []
    for model, definition, _created_us, _updated_us in table.list_models(connection, node_id):
        try:
            found[ModelId(model)] = read_spec(msgspec.json.decode(definition))
        except (msgspec.ValidationError, InvalidModel) as error:
            problems.append(f"The registered model '{model}' can't be used by this version: {error}")
    return found, problems


def put_registered(connection: Connection, spec: ModelSpec, node_id: str, now_us: int, *, fresh: bool) -> None:
    """Keep a definition; ``fresh``: of a model that the node doesn't know yet."""
    definition = msgspec.json.encode(write_spec(spec), order="sorted").decode()
    values = {"definition": definition, "updated_us": now_us, "node_id": "" if spec.remote is not None else node_id}
    if fresh:
        table.add_model(connection, {"id": spec.id, "created_us": now_us, **values})
    else:
        table.change_model(connection, spec.id, node_id, values)


def delete_registered(connection: Connection, model: ModelId, node_id: str) -> None:
    """Forget a definition."""
    table.delete_model(connection, model, node_id)
