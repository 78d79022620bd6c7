"""A defect at the authority is the authority's: the worker that asked hears of it, and goes on."""

import asyncio
import contextlib
import errno
import socket
from typing import Any

import pytest

from stentor.control.workers.client import AuthorityClient
from stentor.control.workers.desk import Desk
from stentor.control.workers.workers import Workers
from stentor.core.errors import Refused
from stentor.core.operator import OperatorAnswer, OperatorCall
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings
from tests.unit.control.no_books import Nothing


class Broken(Nothing):
    """Books in which every look-up is a defect."""

    async def find_principal(self, key_digest: bytes) -> None:
        raise ZeroDivisionError


async def test_a_defect_reaches_the_worker_that_waits() -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context.get("exception")))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    desk = Desk("worker", Broken(), None, None)  # type: ignore[arg-type]
    client = AuthorityClient()
    await desk.begin(ours, None)
    await client.connect(theirs)
    with pytest.raises(Refused, match="ZeroDivisionError") as caught:
        await asyncio.wait_for(client.find_principal(b"x" * 32), 30)
    assert caught.value.code == "internal_error"
    client.hang_up()
    await asyncio.wait_for(desk.lost.wait(), 30)
    desk.close()
    assert [type(defect) for defect in told] in ([ZeroDivisionError], [])  # told when the task is collected


async def test_a_change_goes_on_when_the_worker_that_asked_for_it_is_lost() -> None:
    begun, written, applied = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def operate(_: OperatorCall) -> OperatorAnswer:
        begun.set()
        await written.wait()
        applied.set()  # in memory, as it now is in the database
        return OperatorAnswer(200, "application/json", b"{}")

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    desk = Desk("worker", Broken(), None, operate)  # type: ignore[arg-type]
    client = AuthorityClient()
    await desk.begin(ours, None)
    await client.connect(theirs)
    asking = asyncio.create_task(client.operate(OperatorCall("POST", "/", b"", b"")))
    await asyncio.wait_for(begun.wait(), 30)
    client.hang_up()
    await asyncio.wait_for(desk.lost.wait(), 30)
    written.set()
    await asyncio.wait_for(applied.wait(), 30)
    desk.close()
    with pytest.raises(Refused):
        await asking


async def test_a_worker_that_cannot_be_spawned_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    async def spawn(*_: Any, **__: Any) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
    log = Log(TelemetrySettings(log_level="ERROR"), fd=-1)
    desk: Any = Desk("w", Broken(), None, None)  # type: ignore[arg-type]
    workers = Workers(Broken(), lambda _: desk, lambda *_: [], None, log)  # type: ignore[arg-type]
    starting = asyncio.create_task(workers.start("127.0.0.1", 0, 1))
    async with asyncio.timeout(30):
        while tries < 2:
            await asyncio.sleep(0.01)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    await workers.shutdown(0.0)
    log.close()
