"""A conversation with an engine: who is silent, deaf or too quick is dealt with."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from aiohttp import WSMessage, WSMsgType

from stentor.engines.host import Problem, Socket

MIB = 1 << 20


class Caller:
    """The other side: says so many MiB, and may never read."""

    def __init__(self, mib: int = 0, *, deaf: bool = False) -> None:
        self.said = 0
        self._mib = mib
        self._deaf = deaf

    async def __aiter__(self) -> AsyncIterator[Any]:
        while self.said < self._mib:
            self.said += 1
            yield WSMessage(WSMsgType.BINARY, bytes(MIB), None)

    async def send_str(self, data: str) -> None:
        if self._deaf:
            await asyncio.Event().wait()


def socket_of(caller: Caller, **limits: float) -> Socket:
    return Socket(caller, ThreadPoolExecutor(1), **limits)  # type: ignore[arg-type]


async def test_who_says_nothing_is_told_so() -> None:
    with pytest.raises(Problem, match=r"0\.05 s") as problem:
        await socket_of(Caller(), idle_s=0.05).receive()
    assert problem.value.code == "idle"


async def test_who_does_not_listen_is_left() -> None:
    with pytest.raises(ConnectionError):
        await socket_of(Caller(deaf=True), send_s=0.05).send(b"{}")


async def test_no_more_is_taken_in_than_is_read() -> None:
    caller = Caller(100)
    socket = socket_of(caller)
    reading = asyncio.create_task(socket.take_in())
    for taken in range(100):
        for _ in range(20):
            await asyncio.sleep(0)
        assert caller.said <= taken + 3
        assert await socket.receive() == bytes(MIB)
    assert await socket.receive() is None
    await reading
