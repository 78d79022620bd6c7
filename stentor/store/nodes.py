"""Servers on one PostgreSQL database, as they know each other: where each is, what it runs, whether it was heard of."""

from typing import NamedTuple

from sqlalchemy import Connection, text

from stentor.store.schema import nodes

FORGET_S = 86_400  # how long a node that is silent is still known

_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_LIST = text(f"""
SELECT id, address, models, lease_until_us >= {_NOW} AS is_up FROM nodes
WHERE id <> :me AND address <> '' AND lease_until_us >= {_NOW} - {FORGET_S}::bigint * 1000000 ORDER BY id
""")  # noqa: S608 - nothing but the expressions above


class NodeRow(NamedTuple):
    """A node: ``address`` is where other nodes reach it, ``models`` is JSON, ``is_up`` whether its lease holds."""

    id: str
    address: str
    models: str
    is_up: bool


def describe_node(connection: Connection, node_id: str, address: str, models: str) -> None:
    """Say where this node is and what it runs; an empty address: it serves its own callers alone."""
    connection.execute(nodes.update().where(nodes.c.id == node_id).values(address=address, models=models))


def list_nodes(connection: Connection, me: str) -> list[NodeRow]:
    """The other nodes that have an address, by id (PostgreSQL)."""
    return [NodeRow(*row) for row in connection.execute(_LIST, {"me": me})]
