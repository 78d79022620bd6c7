"""A load generator that reads every frame: chunks a second, time to first byte, exact numbers of answered requests.

`python -m bench.streams --url … --key … --body …` prints one JSON object. Each connection asks again as soon as its
answer is whole. With `--requests N` exactly N requests are asked and all are read to their end; else it runs for
`--seconds`.
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from functools import partial
from typing import cast
from urllib.parse import urlsplit

import uvloop

DATA = b"data: "
END_OF_CHUNKS = b"0\r\n\r\n"


@dataclass
class Tally:
    """What all connections of one run saw. Times in seconds."""

    request: bytes
    left: int | None
    asking: bool = True
    chunks: int = 0
    reads: int = 0
    answers: int = 0
    warmup_chunks: int = 0
    warmup_answers: int = 0
    first_byte_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def take(self) -> bool:
        """True if another request is to be asked."""
        if self.left is None:
            return self.asking
        self.left -= 1
        return self.left >= 0

    def end_warmup(self) -> None:
        self.warmup_chunks, self.warmup_answers = self.chunks, self.answers
        self.chunks = self.reads = self.answers = 0
        self.first_byte_s.clear()


class Client(asyncio.Protocol):
    def __init__(self, tally: Tally, done: asyncio.Future[None]) -> None:
        self.tally = tally
        self.done = done
        self.rest = b""
        self.head_seen = False
        self.first_chunk_seen = False
        self.length_left: int | None = None
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.problem(f"connection closed inside an answer: {exc}")

    def problem(self, text: str) -> None:
        self.tally.problems.append(text[:400])
        self.finish()

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self.transport.close()

    def ask(self) -> None:
        if not self.tally.take():
            self.finish()
            return
        self.head_seen = self.first_chunk_seen = False
        self.length_left = None
        self.rest = self.tail = b""
        self.asked_at = time.perf_counter()
        self.transport.write(self.tally.request)

    def data_received(self, data: bytes) -> None:
        self.tally.reads += 1
        if not self.head_seen:
            data = self.rest + data
            head, mark, data = data.partition(b"\r\n\r\n")
            if not mark:
                self.rest = head
                return
            self.read_head(head)
        if data:
            self.read_body(data)

    def read_head(self, head: bytes) -> None:
        self.head_seen = True
        self.rest = b""
        if not head.startswith(b"HTTP/1.1 200"):
            self.problem(head[:200].decode("latin-1"))
            return
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                self.length_left = int(line.partition(b":")[2])

    def read_body(self, data: bytes) -> None:
        if not self.first_chunk_seen:
            self.first_chunk_seen = True
            self.tally.first_byte_s.append(time.perf_counter() - self.asked_at)
        if self.length_left is not None:
            self.length_left -= len(data)
            if not self.length_left:
                self.answered()
            return
        # A marker may be cut by a read: what follows the last line break is looked at again with the next read.
        data = self.rest + data
        whole, _, self.rest = data.rpartition(b"\n")
        self.tally.chunks += whole.count(DATA)
        self.tail = (self.tail + data)[-32:]
        if data.endswith(END_OF_CHUNKS):
            if b"[DONE]" not in self.tail:
                self.problem("stream ended without [DONE]")
                return
            self.answered()

    def answered(self) -> None:
        self.tally.answers += 1
        self.ask()


def percentile(values: list[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


async def run(url: str, tally: Tally, connections: int, warmup_s: float, seconds: float) -> dict[str, object]:
    """Runs the connections and returns the totals of the measured part."""
    loop = asyncio.get_running_loop()
    address = urlsplit(url)
    ends = [loop.create_future() for _ in range(connections)]
    for end in ends:
        await loop.create_connection(partial(Client, tally, end), str(address.hostname), int(address.port or 80))
    started_at = time.perf_counter()
    if tally.left is None:
        await asyncio.sleep(warmup_s)
        tally.end_warmup()
        started_at = time.perf_counter()
        await asyncio.wait(ends, timeout=seconds)
        tally.asking = False
    else:
        await asyncio.wait(ends, timeout=seconds)
    elapsed_s = time.perf_counter() - started_at
    totals = totals_of(tally, elapsed_s)
    # The rest is read to its end, uncounted, so that the server sees no client leave.
    await asyncio.wait(ends, timeout=seconds + 10)
    totals["unfinished"] = sum(not end.done() for end in ends)
    totals["all_answers"] = tally.warmup_answers + tally.answers
    totals["all_chunks"] = tally.warmup_chunks + tally.chunks
    return totals


def totals_of(tally: Tally, elapsed_s: float) -> dict[str, object]:
    return {
        "seconds": elapsed_s,
        "chunks": tally.chunks,
        "reads": tally.reads,
        "answers": tally.answers,
        "first_byte_p50_s": percentile(tally.first_byte_s, 0.5),
        "first_byte_p99_s": percentile(tally.first_byte_s, 0.99),
        "problems": tally.problems[:5],
        "problem_count": len(tally.problems),
    }


def request_bytes(url: str, key: str, body: str) -> bytes:
    address = urlsplit(url)
    content = body.encode()
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def main() -> None:
    parser = argparse.ArgumentParser(description="streaming load generator")
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--body", required=True)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    tally = Tally(request_bytes(options.url, options.key, options.body), options.requests)
    totals = uvloop.run(run(options.url, tally, options.connections, options.warmup, options.seconds))
    print(json.dumps(totals))


if __name__ == "__main__":
    main()
