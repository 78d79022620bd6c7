"""HTTP/1.1 for clients, on a socket of ours. Parsing is httptools' (llhttp).

One protocol object a connection, one :class:`Exchange` a request. Requests of a pipeline are answered one after the
other; that the client left is told to the one that is being answered. Nothing is waited for without end: a head has to
come to its end in time, a connection may lie idle for a while, and what nobody reads isn't read for long.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from socket import socket
from ssl import SSLContext
from typing import Any, cast
from urllib.parse import unquote

import httptools

from stentor.http.exchange import ClientGone, Exchange, Headers, plain_lines

PIPELINE_MAX = 16
HEAD_MAX_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 20.0
KEEP_ALIVE_S = 75.0
STOP_S = 5.0
UNREAD_HIGH_BYTES = 256 * 1024
TARGETS_MAX = 1000
BACKLOG = 2048

App = Callable[[Exchange], Coroutine[Any, Any, None]]

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_NO_BODY = frozenset({204, 304})
_BAD_TARGET = (UnicodeDecodeError, httptools.HttpParserError)


def _complaint(status: int, text: str) -> bytes:
    return _STATUS_LINES[status] + (
        f"content-type: text/plain\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n{text}"
    ).encode("ascii")


_BAD_REQUEST = _complaint(400, "This is not an HTTP/1.1 request that can be read.\n")
_TOO_LARGE = _complaint(431, "The request's head is too large.\n")


class HttpServer:
    """Serves one listening socket. ``begin``, then ``stop_accepting`` when the end comes, and ``end``."""

    def __init__(self, app: App, tls: SSLContext | None = None) -> None:
        self.app = app
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._targets: dict[bytes, str] = {}
        self._date = b""
        self._date_s = 0
        self.ending = False

    async def begin(self, listening: socket) -> None:
        """Serve from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            partial(_Connection, self, loop), sock=listening, ssl=self._tls, backlog=BACKLOG
        )

    def stop_accepting(self) -> None:
        """Take no more connections, hang up on the idle ones; running requests go on, and are the last of theirs."""
        if self.ending:
            return
        self.ending = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.end_soon()

    async def end(self, wait_s: float = STOP_S) -> None:
        """Hang up; running requests were drained, so whoever is still there gets a moment to read the answer."""
        self.stop_accepting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._none_left.wait()
        for connection in list(self._connections):
            connection.abort()
        # Aborted transports tell their protocols in the loop's next round.
        await asyncio.sleep(0)

    def enter(self, connection: "_Connection") -> None:
        """A client has connected."""
        self._connections.add(connection)
        self._none_left.clear()

    def leave(self, connection: "_Connection") -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        if not self._connections:
            self._none_left.set()

    def date_line(self) -> bytes:
        """The ``date`` header, of this second."""
        now_s = int(time.time())
        if now_s != self._date_s:
            self._date_s = now_s
            self._date = b"date: %b\r\n" % formatdate(now_s, usegmt=True).encode("ascii")
        return self._date

    def read_target(self, target: bytes) -> tuple[str, bytes]:
        """Path and query of a request's target. Raises httptools' errors, UnicodeDecodeError."""
        path = self._targets.get(target)
        if path is not None:
            return path, b""
        parsed = httptools.parse_url(target)
        path = parsed.path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        query: bytes = parsed.query or b""
        if not query and target.startswith(b"/") and len(target) < 200 and len(self._targets) < TARGETS_MAX:
            self._targets[target] = path
        return path, query


class _HttpExchange(Exchange):
    """A request on a connection."""

    __slots__ = ("_chunked", "_connection", "_head", "_left", "_parts", "_reader", "_touched", "_version_1_0",
                 "body_ended", "expects_continue", "keep_alive", "started", "unread")  # fmt: skip

    def __init__(self, connection: "_Connection", method: str, path: str, query: bytes, headers: Headers) -> None:
        super().__init__(method, path, query, headers, connection.address)
        self._connection = connection
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
                self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._connection.want_more()
            self._reader = self._connection.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = b"".join(self._parts)
        self._parts.clear()
        self.unread = 0
        return data

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self.start(status, headers, len(body))
        self.end(body)

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
        if not self.keep_alive or self._connection.server.ending:
            self.keep_alive = False
            lines += b"connection: close\r\n"
        self.started = True
        self._head = b"%b%b%b\r\n" % (_STATUS_LINES[status], self._connection.server.date_line(), lines)

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
            self._connection.transport.write(out)

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
            self._connection.transport.write(out)
        self._connection.go_on(self)

    async def wait_writable(self) -> None:
        while self.stalled and not self.gone:
            await self._connection.wait_writable()

    def close_after(self) -> None:
        self.keep_alive = False

    def finish(self) -> None:
        if not self.complete:
            self.complete = True
            self.on_gone = None
            self._connection.cut_off(self)


