"""The management routes: JSON in, JSON out, everything else is the authority's."""

from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl

import msgspec

from stentor.core.errors import Refused
from stentor.core.operator import Task
from stentor.core.principal import Principal
from stentor.core.sessions import SessionCard
from stentor.http.admin.sessions import SessionView
from stentor.http.connection import Connection
from stentor.http.handler import OPERATOR, Handler, Params
from stentor.http.route import Route
from stentor.http.sessions import cookie_header, csrf_token, find_cookie, kind_of
from stentor.http.tables import CSV, columns_of, csv_of, wants_csv
from stentor.http.texts import check_texts

BODY_MAX_BYTES = 1024 * 1024
_encode = msgspec.json.Encoder().encode

Row = dict[str, Any]


class Operations(Protocol):
    """What the authority can do for operators and users; rows are JSON objects."""

    async def perform(self, name: str, task: Task) -> Row:
        """Do what the route with this handler's name is for. Raises Refused.

        ``_session`` in a row is for the cookie: the token of a new session, or empty to end one.
        """
        ...


class AdminEndpoints:
    """Handlers by the surface's names."""

    def __init__(self, operations: Operations, surface: Sequence[Route]) -> None:
        self._operations = operations
        self._surface = surface

    def handlers(self) -> dict[str, Handler]:
        """One handler a managed route."""
        return {route.handler: self._handler(route) for route in self._surface if route.managed}

    def _handler(self, route: Route) -> Handler:
        columns = columns_of(route.response) if "text/csv" in route.also else ()

        async def handle(connection: Connection, principal: Principal, params: Params) -> None:
            row = await self._operations.perform(route.handler, await _read(connection, principal, params))
            if columns and wants_csv(connection.header(b"accept")):
                await _respond_csv(connection, row, columns)
                return
            headers = [(b"x-request-id", connection.request_id.encode()), (b"content-type", b"application/json")]
            if route.access != "public" or route.sign_in:
                headers.append((b"cache-control", b"no-store"))
            token = row.pop("_session", None)
            if token is not None:
                headers.append(cookie_header(kind_of(route.path), token, connection.exchange.secure))
            if token:
                row["csrf_token"] = csrf_token(token)
            await connection.respond(200, headers, _encode(row))

        return handle


async def _respond_csv(connection: Connection, row: Row, columns: tuple[str, ...]) -> None:
    """The page as CSV; ``x-next`` says where the following one goes on."""
    headers = [(b"x-request-id", connection.request_id.encode()), (b"content-type", CSV)]
    headers.append((b"cache-control", b"no-store"))
    if row.get("next") is not None:
        headers.append((b"x-next", str(row["next"]).encode("latin-1", "replace")))
    await connection.respond(200, headers, csv_of(columns, row["data"]))


async def _read(connection: Connection, principal: Principal, params: Params) -> Task:
    raw = await connection.read_body(BODY_MAX_BYTES, setting="")
    try:
        body = msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Refused("invalid_request", f"The body is not valid JSON: {error}.") from None
    query = dict(parse_qsl(connection.exchange.query.decode("latin-1")))
    check_texts(query, params, raw, body)
    task = Task(
        "anonymous",
        "api",
        query,
        body,
        params,
        address=connection.exchange.address or "",
        agent=(connection.header(b"user-agent") or b"").decode("latin-1"),
    )
    if principal.key_id == OPERATOR.key_id:
        return msgspec.structs.replace(task, actor="operator", origin="cli")
    if principal.session_id:
        return msgspec.structs.replace(
            task,
            actor=principal.user_name,
            origin="console",
            user_id=principal.user_id,
            session_id=principal.session_id,
            creator=principal.session_key or None,
        )
    if principal.key_id:
        key = principal.key_id
        return msgspec.structs.replace(task, actor=key, creator=key, user_id=principal.user_id)
    return task


async def show_session(connection: Connection, principal: Principal, params: Params) -> None:
    """GET /admin/api/session and /user/api/session: who is asking, and the token for changes."""
    card: SessionCard | None = connection.exchange.session
    if card is not None:
        token = find_cookie(connection, card.kind) or ""
        view = SessionView(card.kind, card.user_name, card.user_id, card.must_change, csrf_token(token), card.ends_us)
    else:
        operator = principal.key_id == OPERATOR.key_id
        user_id = "" if operator else principal.user_id
        view = SessionView("operator" if operator else "key", "", user_id, False, None, principal.expires_us)
    headers = [(b"x-request-id", connection.request_id.encode()), (b"content-type", b"application/json")]
    await connection.respond(200, [*headers, (b"cache-control", b"no-store")], _encode(view))
