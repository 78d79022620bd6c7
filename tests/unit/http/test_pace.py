"""A body that comes in time, and one that trickles."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from stentor.core.errors import Refused
from stentor.http.pace import keep_pace


async def collect(parts: AsyncIterator[bytes]) -> bytes:
    return b"".join([part async for part in parts])


def test_what_comes_quickly_is_passed_on() -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0)
            yield b"x" * 1000

    assert asyncio.run(collect(keep_pace(parts(), 1))) == b"x" * 3000


@pytest.mark.parametrize("pause_s", [0.01, 3600.0])
def test_what_trickles_is_refused_however_regularly_it_comes(pause_s: float) -> None:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(pause_s)

    with pytest.raises(Refused, match="too slow: 0 KiB came") as refused:
        asyncio.run(collect(keep_pace(parts(), 1024, 0.2)))
    assert refused.value.param == "file"
    assert "1 KiB/s" in refused.value.message


def test_what_came_buys_time() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"x" * 10_000_000
        await asyncio.sleep(0.05)
        yield b"y"

    assert asyncio.run(collect(keep_pace(parts(), 1000, 0.0001))).endswith(b"y")
