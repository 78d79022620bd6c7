"""The table on the terminal and the file of results."""

import datetime
import json
import subprocess
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import machine, peers
from bench.figures import LATENCY, PACED, STREAM, THROUGHPUT, Figures, text_of
from bench.load import SCENARIOS
from bench.suite import PEERS, Outcome, Plan

COLUMNS = (
    ("requests/s, 32 conn.", THROUGHPUT, "requests_per_s", "{:,.0f}"),
    ("CPU-µs/request", THROUGHPUT, "cpu_us_per_request", "{:,.0f}"),
    ("p50 ms, 1 conn.", LATENCY, "p50_ms", "{:.3f}"),
    ("chunks/s, 32 streams", STREAM, "chunks_per_s", "{:,.0f}"),
    ("CPU-µs/chunk", STREAM, "cpu_us_per_chunk", "{:.1f}"),
    ("first byte ms, 32 × 50/s", PACED, "first_byte_p50_ms", "{:.2f}"),
    ("CPU-µs/chunk, 32 × 50/s", PACED, "cpu_us_per_chunk", "{:.1f}"),
)


def commit() -> tuple[str, bool]:
    """Short commit of the tree, and whether tracked files differ from it."""
    git = ["git", "-C", str(peers.ROOT)]
    short = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return short.stdout.strip() or "none", bool(changes.stdout.strip())


def versions() -> dict[str, str]:
    def first_line(command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).partition("\n")[0].strip()

    return {
        "stentor": peers.stentor_version(),
        "nginx": first_line([peers.nginx_path(), "-v"]),
        "wrk": first_line([peers.wrk_path(), "-v"]).partition(" Copyright")[0],
        "litellm": peers.litellm_version(),
    }


def document(outcome: Outcome, plan: Plan) -> dict[str, object]:
    """All of the run, as it is written to the file."""
    figures = Figures(outcome)
    short, changed = commit()
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": short,
        "tree_changed": changed,
        "machine": machine.describe(),
        "versions": versions(),
        "durability": peers.DURABILITY,
        "plan": {"rounds": plan.rounds, "seconds": plan.seconds, "warmup_s": plan.warmup_s, "only": sorted(plan.only)},
        "scenarios": [asdict(scenario) for scenario in SCENARIOS],
        "checks": [asdict(check) for check in figures.checks()],
        "summary": figures.summary(),
        "remarks": figures.remarks(),
        **asdict(outcome),
    }


def write(content: dict[str, object], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    date = str(content["at"])[:10]
    path = folder / f"{date}-{content['commit']}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def show(console: Console, outcome: Outcome, plan: Plan) -> None:
    """The tables: peers, memory and starts, targets."""
    figures = Figures(outcome)
    console.print(peer_table(figures, plan))
    if outcome.memory:
        console.print(process_table(outcome))
    console.print(check_table(figures))
    for name, text in outcome.missing.items():
        console.print(f"[red]missing: {name}[/]: {text}", markup=True, highlight=False)
    for text in outcome.failures:
        console.print(f"[red]failed[/]: {text}", highlight=False)
    for text in figures.remarks():
        console.print(f"note: {text}", highlight=False)


def peer_table(figures: Figures, plan: Plan) -> Table:
    table = Table(title=f"Server on core {machine.SERVER_CORE}, mock and load on core {machine.LOAD_CORE}")
    rounds = "1 round" if plan.rounds == 1 else f"median (min – max) of {plan.rounds} interleaved rounds"
    table.caption = f"{rounds} of {plan.seconds} s"
    table.add_column("")
    missing = figures.outcome.missing
    names = [name for name in PEERS if name in missing or figures.summary().get(name)]
    for name in names:
        table.add_column(name, justify="right")
    for title, scenario, figure, form in COLUMNS:
        if plan.wants(scenario.name):
            cells = [peer_cell(figures, name, scenario.name, figure, form) for name in names]
            table.add_row(title, *cells)
    return table


def peer_cell(figures: Figures, name: str, scenario: str, figure: str, form: str) -> str:
    values = figures.of(name, scenario, figure)
    # The bare mock has no server before it whose CPU time could be counted.
    if name == "direct" and figure.startswith("cpu"):
        return "–"
    if values is None:
        return "missing" if name in figures.outcome.missing else "–"
    return text_of(values, form)


def process_table(outcome: Outcome) -> Table:
    table = Table(title="Idle processes", caption="RSS counts shared pages in every process, PSS shares them out")
    for column in ("server", "process", "RSS MB", "PSS MB", "CPU of the server idle"):
        table.add_column(column, overflow="fold")
    for name, rows in outcome.memory.items():
        for number, row in enumerate(rows):
            idle = f"{outcome.idle_cpu_share[name]:.1%}" if not number else ""
            table.add_row(name, str(row["command"])[:60], f"{row['rss_mb']:.0f}", f"{row['pss_mb']:.0f}", idle)
    return table


def check_table(figures: Figures) -> Table:
    table = Table(title="Targets")
    for column in ("", "what", "target", "measured"):
        table.add_column(column, overflow="fold")
    marks = {True: "[green]ok[/]", False: "[red]missed[/]", None: "[yellow]–[/]"}
    for check in figures.checks():
        table.add_row(marks[check.ok], check.name, check.target, check.measured)
    return table
