"""What is answered before there is anybody who could: the address is taken first, store and scheduler come up after."""

import asyncio
import contextlib
import datetime

import msgspec

from stentor.core.errors import Refused
from stentor.core.ids import new_request_id
from stentor.http.errors import envelope_of, error_body, error_headers, meaning_of
from stentor.http.exchange import ClientGone, Exchange
from stentor.http.wire import Health
from stentor.version import VERSION

BODY_S = 1.0
STARTING = Refused("server_starting", "Server is starting up", retry_after_s=1.0)


async def starting_up(exchange: Exchange) -> None:
    """503 to everything, in the words of its path. The connection is not kept."""
    headers = [
        (b"x-request-id", new_request_id().encode()),
        (b"content-type", b"application/json"),
        *error_headers(STARTING),
    ]
    try:
        # To close on a client that still sends would destroy the answer on its way.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BODY_S):
                while await exchange.read():
                    pass
        exchange.close_after()
        exchange.respond(meaning_of(STARTING).status, headers, _body_for(exchange.path))
    except ClientGone:
        return
    finally:
        exchange.finish()


def _body_for(path: str) -> bytes:
    if path != "/health":
        return error_body(STARTING, envelope_of(path))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return msgspec.json.encode(Health("unhealthy", "unavailable", 0, 0, now, VERSION))
