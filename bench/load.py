"""One measured round: the load, and what it cost the server."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.machine import CpuMark
from bench.peers import ROOT, Endpoint, Peer, wrk_path

SCRIPT = Path(__file__).resolve().parent / "config" / "wrk.lua"
CONNECTIONS = 32
WHOLE = "Say in one sentence what a stentor was."


class RoundFailed(Exception):
    """A round that must not be counted: wrong status, broken connection, unfinished answer."""


@dataclass(frozen=True)
class Streaming:
    """Frames of one answer, and how many a second each stream gets."""

    frames: int
    hz: int


@dataclass(frozen=True)
class Scenario:
    """What is asked, on how many connections; `streaming` is None for whole answers."""

    name: str
    connections: int
    streaming: Streaming | None = None


THROUGHPUT = Scenario("throughput", CONNECTIONS)
LATENCY = Scenario("latency", 1)
STREAM = Scenario("stream", CONNECTIONS, Streaming(frames=256, hz=1000))
PACED = Scenario("paced", CONNECTIONS, Streaming(frames=64, hz=50))
SCENARIOS = (LATENCY, THROUGHPUT, STREAM, PACED)


@dataclass
class Sample:
    """Figures of one round of one peer. `answered` counts everything the server answered in it, warm-up included."""

    round: int
    peer: str
    scenario: str
    figures: dict[str, float]
    answered: int
    left_midway: int = 0


def body_of(model: str, streaming: Streaming | None) -> dict[str, object]:
    if streaming is None:
        return {"model": model, "messages": [{"role": "user", "content": WHOLE}], "max_tokens": 64}
    shape = f"frames={streaming.frames} hz={streaming.hz}"
    return {
        "model": model,
        "messages": [{"role": "user", "content": shape}],
        "max_tokens": streaming.frames,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def wrk(end: Endpoint, connections: int, seconds: int) -> dict[str, float]:
    """One run of wrk; anything but clean 200 answers raises."""
    environment = os.environ | {"BENCH_KEY": end.key, "BENCH_BODY": json.dumps(body_of(end.model, None))}
    command = [wrk_path(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(SCRIPT), end.url]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + 60, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise RoundFailed(f"wrk ended with status {done.returncode}: {done.stderr[-500:]}")
    totals: dict[str, float] = json.loads(lines[-1])
    wrong = {name: totals[name] for name in ("bad_status", "socket_errors", "timeouts") if totals[name]}
    if wrong or not totals["requests"]:
        raise RoundFailed(f"{totals['requests']:.0f} answers, {wrong or 'none of them whole'}")
    return totals


def streams(
    end: Endpoint, options: Mapping[str, object], body: Mapping[str, object], limit_s: float
) -> dict[str, float]:
    """One run of `bench.streams`; any problem in it raises."""
    command = [sys.executable, "-m", "bench.streams", "--url", end.url, "--key", end.key, "--body", json.dumps(body)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode:
        raise RoundFailed(f"the stream reader ended with status {done.returncode}: {done.stderr[-500:]}")
    totals = json.loads(done.stdout)
    if totals["problem_count"] or totals["unfinished"]:
        raise RoundFailed(f"{totals['problem_count']} problems {totals['problems']}, {totals['unfinished']} unfinished")
    figures: dict[str, float] = {name: value for name, value in totals.items() if isinstance(value, int | float)}
    return figures


def measure(peer: Peer, scenario: Scenario, number: int, seconds: int, warmup_s: int) -> Sample:
    """Warm-up, then the measured round."""
    if scenario.streaming is None:
        return measure_whole(peer, scenario, number, seconds, warmup_s)
    return measure_streams(peer, scenario, number, seconds, warmup_s)


def measure_whole(peer: Peer, scenario: Scenario, number: int, seconds: int, warmup_s: int) -> Sample:
    warm = wrk(peer.whole, scenario.connections, warmup_s)
    before = CpuMark.now(peer.pid)
    totals = wrk(peer.whole, scenario.connections, seconds)
    cpu = before.until(CpuMark.now(peer.pid))
    requests = totals["requests"]
    figures = cpu | {
        "requests_per_s": requests / (totals["duration_us"] / 1e6),
        "cpu_us_per_request": cpu["server_cpu_s"] * 1e6 / requests,
        "p50_ms": totals["p50_us"] / 1e3,
        "p99_ms": totals["p99_us"] / 1e3,
        "max_ms": totals["max_us"] / 1e3,
    }
    # wrk closes its connections at the end of its time, whatever is under way on them.
    answered = int(warm["requests"] + requests)
    return Sample(number, peer.name, scenario.name, figures, answered, left_midway=2 * scenario.connections)


def measure_streams(peer: Peer, scenario: Scenario, number: int, seconds: int, warmup_s: int) -> Sample:
    options = {"connections": scenario.connections, "seconds": seconds, "warmup": warmup_s}
    before = CpuMark.now(peer.pid)
    totals = streams(peer.paced, options, body_of(peer.paced.model, scenario.streaming), warmup_s + 2 * seconds + 60)
    cpu = before.until(CpuMark.now(peer.pid))
    figures = cpu | {
        "chunks_per_s": totals["chunks"] / totals["seconds"],
        "cpu_us_per_chunk": cpu["server_cpu_s"] * 1e6 / totals["all_chunks"],
        "reads_per_chunk": totals["reads"] / max(1, totals["chunks"]),
        "first_byte_p50_ms": totals["first_byte_p50_s"] * 1e3,
        "first_byte_p99_ms": totals["first_byte_p99_s"] * 1e3,
    }
    return Sample(number, peer.name, scenario.name, figures, int(totals["all_answers"]))


def ask_exactly(peer: Peer, requests: int, streaming: Streaming | None) -> int:
    """Asks `requests` times on 32 connections and reads every answer to its end; returns how many were answered."""
    end = peer.whole if streaming is None else peer.paced
    options = {"connections": CONNECTIONS, "seconds": 120, "requests": requests}
    totals = streams(end, options, body_of(end.model, streaming), 300)
    if totals["all_answers"] != requests:
        raise RoundFailed(f"{totals['all_answers']:.0f} of {requests} requests were answered")
    return requests
