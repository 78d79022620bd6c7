"""A connection to an engine that is used again: only where the next answer can be heard on it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from stentor.egress.engines import BUFFER_HIGH_BYTES, EngineClient, EngineSettings, EngineUnreachable

LARGE = BUFFER_HIGH_BYTES + 1


class Engine:
    """Its every answer comes in one piece that is more than a client reads ahead."""

    def __init__(self) -> None:
        self.url = ""
        self.lines: list[asyncio.Task[None]] = []

    def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lines.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {LARGE}\r\n\r\n".encode()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                writer.write(head + b"x" * LARGE)
        writer.close()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    server = await asyncio.start_server(made.greet, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions"
    yield made
    server.close()
    await asyncio.wait_for(asyncio.gather(*made.lines), 20)


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[EngineClient]:
    made = EngineClient(EngineSettings(stall_s=60.0))
    yield made
    await made.close()


async def read_whole(client: EngineClient, url: str) -> int:
    answer = await client.post_json(url, "t", b"{}")
    size = 0
    while chunk := await answer.read():
        size += len(chunk)
    answer.release()
    return size


async def test_an_answer_that_nobody_took_in_does_not_hold_up_the_next(client: EngineClient, engine: Engine) -> None:
    for _ in range(5):
        answer = await client.post_json(engine.url, "t", b"{}")
        async with asyncio.timeout(30):
            while not answer._line.at_end and not answer._line.paused:
                await asyncio.sleep(0.01)
        answer.release()
        async with asyncio.timeout(30):
            assert await read_whole(client, engine.url) == LARGE


async def test_a_line_serves_one_answer_after_the_other(client: EngineClient, engine: Engine) -> None:
    assert [await read_whole(client, engine.url) for _ in range(4)] == [LARGE] * 4
    assert len(engine.lines) == 1


ENDLESS = {
    "a header": (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 65536),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-One: 1\r\n" * 6000),
    "a status line": (b"HTTP/1.1 200 ", b"K" * 65536),
}


@pytest.mark.parametrize(("begin", "more"), ENDLESS.values(), ids=ENDLESS)
async def test_an_answer_whose_head_has_no_end_is_broken_off(begin: bytes, more: bytes) -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(begin)
            while sent < 64 * 1024 * 1024:
                writer.write(more)
                await writer.drain()
                sent += len(more)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = EngineClient(EngineSettings(stall_s=60.0))
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions"
    async with asyncio.timeout(60):
        with pytest.raises(EngineUnreachable, match=r"head|HTTP"):
            await client.post_json(url, "t", b"{}")
    await client.close()
    server.close()
    assert sent < 32 * 1024 * 1024
