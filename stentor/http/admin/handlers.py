"""The management routes: JSON in, JSON out, everything else is the authority's."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl

import msgspec

from stentor.audit.log import Actor
from stentor.core.errors import Refused
from stentor.core.principal import Principal
from stentor.http.connection import Connection
from stentor.http.gateway import OPERATOR, Handler, Params

BODY_MAX_BYTES = 1024 * 1024
_encode = msgspec.json.Encoder().encode

Row = dict[str, Any]
Query = Mapping[str, str]


class Operations(Protocol):
    """What the authority can do for operators; rows are JSON objects."""

    async def list_keys(self, query: Query) -> Row: ...
    async def create_key(self, actor: Actor, body: Any, creator: str | None = None) -> Row: ...
    async def revoke_key(self, actor: Actor, key_id: str) -> Row: ...
    async def rotate_key(self, actor: Actor, key_id: str, body: Any, creator: str | None = None) -> Row: ...
    async def list_users(self, query: Query) -> Row: ...
    async def create_user(self, actor: Actor, body: Any) -> Row: ...
    async def top_up(self, actor: Actor, user: str, body: Any) -> Row: ...
    async def list_usage(self, query: Query) -> Row: ...
    async def list_models(self) -> Row: ...
    async def start_model(self, actor: Actor, name: str, body: Any) -> Row: ...
    async def stop_model(self, actor: Actor, name: str) -> Row: ...
    async def list_slots(self) -> Row: ...
    async def doctor(self) -> Row: ...
    async def system(self) -> Row: ...


class _Call:
    """One management request, read."""

    def __init__(self, actor: Actor, creator: str | None, query: Query, body: Any, params: Params) -> None:
        self.actor = actor
        self.creator = creator
        self.query = query
        self.body = body
        self.params = params


class AdminEndpoints:
    """Handlers by the surface's names."""

    def __init__(self, operations: Operations) -> None:
        self._do = operations

    def handlers(self) -> dict[str, Handler]:
        """One handler a route."""
        do = self._do
        work: dict[str, Callable[[_Call], Awaitable[Row]]] = {
            "list_keys": lambda call: do.list_keys(call.query),
            "create_key": lambda call: do.create_key(call.actor, call.body, call.creator),
            "revoke_key": lambda call: do.revoke_key(call.actor, call.params["id"]),
            "rotate_key": lambda call: do.rotate_key(call.actor, call.params["id"], call.body, call.creator),
            "list_users": lambda call: do.list_users(call.query),
            "create_user": lambda call: do.create_user(call.actor, call.body),
            "top_up": lambda call: do.top_up(call.actor, call.params["id"], call.body),
            "list_usage": lambda call: do.list_usage(call.query),
            "list_model_cards": lambda call: do.list_models(),
            "start_model": lambda call: do.start_model(call.actor, call.params["id"], call.body),
            "stop_model": lambda call: do.stop_model(call.actor, call.params["id"]),
            "list_slots": lambda call: do.list_slots(),
            "doctor": lambda call: do.doctor(),
            "system": lambda call: do.system(),
        }
        return {name: _handler(step) for name, step in work.items()}


def _handler(work: Callable[[_Call], Awaitable[Row]]) -> Handler:
    async def handle(connection: Connection, principal: Principal, params: Params) -> None:
        row = await work(await _read(connection, principal, params))
        headers = [(b"x-request-id", connection.request_id.encode()), (b"content-type", b"application/json")]
        await connection.respond(200, headers, _encode(row))

    return handle


async def _read(connection: Connection, principal: Principal, params: Params) -> _Call:
    raw = await connection.read_body(BODY_MAX_BYTES)
    try:
        body = msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Refused("invalid_request", f"The body is not valid JSON: {error}.") from None
    query = dict(parse_qsl(connection.scope["query_string"].decode("latin-1")))
    if principal.key_id == OPERATOR.key_id:
        return _Call(Actor("operator", "cli"), None, query, body, params)
    # What a key makes may do no more than the key itself.
    return _Call(Actor(principal.key_id, "api"), principal.key_id, query, body, params)