class _Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.transport: asyncio.Transport
        self.address: str | None = None
        self._parser = httptools.HttpRequestParser(self)
        # What follows a request with «connection: close» is nobody's, but no reason to cut that one's answer off.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._target = b""
        self._headers: Headers = []
        self._expects_continue = False
        self._arriving: _HttpExchange | None = None  # whose body is coming in
        self._running: _HttpExchange | None = None  # which is being answered
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[_HttpExchange] = deque()
        self._writable: asyncio.Event | None = None
        self._reading = True
        self._closed = False
        self._in_head = False
        self._head_bytes = 0  # beyond the read with which the head began
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_bytes = 0  # read since the last that was part of a body or ended a head or a request
        self._idle_since_s = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    # -- what the transport calls --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) and peer else None
        self.server.enter(self)
        self._idle_since_s = self.loop.time()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up_head)
        self._idle_timer = self.loop.call_later(KEEP_ALIVE_S, self._look_whether_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self.server.leave(self)
        self._stop_head_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._resume_writers()
        self._waiting.clear()
        arriving, running = self._arriving, self._running
        self._arriving = None
        if running is not None:
            running.lose()
        if arriving is not None and arriving is not running:
            arriving.lose()

    def data_received(self, data: bytes) -> None:
        began_before = self._in_head
        self._idle_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._take_no_more()  # nothing here is upgraded: the request is answered as it is, and is the last
        except httptools.HttpParserError as error:
            if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(error.__context__, _BAD_TARGET):
                raise  # a defect of ours: the loop hangs up and has it logged
            self._hang_up_with(_BAD_REQUEST)
            return
        if self._in_head:
            self._wait_for_head(len(data) if began_before else 0)
        elif self._idle_bytes > HEAD_MAX_BYTES:
            self.transport.close()  # trailers, or what may stand beside a chunk's size: nobody reads them
        elif self._running is None and not self._closed:
            self._wait_for_head(0)  # line feeds, or the rest of a body that was refused, don't keep a connection

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()
        if self._running is not None:
            self._running.stalled = True

    def resume_writing(self) -> None:
        self._resume_writers()

    def _resume_writers(self) -> None:
        if self._running is not None:
            self._running.stalled = False
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set()

    # -- what the parser calls -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._idle_bytes = 0
        self._in_head = True
        self._head_bytes = 0
        self._target = b""
        self._headers = []
        self._expects_continue = False

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._idle_bytes = 0
        self._in_head = False
        if self._head_timer is not None:
            self._stop_head_timer()
        path, query = self.server.read_target(self._target)
        parser = self._parser
        exchange = _HttpExchange(self, parser.get_method().decode("ascii"), path, query, self._headers)
        exchange.expects_continue = self._expects_continue
        if parser.get_http_version() != "1.1":
            exchange.speak_1_0()
        elif not parser.should_keep_alive():
            exchange.keep_alive = False
        self._arriving = exchange
        if self._running is None:
            self._serve(exchange)
        else:
            self._waiting.append(exchange)
            if len(self._waiting) > PIPELINE_MAX:
                self._pause_reading()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        exchange = self._arriving
        if exchange is None or exchange.complete:
            return
        exchange.feed(body)
        if exchange.unread > UNREAD_HIGH_BYTES:
            self._pause_reading()

    def on_message_complete(self) -> None:
        self._idle_bytes = 0
        exchange, self._arriving = self._arriving, None
        if exchange is not None:
            exchange.feed_end()

    # -- one request after the other -----------------------------------------------------------------------------------

    def _serve(self, exchange: _HttpExchange) -> None:
        self._running = exchange
        exchange.stalled = self._writable is not None
        self._task = self.loop.create_task(self.server.app(exchange))

    def go_on(self, exchange: _HttpExchange) -> None:
        """The answer is complete: the next one, if there is one."""
        if exchange is not self._running:
            return
        self._running = None
        if not exchange.keep_alive or self.server.ending:
            self.transport.close()
            return
        if not self._reading:
            self._resume_reading()
        if self._waiting:
            self._serve(self._waiting.popleft())
        else:
            self._idle_since_s = self.loop.time()
            if self._arriving is not None:
                self._wait_for_head(0)  # the rest of its body: nobody reads it

    def cut_off(self, exchange: _HttpExchange) -> None:
        """The answer ended early: closing without its end is how the client is told."""
        if exchange is self._running:
            self._running = None
        self._take_no_more()
        if not self._closed:
            self.transport.close()

    def want_more(self) -> None:
        """A request waits for its body."""
        if not self._reading:
            self._resume_reading()

    async def wait_writable(self) -> None:
        """Return when more may be written, or nothing ever again."""
        if self._writable is not None:
            await self._writable.wait()

    def _pause_reading(self) -> None:
        if self._reading and not self._closed:
            self._reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        self._reading = True
        if not self._closed and not self.transport.is_closing():
            self.transport.resume_reading()

    def _take_no_more(self) -> None:
        """Requests that wait behind the running one are dropped, and it is the last."""
        self._waiting.clear()
        if self._running is not None:
            self._running.keep_alive = False

    def _hang_up_with(self, answer: bytes) -> None:
        """Say what is wrong with what came in, unless an answer is under way: that must not be mixed with another."""
        if self.transport.is_closing():
            return
        if self._running is None or not self._running.started:
            self.transport.write(answer)
        self.transport.close()

    # -- patience ------------------------------------------------------------------------------------------------------

    def _wait_for_head(self, more_bytes: int) -> None:
        self._head_bytes += more_bytes
        if self._head_bytes > HEAD_MAX_BYTES:
            self._hang_up_with(_TOO_LARGE)
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up_head)

    def _give_up_head(self) -> None:
        self._head_timer = None
        if self._running is not None:
            # A request that came before it is being answered: that goes first.
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up_head)
        elif not self.transport.is_closing():
            self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _look_whether_idle(self) -> None:
        """One timer for the connection's whole life: to set one for each request costs more than to look in vain."""
        idle_s = 0.0 if self._running is not None else self.loop.time() - self._idle_since_s
        if idle_s >= KEEP_ALIVE_S:
            self.abort()  # what it hasn't read by now it won't
            return
        self._idle_timer = self.loop.call_later(KEEP_ALIVE_S - idle_s, self._look_whether_idle)

    # -- the end -------------------------------------------------------------------------------------------------------

    def end_soon(self) -> None:
        """Hang up, after the running answer if there is one."""
        if self._running is None:
            self.transport.close()
        else:
            self._take_no_more()

    def abort(self) -> None:
        """Hang up now."""
        self.transport.abort()
