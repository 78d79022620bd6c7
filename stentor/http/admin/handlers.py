"""The management routes: JSON in, JSON out, everything else is the authority's."""

from typing import Any, Protocol
from urllib.parse import parse_qsl

import msgspec

from stentor.core.errors import Refused
from stentor.core.operator import Task
from stentor.core.principal import Principal
from stentor.http.connection import Connection
from stentor.http.gateway import OPERATOR, Handler, Params
from stentor.http.route import Route
from stentor.http.surface import SURFACE

BODY_MAX_BYTES = 1024 * 1024
_encode = msgspec.json.Encoder().encode

Row = dict[str, Any]


class Operations(Protocol):
    """What the authority can do for operators and users; rows are JSON objects."""

    async def perform(self, name: str, task: Task) -> Row:
        """Do what the route with this handler's name is for. Raises Refused."""
        ...


class AdminEndpoints:
    """Handlers by the surface's names."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def handlers(self) -> dict[str, Handler]:
        """One handler a managed route."""
        return {route.handler: self._handler(route) for route in SURFACE if route.managed}

    def _handler(self, route: Route) -> Handler:
        async def handle(connection: Connection, principal: Principal, params: Params) -> None:
            row = await self._operations.perform(route.handler, await _read(connection, principal, params))
            headers = [(b"x-request-id", connection.request_id.encode()), (b"content-type", b"application/json")]
            await connection.respond(200, headers, _encode(row))

        return handle


async def _read(connection: Connection, principal: Principal, params: Params) -> Task:
    raw = await connection.read_body(BODY_MAX_BYTES)
    try:
        body = msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Refused("invalid_request", f"The body is not valid JSON: {error}.") from None
    query = dict(parse_qsl(connection.exchange.query.decode("latin-1")))
    address = connection.exchange.address or ""
    if principal.key_id == OPERATOR.key_id:
        return Task("operator", "cli", query, body, params, address=address)
    return Task(principal.key_id, "api", query, body, params, principal.key_id, principal.user_id, address=address)
