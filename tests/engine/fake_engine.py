"""A scripted engine for tests: a small HTTP server that misbehaves exactly as told.

    python fake_engine.py --port 4801 [--start-delay 1] [--health-status 503] [--hang start|health|canary] …

Every request whose body holds ``max_tokens: 1`` counts as a canary; the others are work. ``--once FILE`` makes the
fault happen only until FILE exists (the fault creates it), so that a restarted engine is healthy.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

GRANDCHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
ANSWER = {"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}}]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=int(os.environ.get("FAKE_PORT", "0")))
    parser.add_argument("--start-delay", type=float, default=0.0)
    parser.add_argument("--talk", action="store_true", help="write a line every 0.1 s while starting")
    parser.add_argument("--hang", choices=("start", "health", "canary", "work"))
    parser.add_argument("--hang-canary-after", type=int, default=-1, help="canaries answered before they hang")
    parser.add_argument("--canary-status", type=int, default=200)
    parser.add_argument("--rubbish", action="store_true", help="answer canaries with something that is no JSON")
    parser.add_argument("--die", type=int, default=-1, help="exit with this status at once")
    parser.add_argument("--die-after", type=int, default=-1, help="exit with status 9 after so many work requests")
    parser.add_argument("--work-delay", type=float, default=0.0)
    parser.add_argument("--stop-delay", type=float, default=0.0, help="seconds from SIGTERM to the end")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--grandchild", action="store_true", help="start a child of its own that outlives it")
    parser.add_argument("--once", type=Path)
    parser.add_argument("--note", type=Path, help="append a line per start, for counting")
    parser.add_argument("--dump-env", type=Path)
    return parser.parse_args()


class Fake:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.faulty = options.once is None or not options.once.exists()
        self.canaries = 0
        self.work = 0

    def spend_fault(self) -> None:
        if self.options.once is not None:
            self.options.once.touch()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length:")), 0
            )
            body = await reader.readexactly(length)
            status, answer = await (self.health() if "/health" in head.split(" ")[1] else self.completion(body))
            writer.write(
                f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + answer
            )
            await writer.drain()
        writer.close()

    async def health(self) -> tuple[int, bytes]:
        if self.options.hang == "health" and self.faulty:
            await asyncio.sleep(3600)
        return 200, b'{"status":"ok"}'

    async def completion(self, body: bytes) -> tuple[int, bytes]:
        if json.loads(body or b"{}").get("max_tokens") == 1:
            return await self.canary()
        self.work += 1
        if self.work > self.options.die_after >= 0 and self.faulty:
            self.spend_fault()
            os._exit(9)
        if self.options.hang == "work":
            await asyncio.sleep(3600)
        await asyncio.sleep(self.options.work_delay)
        return 200, json.dumps(ANSWER).encode()

    async def canary(self) -> tuple[int, bytes]:
        self.canaries += 1
        hangs = self.options.hang == "canary" or self.canaries > self.options.hang_canary_after >= 0
        if hangs and self.faulty:
            self.spend_fault()
            await asyncio.sleep(3600)
        if self.options.rubbish and self.faulty:
            return 200, b"<html>hello</html>"
        if self.options.canary_status != 200 and self.faulty:
            return self.options.canary_status, b'{"error":{"message":"CUDA out of memory"}}'
        return 200, json.dumps(ANSWER).encode()


async def start_slowly(options: argparse.Namespace, faulty: bool) -> None:
    if options.hang == "start" and faulty:
        await asyncio.sleep(3600)
    left = options.start_delay
    while left > 0:
        if options.talk:
            print(f"loading, {left:.1f} s left", flush=True)
        step = min(left, 0.1)
        await asyncio.sleep(step)
        left -= step


async def main() -> None:
    options = parse()
    if options.note is not None:
        with options.note.open("a") as file:
            file.write(f"{os.getpid()}\n")
    if options.dump_env is not None:
        options.dump_env.write_text(json.dumps(dict(os.environ)))
    fake = Fake(options)
    print("fake engine starts", file=sys.stderr, flush=True)
    if options.grandchild:
        subprocess.Popen([sys.executable, "-c", GRANDCHILD], stdin=subprocess.DEVNULL)
    if options.die >= 0 and fake.faulty:
        fake.spend_fault()
        print("error: told to die", flush=True)
        os._exit(options.die)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        loop.add_signal_handler(signal.SIGTERM, ended.set)
    await start_slowly(options, fake.faulty)
    await asyncio.start_server(fake.serve, "127.0.0.1", options.port)
    print(f"fake engine serves at {options.port}", flush=True)
    await ended.wait()
    await asyncio.sleep(options.stop_delay)
    print("fake engine ends", flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
