"""From rounds to figures: min, median, max, ratios within a round, and the targets of the design."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

from bench.load import LATENCY, PACED, STREAM, THROUGHPUT
from bench.suite import ON_POSTGRES, TWO_WORKERS, Outcome

REQUESTS_PER_S = 4500.0
NGINX_RATIO = 0.12
LITELLM_RATIO = 25.0
ADDED_MS = 0.35
CHUNKS_PER_S = 20_000.0
RSS_MB = 120.0
START_S = 2.0
FIRST_WORD_S = 2.5
TWO_WORKER_COST = 1.15
POSTGRES_COST = 1.5
SPLIT_SHARE = 0.40
MOCK_RATIO = 3.0
LOAD_CORE_FULL = 0.97
LOADED = (THROUGHPUT.name, STREAM.name)
FOREIGN_SHARE = 0.05


class Spread(TypedDict):
    min: float
    median: float
    max: float
    rounds: int


@dataclass(frozen=True)
class Check:
    """One target. `ok` is None when the run didn't measure it."""

    name: str
    target: str
    measured: str
    ok: bool | None


def spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "rounds": len(values)}


class Figures:
    """Reads an outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def by_round(self, peer: str, scenario: str, figure: str) -> dict[int, float]:
        return {
            sample.round: sample.figures[figure]
            for sample in self.outcome.samples
            if sample.peer == peer and sample.scenario == scenario
        }

    def of(self, peer: str, scenario: str, figure: str) -> Spread | None:
        return spread(list(self.by_round(peer, scenario, figure).values()))

    def compared(
        self, peer: str, other: str, scenario: str, figure: str, how: Callable[[float, float], float]
    ) -> Spread | None:
        """`how(peer's, other's)` within each round that has both."""
        mine, theirs = self.by_round(peer, scenario, figure), self.by_round(other, scenario, figure)
        return spread([how(mine[number], theirs[number]) for number in mine if theirs.get(number)])

    def summary(self) -> dict[str, dict[str, dict[str, Spread | None]]]:
        """peer → scenario → figure → spread."""
        found: dict[str, dict[str, dict[str, Spread | None]]] = {}
        for sample in self.outcome.samples:
            figures = found.setdefault(sample.peer, {}).setdefault(sample.scenario, {})
            for figure in sample.figures:
                if figure not in figures:
                    figures[figure] = self.of(sample.peer, sample.scenario, figure)
        return found

    def checks(self) -> list[Check]:
        return [
            *self.speed_checks(),
            *self.latency_checks(),
            *self.size_checks(),
            *self.worker_checks(),
            *self.book_checks(),
            *self.load_checks(),
        ]

    def speed_checks(self) -> list[Check]:
        rate = self.of("stentor", THROUGHPUT.name, "requests_per_s")
        nginx = self.compared("stentor", "nginx", THROUGHPUT.name, "requests_per_s", ratio)
        litellm = self.compared("stentor", "litellm", THROUGHPUT.name, "requests_per_s", ratio)
        chunks = self.of("stentor", STREAM.name, "chunks_per_s")
        return [
            at_least("requests/s, 32 connections, one core, power-safe", rate, REQUESTS_PER_S, "{:,.0f}"),
            at_least("part of nginx's requests/s", nginx, NGINX_RATIO, "{:.3f}"),
            at_least("times LiteLLM's requests/s", litellm, LITELLM_RATIO, "{:.1f}"),
            at_least("SSE chunks/s relayed, 32 connections", chunks, CHUNKS_PER_S, "{:,.0f}"),
        ]

    def latency_checks(self) -> list[Check]:
        """What is added at one connection, less what one fdatasync took on the same disk in the same round."""
        mine = self.by_round("stentor", LATENCY.name, "p50_ms")
        bare = self.by_round("direct", LATENCY.name, "p50_ms")
        sync = {number: float(str(times["p50_s"])) * 1e3 for number, times in self.outcome.fdatasync.items()}
        added = spread([mine[number] - bare[number] for number in mine if number in bare])
        beyond = spread([mine[number] - bare[number] - sync[number] for number in mine if number in bare])
        text = text_of(beyond, "{:.3f}")
        if added and beyond:
            syncs = spread(list(sync.values()))
            text += f"; with it {text_of(added, '{:.3f}')}; fdatasync {text_of(syncs, '{:.3f}')}"
        ok = None if beyond is None else beyond["median"] <= ADDED_MS
        return [Check("added p50 at 1 connection beyond one fdatasync, ms", f"≤ {ADDED_MS:.3f}", text, ok)]

    def size_checks(self) -> list[Check]:
        sizes = [
            float(str(row["rss_mb"])) for name in ("stentor", TWO_WORKERS) for row in self.outcome.memory.get(name, [])
        ]
        starts = self.outcome.start_s.get("new", []) + self.outcome.start_s.get("again", [])
        largest, slowest, first = spread(sizes), spread(starts), spread(self.outcome.cold_s)
        return [
            limit_on_max("RSS of the largest idle process, MB", largest, RSS_MB, "{:.0f}"),
            limit_on_max("import + start until its line, s (slowest)", slowest, START_S, "{:.2f}"),
            limit_on_max("cold starter model, request to first word, s (slowest)", first, FIRST_WORD_S, "{:.2f}"),
        ]

    def worker_checks(self) -> list[Check]:
        cost = self.compared(TWO_WORKERS, "stentor", THROUGHPUT.name, "cpu_us_per_request", ratio)
        postgres = self.compared(ON_POSTGRES, "stentor", THROUGHPUT.name, "cpu_us_per_request", ratio)
        counts = list(self.outcome.split.values())
        total = sum(counts)
        share = min(counts) / total if len(counts) == 2 else 0.0
        text = " / ".join(f"{count / total:.0%}" for count in sorted(counts)) if total else "not measured"
        return [
            at_most("CPU-µs/request of two workers, times one worker's", cost, TWO_WORKER_COST, "{:.3f}"),
            at_most("CPU-µs/request with PostgreSQL, times SQLite's", postgres, POSTGRES_COST, "{:.3f}"),
            Check("connections of two workers", "within 40 / 60", text, share >= SPLIT_SHARE if total else None),
        ]

    def book_checks(self) -> list[Check]:
        """Every answered request is a completed usage event."""
        checks = []
        for entry in self.outcome.books:
            events = ", ".join(f"{count:,} {status}" for status, count in dict(entry["events"]).items())  # type: ignore[call-overload]
            wanted = f"{entry['answered']:,} answered"
            if entry.get("left_midway_at_most"):
                wanted += f" (+ ≤ {entry['left_midway_at_most']:,} left by wrk at its end)"
            checks.append(Check(f"books of {entry['server']}, {entry['run']}", wanted, events, bool(entry["ok"])))
        return checks or [Check("books", "one completed event an answer", "not measured", None)]

    def load_checks(self) -> list[Check]:
        """That the figures are the server's and not the mock's or the load generator's."""
        alone = self.compared("direct", "stentor", THROUGHPUT.name, "requests_per_s", ratio)
        checks = [at_least("mock without a server, times Stentor's requests/s", alone, MOCK_RATIO, "{:.1f}")]
        for scenario in (THROUGHPUT, STREAM):
            busy = self.of("stentor", scenario.name, "load_share")
            checks.append(
                at_most(
                    f"load core used by mock and load under Stentor, {scenario.name}", busy, LOAD_CORE_FULL, "{:.0%}"
                )
            )
        return checks

    def remarks(self) -> list[str]:
        """What a reader must know about how far the figures can be trusted."""
        samples = self.outcome.samples
        remarks = []
        disturbed = [s.figures["foreign_share"] for s in samples if s.figures["foreign_share"] > FOREIGN_SHARE]
        if disturbed:
            remarks.append(
                f"others used more than {FOREIGN_SHARE:.0%} of a core in {len(disturbed)} of {len(samples)} "
                f"rounds (at most {max(disturbed):.0%}): take the figures as indications"
            )
        full = {
            f"{s.peer} ({s.scenario})"
            for s in samples
            if s.peer != "direct" and s.scenario in LOADED and s.figures["load_share"] > LOAD_CORE_FULL
        }
        if full:
            remarks.append(f"the load core was full too under {', '.join(sorted(full))}: its own limit may be higher")
        return remarks


def ratio(mine: float, theirs: float) -> float:
    return mine / theirs


def text_of(values: Spread | None, form: str) -> str:
    if values is None:
        return "not measured"
    middle, low, high = (form.format(values[key]) for key in ("median", "min", "max"))
    return middle if values["rounds"] == 1 else f"{middle}  ({low} – {high})"


def at_least(name: str, values: Spread | None, limit: float, form: str) -> Check:
    ok = None if values is None else values["median"] >= limit
    return Check(name, "≥ " + form.format(limit), text_of(values, form), ok)


def at_most(name: str, values: Spread | None, limit: float, form: str) -> Check:
    ok = None if values is None else values["median"] <= limit
    return Check(name, "≤ " + form.format(limit), text_of(values, form), ok)


def limit_on_max(name: str, values: Spread | None, limit: float, form: str) -> Check:
    ok = None if values is None else values["max"] <= limit
    return Check(name, "≤ " + form.format(limit), "not measured" if values is None else form.format(values["max"]), ok)


__all__ = ["LATENCY", "PACED", "STREAM", "THROUGHPUT", "Check", "Figures", "Spread", "text_of"]
