"""Who comes early: told so before the store is open, waiting while a model is loaded."""

import asyncio
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from stentor.control.workers.workers import bind, start_listening
from stentor.http.connection import Connection
from stentor.http.exchange import Exchange
from stentor.http.server import HttpServer
from stentor.http.starting import starting_up
from stentor.http.wire import Health
from tests.http.harness import raw_request, until
from tests.scripted_engine import DEFAULT_TEXT
from tests.serving import SCRIPTED, Server, scripted_model


async def asked(port: int, method: str, path: str, body: bytes = b"") -> tuple[bytes, bytes]:
    """Head and body of an answer, read to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw_request(method, path, {"Host": "localhost", "Content-Length": str(len(body))}, body))
    async with asyncio.timeout(30):
        head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head, rest


ENVELOPES = {
    "/chat": lambda error: error["detail"],
    "/v1/chat/completions": lambda error: error["error"]["message"],
    "/v1/messages": lambda error: error["error"]["message"],
    "/api/chat": lambda error: error["error"],
}


@pytest.mark.parametrize("path", ENVELOPES)
async def test_before_the_store_is_open_everybody_is_told_so(path: str) -> None:
    listening = start_listening(bind("127.0.0.1", 0, shared=False))
    port = listening.getsockname()[1]
    server = HttpServer(starting_up)
    await server.begin(listening)
    head, body = await asked(port, "POST", path, b"x" * 100_000)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in head
    assert ENVELOPES[path](json.loads(body)) == "Server is starting up"
    assert (await asked(port, "HEAD", path))[1] == b""
    head, body = await asked(port, "GET", "/health")
    assert head.startswith(b"HTTP/1.1 503 ")
    health = msgspec.json.decode(body, type=Health)
    assert (health.status, health.database, health.workers_idle) == ("unhealthy", "unavailable", 0)

    async def open_now(exchange: Exchange) -> None:
        connection = Connection(exchange, asyncio.get_running_loop())
        exchange.close_after()
        await connection.respond(200, [], b"come in")
        connection.finish()

    server.app = open_now
    assert (await asked(port, "GET", path))[1] == b"come in"
    await server.end()


def test_while_a_model_is_loaded_its_requests_wait(tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    slow = scripted_model(command=[sys.executable, SCRIPTED, "--port", "${PORT}", "--load-until", str(loaded)])
    server = Server(tmp_path, slow, API_KEY="a-key-of-this-test", DURABILITY="process")
    starting = threading.Thread(target=server.start)
    starting.start()
    try:
        until(lambda: _status(server), lambda status: status == 200, timeout_s=60)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.ask, "POST", "/chat", {"prompt": "hi"}, key="a-key-of-this-test")
            waits = b'stentor_queue_depth{model="scripted"} 1'
            until(lambda: waits in server.ask("GET", "/metrics", key="").body)
            assert not asked.done()
            assert not server.ready
            loaded.touch()
            answer = asked.result(60)
        assert (answer.status, answer.body.decode()) == (200, DEFAULT_TEXT)
    finally:
        loaded.touch()
        starting.join(60)
        server.stop()
    assert b"request_crashed" not in server.log


def _status(server: Server) -> int:
    try:
        return server.ask("GET", "/health", key="").status
    except OSError:
        return 0
