"""Starting and stopping the programs of the bench: pinned, in a session of their own, never left behind."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from bench.machine import GONE

POLL_S = 0.002
STOP_S = 20.0


class StartFailed(Exception):
    """A server didn't come up; the text carries the end of its log."""


@dataclass
class Process:
    """A started server. `log` holds its stderr, `out` its stdout."""

    pid: int
    popen: subprocess.Popen[bytes]
    started_at: float
    out: Path
    log: Path

    def fail(self, text: str) -> StartFailed:
        end = (self.log.read_text(errors="replace") + self.out.read_text(errors="replace"))[-1500:]
        return StartFailed(f"{text}\n{end}")

    def check_alive(self) -> None:
        status = self.popen.poll()
        if status is not None:
            raise self.fail(f"{self.popen.args!r} ended with status {status}")


@contextlib.contextmanager
def started(
    command: list[str], core: int, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Runs `command` pinned to `core` with `folder` for its logs; stops it and whatever it started on leaving."""
    folder.mkdir(parents=True, exist_ok=True)
    out, log = folder / "stdout", folder / "stderr"
    with out.open("wb") as stdout, log.open("wb") as stderr:
        started_at = time.perf_counter()
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=dict(os.environ if environment is None else environment),
            start_new_session=True,
            preexec_fn=partial(os.sched_setaffinity, 0, {core}),
        )
    process = Process(popen.pid, popen, started_at, out, log)
    try:
        yield process
    finally:
        stop(process)


def stop(process: Process) -> None:
    """SIGTERM, then SIGKILL to what is left of the tree that this process started."""
    tree: list[psutil.Process] = []
    with contextlib.suppress(*GONE):
        root = psutil.Process(process.pid)
        tree = [root, *root.children(recursive=True)]
    if process.popen.poll() is None:
        process.popen.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.popen.wait(STOP_S)
    _, alive = psutil.wait_procs(tree, timeout=3.0)
    for left in alive:
        with contextlib.suppress(*GONE):
            left.kill()
    process.popen.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(url_port: int, path: str, key: str, body: Mapping[str, object], timeout_s: float = 30.0) -> int:
    """Status of one POST on the loopback interface."""
    connection = http.client.HTTPConnection("127.0.0.1", url_port, timeout=timeout_s)
    try:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def wait_until_answers(
    process: Process, port: int, path: str, key: str, body: Mapping[str, object], limit_s: float
) -> int:
    """Asks until the answer is 200. Returns how many requests were answered with 200 (always 1)."""
    deadline = time.monotonic() + limit_s
    last = "no answer"
    while time.monotonic() < deadline:
        process.check_alive()
        try:
            status = post(port, path, key, body)
            if status == 200:
                return 1
            last = f"status {status}"
        except (OSError, http.client.HTTPException) as error:
            last = repr(error)
        time.sleep(0.02)
    raise process.fail(f"port {port} didn't answer within {limit_s:.0f} s: {last}")


def wait_for_line(process: Process, limit_s: float) -> tuple[str, float]:
    """First whole line of the process's stdout, and the seconds from its start until then."""
    deadline = process.started_at + limit_s
    while time.perf_counter() < deadline:
        text = process.out.read_bytes()
        line, end, _ = text.partition(b"\n")
        if end:
            return line.decode(), time.perf_counter() - process.started_at
        process.check_alive()
        time.sleep(POLL_S)
    raise process.fail(f"no line on stdout within {limit_s:.0f} s")


@contextlib.contextmanager
def hold_connections(port: int, count: int, path: str, key: str, body: Mapping[str, object]) -> Iterator[int]:
    """Opens `count` connections, asks once on each, and keeps them open; gives the number of answers with 200."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    content = json.dumps(body)
    answered = 0
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            stack.callback(connection.close)
            connection.request("POST", path, content, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise OSError(f"status {answer.status} on one of {count} connections")
            answered += 1
        yield answered
