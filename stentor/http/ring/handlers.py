"""The LLMRing routes: a request is read here and answered by the authority."""

from typing import Protocol
from urllib.parse import parse_qsl

import msgspec

from stentor.core.errors import Refused
from stentor.core.principal import Principal
from stentor.core.ring import RingAnswer, RingCall
from stentor.http.connection import Connection
from stentor.http.handler import Handler, Params
from stentor.http.ring.routes import ROUTES
from stentor.http.texts import check_texts

_encode = msgspec.json.Encoder().encode


class Operations(Protocol):
    """What the authority can do for projects."""

    async def perform(self, name: str, call: RingCall) -> RingAnswer:
        """Do what the route with this handler's name is for. Raises Refused."""
        ...


class RingEndpoints:
    """Handlers by the surface's names."""

    def __init__(self, operations: Operations, body_max_bytes: int) -> None:
        self._operations = operations
        self._body_max_bytes = body_max_bytes

    def handlers(self) -> dict[str, Handler]:
        """One handler a route."""
        return {name: self._handler(name) for name in {route.handler for route in ROUTES} if name.startswith("ring_")}

    def _handler(self, name: str) -> Handler:
        async def handle(connection: Connection, principal: Principal, params: Params) -> None:
            raw = await connection.read_body(self._body_max_bytes)
            answer = await self._operations.perform(name, _read(raw, connection, principal, params))
            body = answer.content if isinstance(answer.content, bytes) else _encode(answer.content)
            headers = [
                (b"x-request-id", connection.request_id.encode()),
                (b"content-type", answer.media_type.encode()),
                *((name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers),
            ]
            await connection.respond(answer.status, headers, body)

        return handle


def _read(raw: bytes, connection: Connection, principal: Principal, params: Params) -> RingCall:
    try:
        body = msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        problem = {"type": "json_invalid", "loc": ["body"], "msg": f"JSON decode error: {error}", "input": None}
        raise Refused("unprocessable", f"The body is not valid JSON: {error}.", details={"errors": [problem]}) from None
    query = dict(parse_qsl(connection.exchange.query.decode("latin-1")))
    check_texts(query, params, raw, body)
    tag = (connection.header(b"if-none-match") or b"").decode("latin-1")
    return RingCall(principal, query, body, params, tag)
