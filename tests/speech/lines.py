"""Engines of their own for tests, and the WebSockets that they talk over."""

import asyncio
import contextlib
import http.client
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy

from stentor.engines.hearing.sound import RATE
from tests.http.harness import until
from tests.keeper import keep
from tests.serving import free_ports
from tests.speech import clips

FRAME_S = 0.1
TOKEN = "t" * 32


def spoken(text: str, before_s: float = 0.3, after_s: float = 0.6) -> Any:
    """A sentence as 16 kHz samples, with some silence around it."""
    sound = clips.samples_of(clips.speak(text)).astype(numpy.float32)
    at = numpy.arange(int(len(sound) / clips.SPOKEN_RATE * RATE)) * (clips.SPOKEN_RATE / RATE)
    whole = numpy.interp(at, numpy.arange(len(sound)), sound).astype("<i2")
    return numpy.concatenate([quiet(before_s), whole, quiet(after_s)])


def quiet(seconds: float) -> Any:
    """Samples of nothing."""
    return numpy.zeros(int(seconds * RATE), "<i2")


def pcm(text: str, before_s: float = 0.3, after_s: float = 0.6) -> bytes:
    """A sentence as 16 kHz s16le, with some silence around it."""
    return bytes(spoken(text, before_s, after_s).tobytes())


class Line:
    """One connection to an engine."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.partials: list[Any] = []

    async def say(self, **fields: Any) -> None:
        await self.socket.send_str(json.dumps(fields))

    async def speak(self, sound: bytes, *, pace: float = 0.0) -> None:
        """Send sound in frames; ``pace`` 1: as fast as it is spoken."""
        step = int(FRAME_S * RATE) * 2
        began = time.monotonic()
        for number, at in enumerate(range(0, len(sound), step)):
            await self.socket.send_bytes(sound[at : at + step])
            await asyncio.sleep(max(0.0, began + pace * FRAME_S * (number + 1) - time.monotonic()))

    async def next(self) -> Any:
        """What is said next."""
        return await self.socket.receive_json(timeout=60)

    async def final(self) -> Any:
        """What is said until the final text."""
        while True:
            event = await self.next()
            if event["event"] != "partial":
                return event
            self.partials.append(event)

    async def end(self) -> aiohttp.WSMessage:
        """How the connection ends."""
        while (message := await self.socket.receive(timeout=60)).type is aiohttp.WSMsgType.TEXT:
            pass
        return message


@contextlib.contextmanager
def running(kind: str, model: Path, **more: Any) -> Iterator[str]:
    """A running engine; its address."""
    port = free_ports(1)
    config = {"model_path": str(model), "alias": kind, "port": port, "token": TOKEN, "threads": 2, "places": 1, **more}
    command = [sys.executable, "-m", f"stentor.engines.{kind}"]
    with keep(subprocess.Popen(command, stdin=subprocess.PIPE)) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(config).encode() + b"\n")
        process.stdin.close()
        try:
            until(lambda: process.poll() is not None or _is_up(port), timeout_s=60)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
    assert process.returncode == 0


def _is_up(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextlib.asynccontextmanager
async def line_to(url: str, path: str = "/v1/listen", token: str = TOKEN) -> AsyncIterator[Line]:
    """A connection to an engine."""
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.ws_connect(url + path, headers=headers) as socket:
        yield Line(socket)
