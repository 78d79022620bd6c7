"""Management routes in a worker: authenticated here, answered by the node authority."""

from typing import Protocol

from stentor.core.operator import OperatorAnswer, OperatorCall
from stentor.core.principal import Principal
from stentor.http.connection import BODY_SETTING, Connection
from stentor.http.handler import Handler
from stentor.http.surface import SURFACE

LINE_BODY_MAX = 60 * 1024 * 1024  # with what comes along, a frame of the line holds no more


class Authority(Protocol):
    """Whoever answers management requests."""

    async def operate(self, call: OperatorCall) -> OperatorAnswer:
        """Answer one."""
        ...


class OperatorForward:
    """Handlers for every managed route, and the metrics of the whole server."""

    def __init__(self, authority: Authority, body_max_bytes: int) -> None:
        self._authority = authority
        self._max_bytes, self._setting = body_max_bytes, BODY_SETTING
        if body_max_bytes > LINE_BODY_MAX:
            self._max_bytes, self._setting = LINE_BODY_MAX, ""

    def handlers(self) -> dict[str, Handler]:
        """One handler for all: the path says the rest."""
        return {route.handler: self._forward for route in SURFACE if route.managed}

    async def render_metrics(self) -> bytes:
        """The exposition text."""
        answer = await self._authority.operate(OperatorCall("GET", "/metrics", b"", b""))
        return answer.body

    async def _forward(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        body = await connection.read_body(self._max_bytes, self._setting)
        exchange = connection.exchange
        call = OperatorCall(
            exchange.method,
            exchange.path,
            exchange.query,
            body,
            principal,
            exchange.address or "",
            (connection.header(b"accept") or b"").decode("latin-1"),
            (connection.header(b"if-none-match") or b"").decode("latin-1"),
            (connection.header(b"user-agent") or b"").decode("latin-1"),
            exchange.secure,
        )
        answer = await self._authority.operate(call)
        headers = [
            (b"x-request-id", connection.request_id.encode()),
            (b"content-type", answer.content_type.encode()),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers),
        ]
        await connection.respond(answer.status, headers, answer.body)
