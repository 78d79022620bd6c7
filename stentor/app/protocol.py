"""uvicorn's HTTP, changed in the points that it leaves no setting for."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

PIPELINE_MAX = 16
HEAD_MAX_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 20.0
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\ncontent-length: 33\r\n"
    b"connection: close\r\n\r\nThe request's head is too large.\n"
)


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
    chunks, gets a stream as it is, ended by the connection. A request's head that grows without end, or doesn't come to
    its end, is not waited for: uvicorn alone would keep all of it, for as long as the client likes.
    """

    _served: RequestResponseCycle | None = None
    _in_head = False
    _head_bytes = 0  # beyond the read with which the head began
    _head_timer: asyncio.TimerHandle | None = None
    _idle_bytes = 0  # read since the last that was part of a body or ended a head or a request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, HeadWithBody(transport)))
        self.app_state = {"transport": self.transport}  # each request gets a copy: for an answer that has to break off
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up_head)

    def data_received(self, data: bytes) -> None:
        began_before = self._in_head
        self._idle_bytes += len(data)
        super().data_received(data)
        if self._in_head:
            self._wait_for_head(len(data) if began_before else 0)
        elif self._idle_bytes > HEAD_MAX_BYTES:
            self.transport.close()  # trailers, or what may stand beside a chunk's size: nobody reads them
        elif self.cycle is not None and self.cycle.response_complete:
            self._wait_for_head(0)  # line feeds, or the rest of a body that was refused, don't keep a connection

    def _wait_for_head(self, more_bytes: int) -> None:
        self._head_bytes += more_bytes
        if self._head_bytes > HEAD_MAX_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up_head)

    def _give_up_head(self) -> None:
        self._head_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            # A request that came before it is being answered: that goes first.
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up_head)
        elif not self.transport.is_closing():
            self.transport.close()

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._idle_bytes = 0
        self._in_head = True
        self._head_bytes = 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        if cycle.scope["http_version"] == "1.0":
            _send_unchunked(cycle)
        super()._start_asgi_task(cycle, app)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._idle_bytes = 0
        self._end_head()
        # A connection that isn't read never says that it was closed.
        if 0 < len(self.pipeline) <= PIPELINE_MAX:
            self.flow.resume_reading()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._idle_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        cast(HeadWithBody, self.transport).flush()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_head()
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
