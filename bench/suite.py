"""The course of a run: what is started when, measured in which order, and checked afterwards."""

import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench import cold, machine, peers
from bench.load import (
    SCENARIOS,
    STREAM,
    THROUGHPUT,
    RoundFailed,
    Sample,
    Scenario,
    ask_exactly,
    body_of,
    measure,
)
from bench.peers import Peer, PeerMissing, Upstream
from bench.process import StartFailed, hold_connections

TWO_WORKERS = "stentor-2"
ON_POSTGRES = "stentor-postgres"
PEERS = ("direct", "nginx", "litellm", "stentor", TWO_WORKERS, ON_POSTGRES)
PARTS = (*(scenario.name for scenario in SCENARIOS), "start", "cold", "memory", "split", "books")
IDLE_S = 2.0
SPLIT_CONNECTIONS = 400
FDATASYNCS = 300
EXACT_REQUESTS = 2000
COLD_STARTS = 3  # a round
EXACT_STREAMS = 64


@dataclass(frozen=True)
class Plan:
    """What to run. `only` names peers and parts; nothing named of a kind means all of it."""

    rounds: int
    seconds: int
    warmup_s: int
    only: frozenset[str] = frozenset()

    def peers(self) -> tuple[str, ...]:
        return tuple(name for name in PEERS if name in self.only) or PEERS

    def wants(self, part: str) -> bool:
        named = self.only.intersection(PARTS)
        return part in named if named else True


