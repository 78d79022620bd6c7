"""One request on its connection: reading the body, sending the answer, noticing that the client left."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache, partial

from stentor.core.errors import Refused
from stentor.core.ids import RequestId, new_request_id
from stentor.flows.calls import Call
from stentor.flows.client import AnswerHead
from stentor.http.errors import Envelope, error_body, error_frame, error_headers, status_of
from stentor.http.exchange import ClientGone, Exchange, Headers

BODY_TIMEOUT_S = 60.0
CLIENT_STALL_S = 30.0
SKIP_S = 5.0
BODY_SETTING = "STENTOR_BODY_MAX_MB"
SKIP_MAX_BYTES = 256 * 1024 * 1024


class Connection:
    """The caller's side of one HTTP request, behind ``stentor.flows.chat.Client``."""

    __slots__ = ("_call", "_loop", "exchange", "fail", "headers", "received_s", "request_id", "started", "status")

    def __init__(self, exchange: Exchange, loop: asyncio.AbstractEventLoop) -> None:
        self.exchange = exchange
        self.headers: Headers = exchange.headers
        self.request_id: RequestId = new_request_id()
        self.received_s = time.monotonic()
        self.started = False
        self.status = 0
        # How a dialect says that a stream ends early, where it isn't the OpenAI API's way.
        self.fail: Callable[[Refused], Awaitable[None]] | None = None
        self._call: Call | None = None
        self._loop = loop

    def header(self, name: bytes) -> bytes | None:
        """The first header of this (lower-case) name."""
        for known, value in self.headers:
            if known == name:
                return value
        return None

    async def read_body(self, limit_bytes: int, setting: str = BODY_SETTING) -> bytes:
        """The whole body. Raises Refused (413) over the limit, ClientGone. ``setting`` names the limit, if any does."""
        announced = self.header(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit_bytes:
            raise _too_large(limit_bytes, setting)
        body = self.exchange.find_body()
        if body is None:
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    return await self._read_parts(limit_bytes, setting)
            except TimeoutError:
                raise Refused(
                    "invalid_request", f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s.", param=None
                ) from None
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes, setting)
        return body

    async def _read_parts(self, limit_bytes: int, setting: str) -> bytes:
        parts: list[bytes] = []
        size = 0
        while part := await self.exchange.read():
            size += len(part)
            if size > limit_bytes:
                raise _too_large(limit_bytes, setting)
            parts.append(part)
        return b"".join(parts)

    def has_body(self) -> bool:
        """Whether the request says that it has a body."""
        length = self.header(b"content-length")
        return self.header(b"transfer-encoding") is not None or length not in (None, b"0")

    async def iterate_body(self, limit_bytes: int, setting: str = BODY_SETTING) -> AsyncIterator[bytes]:
        """The body as it comes in. Raises Refused (413) over the limit or when it stalls, ClientGone."""
        size = 0
        while True:
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    part = await self.exchange.read()
            except TimeoutError:
                raise Refused("invalid_request", "The body stalled.") from None
            if not part:
                return
            size += len(part)
            if size > limit_bytes:
                raise _too_large(limit_bytes, setting)
            yield part

    async def wait_left(self) -> None:
        """Until the client is gone."""
        left = asyncio.Event()
        self.exchange.watch(left.set)
        await left.wait()

    async def start_relay(self, status: int, headers: Headers) -> None:
        """Begin an answer that is followed by :meth:`relay` until :meth:`end_relay`."""
        self.started = True
        self.status = status
        headers = [(b"x-request-id", self.request_id.encode()), *headers, (b"x-accel-buffering", b"no")]
        self.exchange.start(status, headers)
        self.exchange.write(b"")  # the head goes out now: what follows may take its time

    async def relay(self, data: bytes) -> None:
        """Send a piece. Raises ClientGone when the client hasn't read for 30 s."""
        if self.exchange.stalled:
            try:
                async with asyncio.timeout(CLIENT_STALL_S):
                    await self.exchange.wait_writable()
            except TimeoutError:
                raise ClientGone from None
        self.exchange.write(data)

    async def end_relay(self) -> None:
        """End the answer well. An answer that isn't ended so is cut off, and the client sees that."""
        self.exchange.end()

    def watch(self, call: Call) -> None:
        """From now on the call is interrupted when the client leaves, or stops reading for 30 s."""
        self._call = call
        self.exchange.watch(partial(call.interrupt, "client_left"))

    async def start_stream(self, head: AnswerHead, media_type: bytes = b"text/event-stream") -> None:
        headers = self._head_headers(head)
        headers += [
            (b"content-type", media_type),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        self.started = True
        self.status = 200
        self.exchange.start(200, headers)

    def _head_headers(self, head: AnswerHead) -> Headers:
        headers = [
            (b"x-request-id", self.request_id.encode()),
            (b"x-stentor-model", head.model.encode()),
            (b"x-stentor-instance", head.instance.encode()),
            (b"x-stentor-overhead-ms", b"%.3f" % (head.overhead_us / 1000)),
        ]
        if head.cost_nano is not None:
            headers.append((b"x-stentor-cost", usd_text(head.cost_nano).encode()))
        return headers

    async def write(self, data: bytes) -> None:
        if self.exchange.stalled:
            await self._wait_for_reader()
        self.exchange.write(data)

    async def _wait_for_reader(self) -> None:
        """Return when the client has read on. One that doesn't for 30 s has left."""
        call = self._call
        if call is None:
            await self.exchange.wait_writable()
            return
        if call.closing:
            # The books are settled: a reader who stalls now can only be hung up on.
            call.expire_in(CLIENT_STALL_S)
            try:
                await self.exchange.wait_writable()
            except asyncio.CancelledError:
                if not call.take_expiry():
                    raise
            finally:
                call.stay()
            return
        deadline = self._loop.call_later(CLIENT_STALL_S, call.interrupt, "client_stalled")
        try:
            await self.exchange.wait_writable()
        finally:
            deadline.cancel()

    async def end_stream(self, data: bytes) -> None:
        if self.exchange.stalled:
            await self._wait_for_reader()
        if not self.exchange.stalled:
            self.exchange.end(data)

    async def fail_stream(self, refusal: Refused) -> None:
        if self.fail is not None:
            await self.fail(refusal)
        else:
            await self.end_stream(error_frame(refusal))

    async def cut(self) -> None:
        """End a stream so that it is seen to be broken: the connection closes without the last chunk."""
        self.exchange.finish()

    def finish(self) -> None:
        """Nobody works on this request any more."""
        self.exchange.finish()

    async def answer(self, head: AnswerHead, body: bytes, media_type: bytes = b"application/json") -> None:
        headers = self._head_headers(head)
        headers.append((b"content-type", media_type))
        await self.respond(200, headers, body)

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""
        self.started = True
        self.status = status
        if self.exchange.stalled:
            await self._wait_for_reader()
        self.exchange.respond(status, headers, body)

    async def refuse(self, refusal: Refused, envelope: Envelope) -> None:
        """Send an error answer in the surface's envelope."""
        headers = [(b"x-request-id", self.request_id.encode()), (b"content-type", b"application/json")]
        headers += error_headers(refusal)
        body = error_body(refusal, envelope)
        status = status_of(refusal, envelope)
        if refusal.code == "body_too_large":
            await self._respond_and_close(status, headers, body)
        else:
            await self.respond(status, headers, body)

    async def _respond_and_close(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer, and read on for a while: to close on a client that still sends destroys the answer on its way."""
        self.started = True
        self.status = status
        self.exchange.close_after()
        self.exchange.start(status, headers, len(body))
        self.exchange.write(body)
        with contextlib.suppress(TimeoutError, ClientGone):
            async with asyncio.timeout(SKIP_S):
                skipped = 0
                while skipped < SKIP_MAX_BYTES and (part := await self.exchange.read()):
                    skipped += len(part)
        self.exchange.end()


def _too_large(limit_bytes: int, setting: str) -> Refused:
    over = f"The body is over the limit of {limit_bytes // (1024 * 1024)} MiB." if limit_bytes else "No body goes here."
    advice = f" Send less, or have the operator raise {setting}." if setting else " Send less."
    return Refused("body_too_large", over + (advice if limit_bytes else " Leave it out."))


@lru_cache(1024)  # most requests of a time cost what others did
def usd_text(cost_nano: int) -> str:
    """Nano-USD as a decimal number of US dollars, exact, at least two and at most nine places."""
    whole, nano = divmod(cost_nano, 1_000_000_000)
    places = f"{nano:09d}".rstrip("0").ljust(2, "0")
    return f"{whole}.{places}"
