"""The progress of a download as server-sent events."""

import asyncio
from urllib.parse import quote, urlencode

import msgspec

from stentor.core.errors import Refused
from stentor.core.operator import Operate, OperatorAnswer, OperatorCall
from stentor.core.principal import Principal
from stentor.http.admin.models import Download
from stentor.http.connection import Connection
from stentor.http.handler import Params
from stentor.http.open_streams import OpenStream, OpenStreams

WAIT_S = 10
RETRY_S = 1.0
EVERY_S = 0.2
_ENDED = ("done", "failed", "cancelled", "interrupted")


class DownloadEndpoints:
    """Answers about one download: its state, or its progress as events. The node authority holds each question."""

    def __init__(self, operate: Operate, streams: OpenStreams) -> None:
        self._operate = operate
        self._streams = streams

    async def get(self, connection: Connection, principal: Principal, params: Params) -> None:
        """GET /admin/api/downloads/{id}, as JSON or as events."""
        with self._streams.begin(principal) as stream:
            await self._get(stream, connection, params)

    async def _get(self, stream: OpenStream, connection: Connection, params: Params) -> None:
        await connection.read_body(0)
        first = await self._ask(params["id"], -1, 0)
        accept = (connection.header(b"accept") or b"").decode("latin-1")
        if first.status != 200 or "text/event-stream" not in accept:
            headers = [(b"x-request-id", connection.request_id.encode()), (b"content-type", b"application/json")]
            await connection.respond(first.status, headers, first.body)
            return
        await connection.start_relay(200, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")])
        await stream.run(connection, self._write(connection, params["id"], first))

    async def _write(self, connection: Connection, download: str, answer: OperatorAnswer) -> None:
        seen = -1
        while answer.status in (200, 503):
            if answer.status == 503:
                await asyncio.sleep(RETRY_S)
            else:
                job = msgspec.json.decode(answer.body, type=Download)
                # A comment where nothing happened: a client that left is noticed by it.
                fresh = job.version != seen
                frame = b"id: %d\ndata: %s\n\n" % (job.version, answer.body) if fresh else b": \n\n"
                await connection.relay(frame)
                if job.state in _ENDED:
                    break
                seen = job.version
                await asyncio.sleep(EVERY_S)
            answer = await self._ask(download, seen, WAIT_S)
        await connection.end_relay()

    async def _ask(self, download: str, seen: int, wait_s: int) -> OperatorAnswer:
        query = urlencode({"after": seen, "wait_s": wait_s}).encode()
        path = f"/admin/api/downloads/{quote(download, safe='')}/state"
        try:
            return await self._operate(OperatorCall("GET", path, query, b""))
        except Refused as refusal:
            return OperatorAnswer(503, "application/json", msgspec.json.encode({"detail": refusal.message}))
