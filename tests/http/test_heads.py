"""Heads of requests that grow without end, or never come to theirs."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from stentor.control.workers.workers import bind, start_listening
from stentor.http import protocol
from stentor.http.exchange import Exchange
from stentor.http.server import HttpServer
from tests.http.harness import Gate

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


async def application(exchange: Exchange) -> None:
    """Answers after a moment."""
    await asyncio.sleep(0.3)
    exchange.respond(200, [], b"ok")


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """A server with little patience for heads."""
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    server = HttpServer(application)
    sock = start_listening(bind("127.0.0.1", 0, shared=False))
    port = sock.getsockname()[1]
    await server.begin(sock)
    yield port
    await server.end()


async def send(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Everything that comes back until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(pause_s)
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("parts", [(), (b"GET /he",), (HEAD,), (HEAD, b"X-More: yes\r\n")])
async def test_a_head_that_does_not_end_is_not_waited_for(port: int, parts: tuple[bytes, ...]):
    began = time.monotonic()
    assert await send(port, *parts) == b""
    assert time.monotonic() - began < 10


async def test_an_answer_takes_longer_than_heads_may(port: int):
    answer = await send(port, HEAD + b"Connection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nok")


async def test_a_head_that_waits_behind_a_running_request_does_not_end_that(port: int):
    answer = await send(port, HEAD + b"\r\n", HEAD)
    assert answer.count(b"HTTP/1.1 200 OK") == 1


async def test_many_bodies_are_no_head(port: int):
    post = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    last = b"GET /y HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert (await send(port, post + post + last[:20], last[20:])).count(b"HTTP/1.1 200 OK") == 3


def test_a_head_that_grows_without_end_is_refused(gate: Gate):
    connection = gate.server.connect()
    connection.connect()
    connection.sock.sendall(HEAD)
    end_s = time.monotonic() + 30
    with pytest.raises(OSError):  # noqa: PT012
        while time.monotonic() < end_s:
            connection.sock.sendall(b"X-More: " + b"y" * 8000 + b"\r\n")
            time.sleep(0.002)
    connection.close()


def test_large_heads_are_heads(gate: Gate):
    answer = gate.ask("GET", "/health", key="", x_more="y" * 30_000)
    assert answer.status == 200


CHUNKED = HEAD.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n"


async def feed(port: int, begin: bytes, more: bytes, pause_s: float) -> None:
    """Send ``more`` for as long as the server takes it. Raises TimeoutError where it never has enough."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(30):
        writer.write(begin)
        while not writer.is_closing():
            try:
                writer.write(more)
                await writer.drain()
            except ConnectionError:
                break
            await asyncio.sleep(pause_s)
    writer.close()


ENDLESS = {
    "line feeds after an answer": (HEAD + b"\r\n", b"\r\n", 0.05),
    "trailers": (CHUNKED + b"1\r\na\r\n0\r\n", b"a: b\r\n" * 2000, 0.0),
    "one trailer": (CHUNKED + b"1\r\na\r\n0\r\nX: ", b"a" * 20_000, 0.0),
    "beside a chunk's size": (CHUNKED + b"1;", b"a" * 20_000, 0.0),
    "the body of an answered request": (HEAD + b"Content-Length: 100000000\r\n\r\n", b"a", 0.05),
}


@pytest.mark.parametrize(("begin", "more", "pause_s"), ENDLESS.values(), ids=ENDLESS)
async def test_what_nobody_reads_does_not_keep_a_connection(port: int, begin: bytes, more: bytes, pause_s: float):
    await feed(port, begin, more, pause_s)


async def test_a_body_in_very_many_chunks_is_read(port: int):
    head = CHUNKED[:-2] + b"Connection: close\r\n\r\n"
    answer = await send(port, head, b"1;x=y\r\na\r\n" * 60_000 + b"0\r\na: trailer\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
