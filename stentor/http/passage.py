"""``/upstream/{instance}/…``: an engine's own pages and calls, for administrators. Nothing here is metered.

The engine is one of this machine's, its token is added here, and what could identify the caller to it is taken away.
What an engine answers is untrusted: a browser gets it sandboxed.
"""

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

from stentor.core.errors import Refused
from stentor.core.principal import Principal
from stentor.core.scheduler import Scheduler
from stentor.egress.passage import EnginePassage, PassageFailed
from stentor.http.connection import Connection
from stentor.http.exchange import ClientGone
from stentor.http.handler import Params
from stentor.http.open_streams import OpenStream, OpenStreams
from stentor.telemetry.logs import Log

AT_ONCE = 16
_CONTROLS = re.compile(r"[\x00-\x1f\x7f\\]")
_NOT_PASSED = frozenset({
    b"authorization", b"connection", b"content-length", b"cookie", b"expect", b"forwarded", b"host", b"keep-alive",
    b"origin", b"proxy-authorization", b"proxy-connection", b"referer", b"te", b"trailer", b"transfer-encoding",
    b"upgrade", b"x-api-key", b"x-conversation-id", b"x-csrf-token", b"x-forwarded-for", b"x-forwarded-host",
    b"x-forwarded-proto", b"x-real-ip",
})  # fmt: skip
_PASSED_BACK = frozenset({
    "cache-control", "content-disposition", "content-encoding", "content-language", "content-range", "content-type",
    "etag", "last-modified", "retry-after", "vary",
})  # fmt: skip


class EnginePassageEndpoints:
    """Any method, bodies streamed in both directions."""

    def __init__(
        self, scheduler: Scheduler, passage: EnginePassage, streams: OpenStreams, log: Log, body_max_bytes: int
    ) -> None:
        self._scheduler = scheduler
        self._passage = passage
        self._streams = streams
        self._log = log
        self._body_max_bytes = body_max_bytes
        self._running = 0

    async def pass_on(self, connection: Connection, principal: Principal, params: Params) -> None:
        """Pass one request on."""
        path = clean_path(params["rest"])
        door = await self._scheduler.find_door(params["instance"])
        if door is None:
            raise Refused(
                "not_found", f"No engine is ready under '{params['instance'][:128]}'; `stentor ps` shows the engines."
            )
        if self._running >= AT_ONCE:
            raise Refused("overloaded", f"{AT_ONCE} requests are being passed on already.", retry_after_s=1.0)
        query = connection.exchange.query.decode("latin-1")
        url = f"{door.url}/{path}" + (f"?{query}" if query else "")
        self._log.event(
            "upstream_passed",
            request_id=connection.request_id,
            key_id=principal.key_id,
            instance=params["instance"],
            method=connection.exchange.method,
            path=f"/{path}",
        )
        self._running += 1
        try:
            with self._streams.begin(principal) as stream:
                await self._relay(stream, connection, url, door.token)
        finally:
            self._running -= 1

    async def _relay(self, stream: OpenStream, connection: Connection, url: str, token: str) -> None:
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in connection.headers
            if name not in _NOT_PASSED
        }
        if token:
            headers["authorization"] = f"Bearer {token}"
        body = _Upload(connection, self._body_max_bytes) if connection.has_body() else None
        if body is None:
            await connection.read_body(0)
        chunks = None if body is None else body.chunks()
        try:
            async with self._passage.send(connection.exchange.method, url, headers, chunks) as answer:
                back = [
                    (name.lower().encode("latin-1"), value.encode("latin-1"))
                    for name, value in answer.headers.items()
                    if name.lower() in _PASSED_BACK
                ]
                back += [(b"content-security-policy", b"sandbox"), (b"x-content-type-options", b"nosniff")]
                await connection.start_relay(answer.status, back)
                await stream.run(connection, _copy(answer.content.iter_any(), connection))
        except PassageFailed as error:
            # After the start the missing end of the body says it.
            if connection.started:
                raise ClientGone from None
            if body is not None and body.problem is not None:
                raise body.problem from None
            raise Refused("engine_failed", str(error)) from None


class _Upload:
    """The client's body on its way; ``problem`` is why it ended too early."""

    def __init__(self, connection: Connection, limit_bytes: int) -> None:
        self._connection = connection
        self._limit_bytes = limit_bytes
        self.problem: Refused | ClientGone | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._connection.iterate_body(self._limit_bytes):
                yield chunk
        except (Refused, ClientGone) as problem:
            self.problem = problem
            raise


async def _copy(chunks: AsyncIterator[bytes], connection: Connection) -> None:
    async for chunk in chunks:
        await connection.relay(chunk)
    await connection.end_relay()


def clean_path(rest: str) -> str:
    """The path for the engine: encoded anew, without a way out of it. Raises Refused."""
    segments = rest.split("/")
    if _CONTROLS.search(rest) or any(segment in (".", "..") for segment in segments) or "" in segments[:-1]:
        raise Refused("invalid_request", "The path after the instance holds '.', '..', '//' or a control character.")
    return "/".join(quote(segment, safe="-._~!$&'()*+,;=:@") for segment in segments)
