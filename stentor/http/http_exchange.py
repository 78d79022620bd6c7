"""A request on a connection: the body as it comes in, the answer as it goes out, framed as HTTP/1.1 wants it."""

import asyncio
from http import HTTPStatus
from typing import Protocol

from stentor.http.exchange import ClientGone, Exchange, Headers, plain_lines

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
STATUS_LINES = {n: f"HTTP/1.1 {n} {_PHRASES.get(n, '')}\r\n".encode("ascii") for n in range(100, 600)}
_NO_BODY = frozenset({204, 304})


class Line(Protocol):
    """The connection that a request came in on."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    address: str | None
    secure: bool

    @property
    def ending(self) -> bool:
        """Whether no further request is taken."""
        ...

    def date_line(self) -> bytes:
        """The ``date`` header, of this second."""
        ...

    def want_more(self) -> None:
        """A request waits for its body."""
        ...

    def go_on(self, exchange: "HttpExchange") -> None:
        """The answer is complete: the next one, if there is one."""
        ...

    def cut_off(self, exchange: "HttpExchange") -> None:
        """The answer ended early: closing without its end is how the client is told."""
        ...

    async def wait_writable(self) -> None:
        """Return when more may be written, or nothing ever again."""
        ...


class HttpExchange(Exchange):
    """A request on a connection."""

    __slots__ = ("_chunked", "_head", "_left", "_line", "_parts", "_reader", "_touched", "_version_1_0",
                 "body_ended", "expects_continue", "keep_alive", "started", "unread")  # fmt: skip

    def __init__(self, line: Line, method: str, path: str, query: bytes, headers: Headers) -> None:
        super().__init__(method, path, query, headers, line.address)
        self.secure = line.secure
        self._line = line
        self._parts: list[bytes] = []
        self._reader: asyncio.Future[None] | None = None
        self._touched = False
        self._head = b""
        self._chunked = False
        self._left = -1  # bytes that the head promised, -1 where it promised nothing
        self._version_1_0 = False
        self.unread = 0
        self.body_ended = False
        self.expects_continue = False
        self.keep_alive = True
        self.started = False

    # What the connection says

    def feed(self, data: bytes) -> None:
        self._parts.append(data)
        self.unread += len(data)
        self._wake()

    def feed_end(self) -> None:
        self.body_ended = True
        self._wake()

    def lose(self) -> None:
        """The client left."""
        self.gone = True
        self._wake()
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None and not self.complete:
            on_gone()

    def speak_1_0(self) -> None:
        """HTTP/1.0 knows no chunks: a stream is ended by the connection."""
        self._version_1_0 = True
        self.keep_alive = False

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # Exchange

    def find_body(self) -> bytes | None:
        if self._touched or not self.body_ended:
            return None
        self._touched = True
        parts = self._parts
        if len(parts) == 1:
            return parts[0]
        return b"".join(parts)

    async def read(self) -> bytes:
        self._touched = True
        while not self._parts and not self.body_ended:
            if self.gone:
                raise ClientGone
            if self.expects_continue:
                self.expects_continue = False
                self._line.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._line.want_more()
            self._reader = self._line.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = b"".join(self._parts)
        self._parts.clear()
        self.unread = 0
        return data

    def start(self, status: int, headers: Headers, length: int | None = None) -> None:
        lines = plain_lines(headers)
        if self.more_headers:
            lines += plain_lines(self.more_headers)
        if status in _NO_BODY:
            self._left = 0
        elif length is not None:
            lines += b"content-length: %d\r\n" % length
            self._left = length
        elif not self._version_1_0 and self.method != "HEAD":
            self._chunked = True
            lines += b"transfer-encoding: chunked\r\n"
        if not self.keep_alive or self._line.ending:
            self.keep_alive = False
            lines += b"connection: close\r\n"
        self.started = True
        self._head = b"%b%b%b\r\n" % (STATUS_LINES[status], self._line.date_line(), lines)

    def _framed(self, data: bytes) -> bytes:
        if self.method == "HEAD":
            return b""
        if self._chunked:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if self._left >= 0:
            self._left -= len(data)
            if self._left < 0:
                raise AssertionError("the answer is longer than its head says")
        return data

    def write(self, data: bytes) -> None:
        if self.gone or self.complete:
            return
        out = self._framed(data)
        if self._head:
            out = self._head + out
            self._head = b""
        if out:
            self._line.transport.write(out)

    def end(self, data: bytes = b"") -> None:
        if self.gone or self.complete:
            return
        out = self._head + self._framed(data)
        if self._chunked:
            out += b"0\r\n\r\n"
        elif self._left > 0 and self.method != "HEAD":
            raise AssertionError("the answer is shorter than its head says")
        self._head = b""
        self.complete = True
        self.on_gone = None
        if out:
            self._line.transport.write(out)
        self._line.go_on(self)

    async def wait_writable(self) -> None:
        while self.stalled and not self.gone:
            await self._line.wait_writable()

    def close_after(self) -> None:
        self.keep_alive = False

    def finish(self) -> None:
        if not self.complete:
            self.complete = True
            self.on_gone = None
            self._line.cut_off(self)