@dataclass
class Outcome:
    """Everything that was seen."""

    samples: list[Sample] = field(default_factory=list)
    memory: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    idle_cpu_share: dict[str, float] = field(default_factory=dict)
    start_s: dict[str, list[float]] = field(default_factory=dict)
    cold_s: list[float] = field(default_factory=list)
    split: dict[str, int] = field(default_factory=dict)
    fdatasync: dict[int, dict[str, object]] = field(default_factory=dict)
    books: list[dict[str, object]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


Report = Callable[[str], None]


def run(plan: Plan, folder: Path, say: Report) -> Outcome:
    """The whole run. Peers that can't be had are named in `missing`, rounds that went wrong in `failures`."""
    outcome = Outcome()
    starters = {name: STARTERS[name] for name in plan.peers()}
    if plan.wants("start") and "stentor" in starters:
        attempt(outcome, "start", partial(measure_starts, plan, folder, outcome, say))
    if plan.wants("cold") and "stentor" in starters:
        attempt(outcome, "cold", partial(measure_cold, plan, folder, outcome, say))
    with ExitStack() as stack:
        up = stack.enter_context(peers.upstream(folder))
        running = list(start_all(starters, up, folder, stack, outcome, say))
        if plan.wants("memory"):
            measure_idle(running, outcome, say)
        for number in range(1, plan.rounds + 1):
            outcome.fdatasync[number] = machine.fdatasync_times(folder, FDATASYNCS)
            measure_round(plan, number, running, outcome, say)
        two = next((peer for peer in running if peer.name == TWO_WORKERS), None)
        if two and plan.wants("split"):
            attempt(outcome, "split", partial(measure_split, two, outcome, say))
    for peer in running:
        attempt(outcome, "books", partial(compare_books, peer, outcome))
    if plan.wants("books"):
        for name in ("stentor", TWO_WORKERS):
            if name in starters and name not in outcome.missing:
                attempt(outcome, "books", partial(exact_books, name, folder, outcome, say))
    return outcome


STARTERS: dict[str, Callable[[Upstream, Path], AbstractContextManager[Peer]]] = {
    "direct": peers.direct,
    "nginx": peers.nginx,
    "litellm": peers.litellm,
    "stentor": lambda _up, folder: peers.stentor(folder),
    TWO_WORKERS: lambda _up, folder: peers.stentor(folder, workers=2),
    ON_POSTGRES: lambda _up, folder: peers.stentor_on_postgres(folder),
}


def attempt(outcome: Outcome, what: str, work: Callable[[], None]) -> None:
    """Does one part; a part that fails is recorded and doesn't take the others with it."""
    try:
        work()
    except PeerMissing as missing:
        outcome.missing[what] = str(missing)
    except (RoundFailed, StartFailed, OSError, sqlite3.Error) as error:
        outcome.failures.append(f"{what}: {error}")


def start_all(
    starters: dict[str, Callable[[Upstream, Path], AbstractContextManager[Peer]]],
    up: Upstream,
    folder: Path,
    stack: ExitStack,
    outcome: Outcome,
    say: Report,
) -> Iterable[Peer]:
    for name, starter in starters.items():
        say(f"starting {name}")
        try:
            yield stack.enter_context(starter(up, folder))
        except PeerMissing as missing:
            outcome.missing[name] = str(missing)
        except StartFailed as error:
            outcome.missing[name] = f"it didn't start: {error}"


def measure_starts(plan: Plan, folder: Path, outcome: Outcome, say: Report) -> None:
    """Starts on a new data directory, then again on the same."""
    for number in range(plan.rounds):
        say(f"start {number + 1} of {plan.rounds}")
        for kind in ("new", "again"):
            with peers.stentor(folder / f"start-{number}") as peer:
                outcome.start_s.setdefault(kind, []).append(peer.start_s or 0.0)


def measure_cold(plan: Plan, folder: Path, outcome: Outcome, say: Report) -> None:
    """First words of a real model that has to be started for them."""
    say("cold model")
    outcome.cold_s += cold.measure(folder, COLD_STARTS * plan.rounds)


def measure_idle(running: list[Peer], outcome: Outcome, say: Report) -> None:
    """Memory and CPU use of servers that have answered a request or two and are left alone."""
    say("idle")
    marks = {peer.name: machine.CpuMark.now(peer.pid) for peer in running}
    time.sleep(IDLE_S)
    for peer in running:
        if peer.pid:
            outcome.idle_cpu_share[peer.name] = marks[peer.name].until(machine.CpuMark.now(peer.pid))["server_share"]
            outcome.memory[peer.name] = machine.memory_of(peer.pid)


def measure_round(plan: Plan, number: int, running: list[Peer], outcome: Outcome, say: Report) -> None:
    """Every scenario on every peer; the order of the peers turns by one each round."""
    turned = running[number % max(1, len(running)) :] + running[: number % max(1, len(running))]
    for scenario in SCENARIOS:
        for peer in turned:
            if plan.wants(scenario.name) and applies(scenario, peer):
                say(f"round {number} of {plan.rounds}: {scenario.name}, {peer.name}")
                measure_one(plan, number, peer, scenario, outcome)


def applies(scenario: Scenario, peer: Peer) -> bool:
    return peer.name not in (TWO_WORKERS, ON_POSTGRES) or scenario is THROUGHPUT


def measure_one(plan: Plan, number: int, peer: Peer, scenario: Scenario, outcome: Outcome) -> None:
    def work() -> None:
        outcome.samples.append(measure(peer, scenario, number, plan.seconds, plan.warmup_s))

    attempt(outcome, f"{peer.name}, {scenario.name}, round {number}", work)


def measure_split(peer: Peer, outcome: Outcome, say: Report) -> None:
    """Opens connections one after another, and looks in whose hands they lie."""
    say("connection split")
    assert peer.pid is not None
    body = body_of(peer.whole.model, None)
    with hold_connections(peer.whole.port, SPLIT_CONNECTIONS, peers.CHAT, peer.whole.key, body) as answered:
        held = machine.connections_by_process(peer.pid, peer.whole.port)
    outcome.split = {str(pid): count for pid, count in held.items()}
    peer.probes += answered


def events_by_status(data_dir: Path) -> dict[str, int]:
    """Usage events of a stopped server's books."""
    with closing(sqlite3.connect(f"file:{data_dir / 'stentor.db'}?mode=ro", uri=True)) as books:
        rows = books.execute("SELECT status, count(*) FROM usage_events GROUP BY status ORDER BY status").fetchall()
    return {str(status): int(count) for status, count in rows}


def compare_books(peer: Peer, outcome: Outcome) -> None:
    """Between what was surely answered and what was at most asked. wrk leaves in the middle of its last answers."""
    if peer.data_dir is None:
        return
    mine = [sample for sample in outcome.samples if sample.peer == peer.name]
    answered = peer.probes + sum(sample.answered for sample in mine)
    left = sum(sample.left_midway for sample in mine)
    failed = any(text.startswith(f"{peer.name},") for text in outcome.failures)
    events = events_by_status(peer.data_dir)
    completed = events.get("completed", 0)
    outcome.books.append(
        {
            "server": peer.name,
            "run": "all rounds",
            "answered": answered,
            "left_midway_at_most": left,
            "events": events,
            "ok": answered <= completed <= answered + left and not failed,
        }
    )


def exact_books(name: str, folder: Path, outcome: Outcome, say: Report) -> None:
    """A new server, a known number of requests all read to their end: as many completed events, no other."""
    say(f"books of {name}")
    with peers.stentor(folder / "exact", workers=2 if name == TWO_WORKERS else 1) as peer:
        answered = peer.probes
        answered += ask_exactly(peer, EXACT_REQUESTS, None)
        answered += ask_exactly(peer, EXACT_STREAMS, STREAM.streaming)
    assert peer.data_dir is not None
    events = events_by_status(peer.data_dir)
    ok = events == {"completed": answered}
    outcome.books.append({"server": name, "run": "exact", "answered": answered, "events": events, "ok": ok})
