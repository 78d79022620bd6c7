"""The way from a worker to an engine: plain HTTP/1.1 over loopback, without a second guess.

Engines are our own children on this machine, so this client does one thing: post a JSON body, hand over the answer's
headers as soon as they are there, then its bytes as they come. Parsing is httptools' (llhttp). No redirects, no
cookies, no proxy, no total deadline: an answer may take an hour as long as it goes on. Closing an answer that hasn't
ended closes its connection, and that is what makes an engine stop. A general client spends more time on a request
than the whole rest of the gateway; see docs/decisions.
"""

import asyncio
import time
from collections import deque
from typing import cast
from urllib.parse import urlsplit

import httptools
import msgspec

from stentor.core.errors import StentorError

CONNECT_TIMEOUT_S = 5.0
# llama-server closes idle connections after 5 s; never be the one who finds out.
KEEP_ALIVE_S = 3.0
IDLE_MAX = 256
BUFFER_HIGH_BYTES = 256 * 1024
ERROR_BODY_BYTES = 64 * 1024
HEAD_MAX_BYTES = 256 * 1024


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``stall_s``: how long an engine may stay silent, before its answer or within it, before it counts as hung."""

    stall_s: float = 300.0


class EngineUnreachable(StentorError):
    """The engine could not be reached, or broke off: ``answered`` says whether any byte had come back."""

    def __init__(self, problem: str, *, answered: bool) -> None:
        super().__init__(problem)
        self.answered = answered


class _Line(asyncio.Protocol):
    """One connection to an engine; one request at a time."""

    def __init__(self, stall_s: float) -> None:
        self.status = 0
        self.content_type = ""
        self.answered = False
        self.reusable = False
        self.idle_since = 0.0
        self.closed = False
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._asked = False
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self.paused = False
        self._headers_done = False
        self._head_bytes = 0
        self._ended = False
        self._framed = False
        self._problem = ""
        self._heard_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.answered = True
        self._heard_s = time.monotonic()
        if not self._asked or self._ended:
            self._break("it sent bytes that nobody asked for")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(f"its answer isn't HTTP: {error}")
            return
        if not self._headers_done:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX_BYTES:
                self._break(f"the head of its answer is over {HEAD_MAX_BYTES} bytes")
                return
        self._wake()
        if self._buffered > BUFFER_HIGH_BYTES and not self.paused and self._transport is not None:
            self.paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.reusable = False
        if self._headers_done and not self._framed and exc is None:
            self._ended = True
        elif not self._ended and not self._problem:
            self._problem = f"it closed the connection ({exc})" if exc else "it closed the connection"
        self._stop_timer()
        self._wake()

    # What the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == b"content-type":
            self.content_type = value.decode("latin-1").partition(";")[0].strip().lower()
        elif lower in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._headers_done = True

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        self._ended = True
        self.reusable = self._parser.should_keep_alive()

    # What the client calls

    def send(self, request: bytes) -> None:
        """Start a request on this line."""
        assert self._transport is not None
        self._asked = True
        self.answered = self.reusable = self._headers_done = self._ended = self._framed = False
        self.content_type = ""
        self._head_bytes = 0
        self._chunks.clear()
        self._buffered = 0
        self._heard_s = time.monotonic()
        if self._timer is None:
            self._timer = self._loop.call_later(self._stall_s, self._check_stall)
        self._transport.write(request)

    async def wait_headers(self) -> None:
        """Return when status and headers are there. Raises EngineUnreachable."""
        while not self._headers_done:
            if self._problem or self.closed:
                raise EngineUnreachable(self._problem or "it closed the connection", answered=self.answered)
            await self._wait()

    async def read(self) -> bytes:
        """Everything that has come in; waits for at least a byte; empty at the end. Raises EngineUnreachable."""
        while not self._chunks:
            if self._ended:
                return b""
            if self._problem:
                raise EngineUnreachable(self._problem, answered=True)
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self.paused and self._transport is not None:
            self.paused = False
            self._transport.resume_reading()
        return data

    @property
    def at_end(self) -> bool:
        """Whether the whole answer has come in, read or not."""
        return self._ended

    def rest(self) -> None:
        """Nobody waits for anything on this line."""
        self._asked = False
        self.idle_since = time.monotonic()

    def close(self) -> None:
        self._stop_timer()
        self.closed = True
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _break(self, problem: str) -> None:
        self._problem = problem
        self.close()
        self._wake()

    def _check_stall(self) -> None:
        """One timer for many requests: to set one for each costs more than to look in vain."""
        if not self._asked:
            self._timer = None
            return
        silent_s = time.monotonic() - self._heard_s
        # A reader that is behind isn't the engine's fault.
        if silent_s >= self._stall_s and not self._chunks:
            self._timer = None
            self._break(f"it was silent for {silent_s:.0f} s")
            return
        self._timer = self._loop.call_later(max(0.05, self._stall_s - silent_s), self._check_stall)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class EngineAnswer:
    """An engine's answer whose body hasn't been read yet."""

    __slots__ = ("_client", "_key", "_line", "content_type", "read", "status")

    def __init__(self, client: "EngineClient", key: tuple[str, int], line: _Line) -> None:
        self._client = client
        self._key = key
        self._line = line
        self.status = line.status
        self.content_type = line.content_type
        self.read = line.read

    async def error_body(self) -> bytes:
        """The first 64 KiB of the body; what came in of it if the engine breaks off."""
        body = b""
        try:
            while len(body) < ERROR_BODY_BYTES and (chunk := await self._line.read()):
                body += chunk
        except EngineUnreachable:
            pass  # a broken error page is still an error page
        return body[:ERROR_BODY_BYTES]

    def release(self) -> None:
        """Give the connection back if the answer ended, else close it: the engine stops working on it."""
        self._client.give_back(self._key, self._line)


class EngineClient:
    """Posts requests to engines. Make it inside the running loop; close it at the end."""

    def __init__(self, settings: EngineSettings) -> None:
        self._stall_s = settings.stall_s
        self._idle: dict[tuple[str, int], list[_Line]] = {}
        self._busy: set[_Line] = set()
        self._heads: dict[tuple[str, str], tuple[tuple[str, int], bytes]] = {}

    async def post_json(self, url: str, token: str, body: bytes) -> EngineAnswer:
        """POST ``body`` and return as soon as the answer's headers are there.

        A connection that the engine had closed while it lay idle is replaced, once, as long as no byte came back.
        Raises EngineUnreachable.
        """
        key, head = self._heads.get((url, token)) or self._make_head(url, token)
        request = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        line = self._take_idle(key)
        if line is not None:
            try:
                return await self._ask(key, line, request)
            except EngineUnreachable as error:
                if error.answered:
                    raise
        return await self._ask(key, await self._connect(key), request)

    async def _ask(self, key: tuple[str, int], line: _Line, request: bytes) -> EngineAnswer:
        self._busy.add(line)
        try:
            line.send(request)
            await line.wait_headers()
        except BaseException:  # a cancelled request too must close its line, or the engine works on
            self._busy.discard(line)
            line.close()
            raise
        return EngineAnswer(self, key, line)

    def _take_idle(self, key: tuple[str, int]) -> _Line | None:
        lines = self._idle.get(key)
        while lines:
            line = lines.pop()
            if not line.closed and time.monotonic() - line.idle_since < KEEP_ALIVE_S:
                return line
            line.close()
        return None

    async def _connect(self, key: tuple[str, int]) -> _Line:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, line = await loop.create_connection(lambda: _Line(self._stall_s), *key)
        except TimeoutError:
            raise EngineUnreachable(f"no connection within {CONNECT_TIMEOUT_S:.0f} s", answered=False) from None
        except OSError as error:
            raise EngineUnreachable(f"it can't be reached ({error.strerror or error})", answered=False) from None
        return line

    def _make_head(self, url: str, token: str) -> tuple[tuple[str, int], bytes]:
        parts = urlsplit(url)
        key = (parts.hostname or "127.0.0.1", parts.port or 80)
        head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {token}\r\nContent-Length: "
        ).encode("latin-1")
        if len(self._heads) > 1000:
            self._heads.clear()
        self._heads[url, token] = key, head
        return key, head

    def give_back(self, key: tuple[str, int], line: _Line) -> None:
        """A line is done with: keep it if its answer ended and the engine keeps it open."""
        self._busy.discard(line)
        lines = self._idle.setdefault(key, [])
        # One that isn't being read, as nobody took in the end of its answer, would never hear the next one's.
        if line.reusable and line.at_end and not line.closed and not line.paused and len(lines) < IDLE_MAX:
            line.rest()
            lines.append(line)
        else:
            line.close()

    async def close(self) -> None:
        """Close every connection."""
        for lines in self._idle.values():
            for line in lines:
                line.close()
        for line in list(self._busy):
            line.close()
        self._idle.clear()
        # Aborted transports tell their protocols in the loop's next round.
        await asyncio.sleep(0)
