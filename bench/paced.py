"""The frame-by-frame mock engine: every SSE frame leaves by a write of its own, as an engine sends a token at a time.

`python -m bench.paced PORT`. The request's text chooses what is sent: `frames=256 hz=1000` (hz=0: as fast as the socket
takes them). All streams of one pace share a beat, like the slots of one engine share a decode step.
"""

import asyncio
import re
import signal
import sys
import time
from typing import cast

import uvloop

from bench.mock import answer_frames, answer_json

SHAPE = re.compile(rb"frames=(\d+) hz=(\d+)")
STREAM = re.compile(rb'"stream"\s*:\s*true')
INCLUDE_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def whole(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunked(frame: str) -> bytes:
    body = frame.encode()
    return b"%x\r\n%b\r\n" % (len(body), body)


class Answers:
    """Encoded answers, made once per shape."""

    def __init__(self) -> None:
        self.streams: dict[tuple[int, bool], list[bytes]] = {}
        self.health = whole(b'{"status":"ok"}')
        self.json = whole(answer_json("chatcmpl-paced").encode())

    def stream(self, tokens: int, with_usage: bool) -> list[bytes]:
        """Writes of one answer: head and role frame, then one a frame; the last carries the end of the body."""
        known = self.streams.get((tokens, with_usage))
        if known is None:
            known = [chunked(frame) for frame in answer_frames("chatcmpl-paced", tokens, with_usage=with_usage)]
            known[0] = STREAM_HEAD + known[0]
            known[-1] += b"0\r\n\r\n"
            self.streams[tokens, with_usage] = known
        return known


class Beat:
    """Sends one frame to every stream of one pace, `hz` times a second; catches up one frame at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hz: int) -> None:
        self.loop = loop
        self.hz = hz
        self.streams: set[Connection] = set()

    def join(self, connection: "Connection") -> None:
        if not self.streams:
            self.loop.call_soon(self.tick)
        self.streams.add(connection)

    def tick(self) -> None:
        now = time.perf_counter()
        behind = False
        for connection in list(self.streams):
            due = connection.frames_due(now, self.hz)
            if due and connection.send_next():
                self.streams.discard(connection)
            behind = behind or due > 1
        if self.streams:
            if behind or not self.hz:
                self.loop.call_soon(self.tick)
            else:
                self.loop.call_later(1 / self.hz, self.tick)


class Connection(asyncio.Protocol):
    def __init__(self, answers: Answers, beats: dict[int, Beat]) -> None:
        self.answers = answers
        self.beats = beats
        self.buffer = b""
        self.writes: list[bytes] = []
        self.sent = 0
        self.started_at = 0.0
        self.beat: Beat | None = None
        self.writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports don't inherit from asyncio's

    def connection_lost(self, exc: Exception | None) -> None:
        if self.beat is not None:
            self.beat.streams.discard(self)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = LENGTH.search(self.buffer, 0, end)
        size = end + 4 + (int(length[1]) if length else 0)
        if len(self.buffer) < size:
            return
        request, self.buffer = self.buffer[:size], self.buffer[size:]
        self.answer(request)

    def answer(self, request: bytes) -> None:
        if request.startswith(b"GET"):
            self.transport.write(self.answers.health)
            return
        if not STREAM.search(request):
            self.transport.write(self.answers.json)
            return
        shape = SHAPE.search(request)
        tokens, hz = (int(shape[1]), int(shape[2])) if shape else (16, 0)
        self.writes = self.answers.stream(tokens, INCLUDE_USAGE.search(request) is not None)
        self.transport.write(self.writes[0])
        self.sent = 1
        self.started_at = time.perf_counter()
        self.beat = self.beats.setdefault(hz, Beat(asyncio.get_running_loop(), hz))
        self.beat.join(self)

    def frames_due(self, now: float, hz: int) -> int:
        if not self.writable:
            return 0
        if not hz:
            return 1
        return int((now - self.started_at) * hz) + 1 - self.sent

    def send_next(self) -> bool:
        """Writes one frame; true after the last."""
        self.transport.write(self.writes[self.sent])
        self.sent += 1
        return self.sent == len(self.writes)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopped.set)
    answers, beats = Answers(), dict[int, Beat]()
    server = await loop.create_server(lambda: Connection(answers, beats), "127.0.0.1", port, backlog=4096)
    async with server:
        await stopped.wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
