"""`python -m bench`: the whole comparison. See bench/README.md."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from bench import machine, peers, report, suite
from bench.figures import Figures
from bench.process import StartFailed

RESULTS = peers.HERE / "results"
WORK = peers.ROOT / "build" / "bench"


def read_plan(arguments: argparse.Namespace) -> suite.Plan:
    only = frozenset(arguments.only or ())
    if arguments.quick:
        return suite.Plan(rounds=arguments.rounds or 1, seconds=2, warmup_s=1, only=only)
    return suite.Plan(rounds=arguments.rounds or 3, seconds=5, warmup_s=2, only=only)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures Stentor, nginx and LiteLLM.")
    parser.add_argument("--quick", action="store_true", help="one short round, for development")
    parser.add_argument("--rounds", type=int, help="measured rounds (3; with --quick 1)")
    names = (*suite.PEERS, *suite.PARTS)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"peers and parts: {', '.join(names)}")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of tables")
    parser.add_argument("--no-file", action="store_true", help="don't write bench/results")
    return parser.parse_args()


def check_machine() -> str | None:
    if not sys.platform.startswith("linux"):
        return "The bench needs Linux: it pins processes and reads /proc."
    if not {machine.SERVER_CORE, machine.LOAD_CORE} <= os.sched_getaffinity(0):
        return f"The bench needs the cores {machine.SERVER_CORE} and {machine.LOAD_CORE}."
    return None


def end(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


def main() -> int:
    arguments = parse()
    problem = check_machine()
    if problem:
        print(problem, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, end)
    plan, progress = read_plan(arguments), Console(stderr=True)
    WORK.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=WORK))
    before = os.sched_getaffinity(0)
    try:
        peers.wrk_path()
        peers.nginx_path()
        os.sched_setaffinity(0, {machine.LOAD_CORE})
        with progress.status("bench") as status:
            outcome = suite.run(plan, folder, lambda text: status.update(text))
    except (peers.PeerMissing, StartFailed) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        os.sched_setaffinity(0, before)
        shutil.rmtree(folder, ignore_errors=True)
    return finish(arguments, outcome, plan)


def finish(arguments: argparse.Namespace, outcome: suite.Outcome, plan: suite.Plan) -> int:
    """Shows and writes the results; 0 if nothing failed and every measured target is met."""
    content = report.document(outcome, plan)
    if arguments.json:
        print(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        report.show(Console(), outcome, plan)
    if not arguments.no_file:
        path = report.write(content, RESULTS)
        print(f"written: {path.relative_to(peers.ROOT)}", file=sys.stderr)
    missed = any(check.ok is False for check in Figures(outcome).checks())
    return 1 if missed or outcome.failures or outcome.missing else 0


if __name__ == "__main__":
    sys.exit(main())
