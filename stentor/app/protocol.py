"""uvicorn's HTTP, changed in three points that it leaves no setting for."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

PIPELINE_MAX = 16


class HeadWithBody:
    """A transport that sends an answer's head together with its first bytes.

    uvicorn writes the two one after the other: a system call more here, and a client that is woken up for a head alone.
    Every answer of ours has its first bytes at hand when its head is written; whatever else is written goes at once.
    """

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        """Send ``data``, or keep it until what follows if it is the head of an answer."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 100"):
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Send what was kept: nothing follows it (HEAD)."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def close(self) -> None:
        """Send what was kept, and close."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP, corrected where it isn't HTTP.

    Of a pipeline the running request hears that the client left, not the last one alone; and HTTP/1.0, which knows no
    chunks, gets a stream as it is, ended by the connection.
    """

    _served: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, HeadWithBody(transport)))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        if cycle.scope["http_version"] == "1.0":
            _send_unchunked(cycle)
        super()._start_asgi_task(cycle, app)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        # A connection that isn't read never says that it was closed.
        if 0 < len(self.pipeline) <= PIPELINE_MAX:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        cast(HeadWithBody, self.transport).flush()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        served = self._served
        if served is not None and not served.response_complete:
            served.disconnected = True
            served.message_event.set()


def _send_unchunked(cycle: RequestResponseCycle) -> None:
    """Have the bodies of this answer sent as they are, whatever their length."""
    send = cycle.send

    async def send_plain(message: Any) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.chunked_encoding = False
    setattr(cycle, "send", send_plain)  # noqa: B010  # mypy allows no other way to replace a method
