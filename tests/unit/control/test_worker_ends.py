"""Workers that are being started when the server ends are told like the others; nobody waits for them."""

import asyncio
import contextlib
import socket
import sys
from typing import Any

from stentor.control.workers.client import AuthorityClient
from stentor.control.workers.desk import Desk
from stentor.control.workers.workers import Workers
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings
from tests.unit.control.no_books import Nothing

# A worker that does nothing, and ends when it is told so.
OBEDIENT = """
import socket, sys
line, heard = socket.socket(fileno=int(sys.argv[1])), b""
while b"drain" not in heard:
    heard += line.recv(4096) or sys.exit(1)
"""


async def test_a_worker_that_comes_while_the_server_ends_is_told() -> None:
    spawned, go_on = asyncio.Event(), asyncio.Event()

    class Late(Desk):
        async def begin(self, sock: socket.socket, hello: Any) -> None:
            spawned.set()
            await go_on.wait()
            await super().begin(sock, hello)

    log = Log(TelemetrySettings(log_level="ERROR"), fd=-1)
    workers = Workers(
        Nothing(),  # type: ignore[arg-type]
        lambda owner: Late(owner, Nothing(), None, None),  # type: ignore[arg-type]
        lambda line, _: [sys.executable, "-c", OBEDIENT, str(line)],
        None,
        log,
    )
    starting = asyncio.create_task(workers.start("127.0.0.1", 0, 1))
    await asyncio.wait_for(spawned.wait(), 30)
    stopping = asyncio.create_task(workers.shutdown(600.0))
    await asyncio.sleep(0.05)
    go_on.set()
    await asyncio.wait_for(stopping, 60)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    log.close()


async def test_what_was_said_before_anybody_listened_is_heard() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    desk, client = Desk("worker", Nothing(), None, None), AuthorityClient()  # type: ignore[arg-type]
    first, second, lost = [], [], []  # type: ignore[var-annotated]
    await desk.begin(ours, None)
    desk.tell_drain(3.0)
    await client.connect(theirs)
    client.on_drain(first.append)
    async with asyncio.timeout(30):
        while not first:
            await asyncio.sleep(0.01)
        client.on_drain(second.append)
        desk.close()
        while not client.is_lost:
            await asyncio.sleep(0.01)
    client.on_lost(lambda: lost.append(True))
    assert (first, second, lost) == ([3.0], [3.0], [True])
