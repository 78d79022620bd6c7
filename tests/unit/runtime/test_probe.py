"""Questions to engines that answer rubbish: what is wrong is said, in time, and nothing breaks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from stentor.runtime.probe import EngineAddress, Probe
from stentor.runtime.spec import ModelSpec

SPEC = ModelSpec(id="m", engine="command", command=("x", "${PORT}"))
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

Say = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def engine(say: Say) -> AsyncIterator[EngineAddress]:
    lines: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await say(writer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(
        lambda reader, writer: lines.append(asyncio.create_task(serve(reader, writer))), "127.0.0.1", 0
    )
    yield EngineAddress(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "t")
    server.close()
    for line in lines:
        line.cancel()
    await asyncio.gather(*lines, return_exceptions=True)


def whole(body: bytes) -> Say:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    return say


async def endless_header(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"X-Long: ")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def endless_body(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"\r\n{")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


async def half(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b'Content-Length: 1000\r\n\r\n{"choices"')


async def no_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x16\x03\x01" * 100)


RUBBISH: dict[str, Say] = {
    "nested": whole(b"[" * 200_000), "no text": whole(b'{"choices":["\xff"]}'), "empty": whole(b""),
    "a number": whole(b"7"),
    "half a text": whole(b'{"choices": [1'), "endless header": endless_header, "endless body": endless_body,
    "broken off": half, "no HTTP": no_http, "no answer": whole(b'{"choices":[]}'),
}  # fmt: skip


@pytest.mark.parametrize("say", RUBBISH.values(), ids=RUBBISH)
async def test_rubbish_is_no_answer(say: Say) -> None:
    probe = Probe()
    async with engine(say) as address:
        assert "/v1/chat/completions" in str(await probe.ask_canary(address, SPEC, 30))
        assert await probe.find_props(address) is None
        assert await probe.ask_health(address, "/health") in ("ok", "no answer")
        await probe.close()


async def test_an_answer_is_one() -> None:
    probe = Probe()
    async with engine(whole(b'{"choices":[{}]}')) as address:
        assert await probe.ask_canary(address, SPEC, 30) is None
        await probe.close()
