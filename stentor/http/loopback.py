"""Calling the surface without a connection: how a worker's management requests are answered by the authority."""

from stentor.core.operator import OperatorAnswer, OperatorCall
from stentor.http.exchange import Exchange, Headers
from stentor.http.gateway import Gateway

_SAID_BY_THE_CONNECTION = (b"x-request-id", b"content-length", b"content-type")


class _Within(Exchange):
    """A call from within this server: its body is here, and its answer is kept."""

    __slots__ = ("_body", "answer", "parts")

    def __init__(self, call: OperatorCall) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"accept", call.accept.encode("latin-1")),
            (b"if-none-match", call.if_none_match.encode("latin-1")),
            (b"user-agent", call.agent.encode("latin-1")),
        ]
        super().__init__(call.method, call.path, call.query, headers, call.address or None)
        self.caller = call.caller
        self.secure = call.secure
        self.answer = OperatorAnswer(500, "application/json", b"", [])
        self.parts: list[bytes] = []
        self._body: bytes | None = call.body

    async def read(self) -> bytes:
        return self.find_body() or b""

    def find_body(self) -> bytes | None:
        body, self._body = self._body, None
        return body

    def start(self, status: int, headers: Headers, length: int | None = None) -> None:
        self.answer.status = status
        for name, value in headers:
            if name == b"content-type":
                self.answer.content_type = value.decode("latin-1")
            elif name not in _SAID_BY_THE_CONNECTION:
                self.answer.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def write(self, data: bytes) -> None:
        self.parts.append(data)

    def end(self, data: bytes = b"") -> None:
        self.parts.append(data)
        self.complete = True

    async def wait_writable(self) -> None:
        return

    def close_after(self) -> None:
        return

    def finish(self) -> None:
        return


async def call_app(app: Gateway, call: OperatorCall) -> OperatorAnswer:
    """Have ``app`` (the operator's) answer one request whole."""
    exchange = _Within(call)
    await app(exchange)
    exchange.answer.body = b"".join(exchange.parts)
    return exchange.answer
