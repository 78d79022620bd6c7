"""One request on its connection: reading the body, sending the answer, noticing that the client left."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from stentor.core.errors import Refused
from stentor.core.ids import RequestId, new_request_id
from stentor.flows.calls import Call
from stentor.flows.client import AnswerHead
from stentor.http.errors import Envelope, error_body, error_frame, error_headers, status_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

BODY_TIMEOUT_S = 60.0
BODY_POLL_S = 0.05
CLIENT_STALL_S = 30.0
WATCH_AFTER_S = 0.02
SKIP_S = 5.0
SKIP_MAX_BYTES = 256 * 1024 * 1024


class ClientGone(Exception):
    """The client left before its request was read."""


class Connection:
    """The caller's side of one HTTP request, behind ``stentor.flows.chat.Client``."""

    __slots__ = (
        "_body_ended", "_call", "_loop", "_receive", "_send", "_sending_since", "_timer", "_watcher",
        "fail", "headers", "received_s", "request_id", "scope", "started", "status",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, loop: asyncio.AbstractEventLoop) -> None:
        self.scope = scope
        self.headers: Headers = scope["headers"]
        self.request_id: RequestId = new_request_id()
        self.received_s = time.monotonic()
        self.started = False
        self.status = 0
        # How a dialect says that a stream ends early, where it isn't the OpenAI API's way.
        self.fail: Callable[[Refused], Awaitable[None]] | None = None
        self._body_ended = False
        self._receive = receive
        self._send = send
        self._call: Call | None = None
        self._sending_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = loop
        self._watcher: asyncio.TimerHandle | asyncio.Task[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first header of this (lower-case) name."""
        for known, value in self.headers:
            if known == name:
                return value
        return None

    async def read_body(self, limit_bytes: int) -> bytes:
        """The whole body. Raises Refused (413) over the limit, ClientGone."""
        announced = self.header(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit_bytes:
            raise _too_large(limit_bytes)
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if not message.get("more_body"):
            self._body_ended = True
            body: bytes = message.get("body", b"")
            if len(body) > limit_bytes:
                raise _too_large(limit_bytes)
            return body
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await self._read_rest(message, limit_bytes)
        except TimeoutError:
            raise Refused(
                "invalid_request", f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s.", param=None
            ) from None

    async def _read_rest(self, message: Message, limit_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGone
            part: bytes = message.get("body", b"")
            self._body_ended = not message.get("more_body")
            size += len(part)
            if size > limit_bytes:
                raise _too_large(limit_bytes)
            parts.append(part)
            if self._body_ended:
                return b"".join(parts)
            message = await self._receive()

    def has_body(self) -> bool:
        """Whether the request says that it has a body."""
        length = self.header(b"content-length")
        return self.header(b"transfer-encoding") is not None or length not in (None, b"0")

    async def iterate_body(self, limit_bytes: int) -> AsyncIterator[bytes]:
        """The body as it comes in. Raises Refused (413) over the limit or when it stalls, ClientGone."""
        size = 0
        while not self._body_ended:
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    message = await self._receive()
            except TimeoutError:
                raise Refused("invalid_request", "The body stalled.") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            part: bytes = message.get("body", b"")
            self._body_ended = not message.get("more_body")
            size += len(part)
            if size > limit_bytes:
                raise _too_large(limit_bytes)
            if part:
                yield part

    async def wait_left(self) -> None:
        """Until the client is gone. What is left of the body is somebody else's to read."""
        while not self._body_ended:  # noqa: ASYNC110  # an answer before the end of the body is rarer than an event here
            await asyncio.sleep(BODY_POLL_S)
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start_relay(self, status: int, headers: Headers) -> None:
        """Begin an answer that is followed by :meth:`relay` until :meth:`end_relay`."""
        self.started = True
        self.status = status
        headers = [(b"x-request-id", self.request_id.encode()), *headers, (b"x-accel-buffering", b"no")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def relay(self, data: bytes) -> None:
        """Send a piece. Raises ClientGone when the client hasn't read for 30 s."""
        try:
            async with asyncio.timeout(CLIENT_STALL_S):
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            raise ClientGone from None

    async def end_relay(self) -> None:
        """End the answer well. An answer that isn't ended so is cut off, and the client sees that."""
        await self._send({"type": "http.response.body", "body": b""})

    def watch(self, call: Call) -> None:
        """From now on the call is interrupted when the client leaves, or stops reading for 30 s.

        uvicorn's ``send`` never says that the client left; only ``receive`` does. Listening starts a moment later, and
        hears what happened before: a request that is answered by then is spared a task.
        """
        self._call = call
        self._watcher = self._loop.call_later(WATCH_AFTER_S, self._start_watching, call)

    def _start_watching(self, call: Call) -> None:
        self._watcher = self._loop.create_task(self._wait_for_leaving(call))

    async def _wait_for_leaving(self, call: Call) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                call.interrupt("client_left")
                return

    async def start_stream(self, head: AnswerHead, media_type: bytes = b"text/event-stream") -> None:
        headers = self._head_headers(head)
        headers += [
            (b"content-type", media_type),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        self.started = True
        self.status = 200
        self._timer = self._loop.call_later(CLIENT_STALL_S, self._check_stall)
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

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

    def _check_stall(self) -> None:
        waiting_s = time.monotonic() - self._sending_since if self._sending_since is not None else 0.0
        if waiting_s >= CLIENT_STALL_S:
            if self._call is not None:
                self._call.interrupt("client_stalled")
            return
        self._timer = self._loop.call_later(CLIENT_STALL_S - waiting_s, self._check_stall)

    async def write(self, data: bytes) -> None:
        self._sending_since = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._sending_since = None

    async def end_stream(self, data: bytes) -> None:
        # The books are settled: a reader who stalls now can only be hung up on.
        assert self._call is not None
        deadline = self._call.expire_in(CLIENT_STALL_S)
        try:
            await self._send({"type": "http.response.body", "body": data})
        except asyncio.CancelledError:
            if not self._call.take_expiry():
                raise
        finally:
            deadline.cancel()

    async def fail_stream(self, refusal: Refused) -> None:
        if self.fail is not None:
            await self.fail(refusal)
        else:
            await self.end_stream(error_frame(refusal))

    async def cut(self) -> None:
        """End a stream so that it is seen to be broken: the connection closes without the last chunk."""
        transport: asyncio.Transport = self.scope["state"]["transport"]
        transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLIENT_STALL_S):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        transport.abort()

    def finish(self) -> None:
        """Stop watching the client."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def answer(self, head: AnswerHead, body: bytes, media_type: bytes = b"application/json") -> None:
        headers = self._head_headers(head)
        headers.append((b"content-type", media_type))
        await self.respond(200, headers, body)

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""
        self.started = True
        self.status = status
        headers.append((b"content-length", b"%d" % len(body)))
        if self.scope["method"] == "HEAD":
            body = b""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

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
        headers += [(b"connection", b"close"), (b"content-length", b"%d" % len(body))]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SKIP_S):
                await self._skip_body(SKIP_MAX_BYTES)
        await self._send({"type": "http.response.body"})

    async def _skip_body(self, most_bytes: int) -> None:
        while not self._body_ended and most_bytes > 0:
            message = await self._receive()
            self._body_ended = not message.get("more_body")
            most_bytes -= len(message.get("body", b""))


def _too_large(limit_bytes: int) -> Refused:
    return Refused(
        "body_too_large",
        f"The body is over the limit of {limit_bytes // (1024 * 1024)} MiB. "
        "Send less, or have the operator raise STENTOR_BODY_MAX_MB.",
    )


def usd_text(cost_nano: int) -> str:
    """Nano-USD as a decimal number of US dollars, exact, at least two and at most nine places."""
    whole, nano = divmod(cost_nano, 1_000_000_000)
    places = f"{nano:09d}".rstrip("0").ljust(2, "0")
    return f"{whole}.{places}"
