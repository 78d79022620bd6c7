"""The protocol of one client's connection: requests parsed by httptools (llhttp), answered one after the other.

That the client left is told to the request that is being answered. Nothing is waited for without end: a head has to
come to its end in time, a connection may lie idle for a while, and what nobody reads isn't read for long.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast

import httptools

from stentor.http.exchange import Exchange, Headers
from stentor.http.http_exchange import STATUS_LINES, HttpExchange

PIPELINE_MAX = 16
HEAD_MAX_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 20.0
KEEP_ALIVE_S = 75.0
UNREAD_HIGH_BYTES = 256 * 1024

App = Callable[[Exchange], Coroutine[Any, Any, None]]

_BAD_TARGET = (UnicodeDecodeError, httptools.HttpParserError)


def _complaint(status: int, text: str) -> bytes:
    return STATUS_LINES[status] + (
        f"content-type: text/plain\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n{text}"
    ).encode("ascii")


_BAD_REQUEST = _complaint(400, "This is not an HTTP/1.1 request that can be read.\n")
_TOO_LARGE = _complaint(431, "The request's head is too large.\n")


class Listener(Protocol):
    """The server that the connection belongs to."""

    app: App
    ending: bool
    secure: bool

    def enter(self, connection: "Connected") -> None:
        """A client has connected."""
        ...

    def leave(self, connection: "Connected") -> None:
        """A connection is gone."""
        ...

    def date_line(self) -> bytes:
        """The ``date`` header, of this second."""
        ...

    def read_target(self, target: bytes) -> tuple[str, bytes]:
        """Path and query of a request's target. Raises httptools' errors, UnicodeDecodeError."""
        ...


class Connected(asyncio.Protocol):
    """One client."""

    def __init__(self, server: Listener, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.date_line = server.date_line
        self.loop = loop
        self.transport: asyncio.Transport
        self.address: str | None = None
        self.secure = server.secure
        self._parser = httptools.HttpRequestParser(self)
        # What follows a request with «connection: close» is nobody's, but no reason to cut that one's answer off.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._target = b""
        self._headers: Headers = []
        self._expects_continue = False
        self._arriving: HttpExchange | None = None  # whose body is coming in
        self._running: HttpExchange | None = None  # which is being answered
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[HttpExchange] = deque()
        self._writable: asyncio.Event | None = None
        self._reading = True
        self._closed = False
        self._in_head = False
        self._head_bytes = 0  # beyond the read with which the head began
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_bytes = 0  # read since the last that was part of a body or ended a head or a request
        self._idle_since_s = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    @property
    def ending(self) -> bool:
        """Whether no further request is taken."""
        return self.server.ending

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
        exchange = HttpExchange(self, parser.get_method().decode("ascii"), path, query, self._headers)
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

    def _serve(self, exchange: HttpExchange) -> None:
        self._running = exchange
        exchange.stalled = self._writable is not None
        self._task = self.loop.create_task(self.server.app(exchange))

    def go_on(self, exchange: HttpExchange) -> None:
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

    def cut_off(self, exchange: HttpExchange) -> None:
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
