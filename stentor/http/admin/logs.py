"""An engine's log as it is written, as server-sent events."""

import asyncio
from urllib.parse import urlencode

import msgspec

from stentor.core.operator import Operate, OperatorAnswer, OperatorCall
from stentor.core.principal import Principal
from stentor.http.connection import Connection
from stentor.http.handler import Params
from stentor.http.open_streams import OpenStream, OpenStreams

WAIT_S = 10
RETRY_S = 1.0
_encode = msgspec.json.Encoder().encode


class LogEndpoints:
    """Follows logs page by page: the node authority holds each question until there is a new line."""

    def __init__(self, operate: Operate, streams: OpenStreams) -> None:
        self._operate = operate
        self._streams = streams

    async def follow(self, connection: Connection, principal: Principal, params: Params) -> None:
        """GET /admin/api/slots/{slot}/logs; ``Last-Event-ID`` goes on where a reader broke off."""
        with self._streams.begin(principal) as stream:
            await self._follow(stream, connection, params)

    async def _follow(self, stream: OpenStream, connection: Connection, params: Params) -> None:
        await connection.read_body(0)
        last = (connection.header(b"last-event-id") or b"0").decode("latin-1")
        after = int(last) if last.isdecimal() and len(last) < 18 else 0
        path = f"/admin/api/slots/{params['slot']}/log"
        first = await self._ask(path, after, 0)
        if first.status != 200:
            headers = [(b"x-request-id", connection.request_id.encode()), (b"content-type", b"application/json")]
            await connection.respond(first.status, headers, first.body)
            return
        await connection.start_relay(200, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")])
        await stream.run(connection, self._write(connection, path, first))

    async def _write(self, connection: Connection, path: str, answer: OperatorAnswer) -> None:
        while answer.status == 200:
            page = msgspec.json.decode(answer.body)
            after = page["next"]
            first = after - len(page["data"])
            frames = [b"id: %d\ndata: %s\n\n" % (first + n, _encode(line)) for n, line in enumerate(page["data"], 1)]
            # A comment where nothing happened: a client that left is noticed by it.
            await connection.relay(b"".join(frames) or b": \n\n")
            answer = await self._ask(path, after, WAIT_S)
            if answer.status == 503:
                await asyncio.sleep(RETRY_S)
        await connection.end_relay()

    async def _ask(self, path: str, after: int, wait_s: int) -> OperatorAnswer:
        query = urlencode({"after": after, "wait_s": wait_s}).encode()
        return await self._operate(OperatorCall("GET", path, query, b""))
