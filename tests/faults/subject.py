"""The server under attack: in surroundings of its own, with nothing allowed to stay behind."""

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.serving import Server, scripted_model

RECORDING = str(Path(__file__).with_name("recording_engine.py"))
SLOTS = 4
PATIENT_S = 60.0  # how long a busy machine may need for what takes a moment


def recording_model(finished: Path, **fields: Any) -> str:
    """A ``[[models]]`` table with the engine that records what it finished."""
    return scripted_model(
        command=[sys.executable, RECORDING, "--finished", str(finished), "--port", "${PORT}"], **fields
    )


class Surroundings:
    """A home, a temporary folder and ports for everything that a test starts; afterwards all must be as before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.temporary = folder / "tmp"
        self.ports: set[int] = set()
        for made in (self.home, self.temporary):
            made.mkdir()

    @property
    def environ(self) -> dict[str, str]:
        return {"HOME": str(self.home), "TMPDIR": str(self.temporary)}

    def processes(self) -> list[psutil.Process]:
        """Every live process that works in the folder, or was started with it in its environment or arguments."""
        found = []
        mark = str(self.folder)
        for process in psutil.process_iter():
            if process.pid == os.getpid():
                continue
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                words = [process.cwd(), *process.cmdline(), *process.environ().values()]
                if any(mark in word for word in words):
                    found.append(process)
        return found

    def check_empty(self) -> None:
        """Raises AssertionError for a process, port or file that was left behind."""
        left = wait_for(lambda: not self.processes(), PATIENT_S) or self.processes()
        assert left is True, f"left running: {left}"
        assert wait_for(lambda: not self.busy_ports(), PATIENT_S), f"still taken: {self.busy_ports()}"
        files = [str(path) for made in (self.home, self.temporary) for path in made.rglob("*")]
        assert files == [], f"files outside the data folder: {files[:5]}"

    def busy_ports(self) -> list[int]:
        return [port for port in sorted(self.ports) if not is_free(port)]


def is_free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_for(done: Callable[[], Any], timeout_s: float = PATIENT_S, pause_s: float = 0.05) -> Any:
    """What ``done`` returns once it is true, or its last false value."""
    end = time.monotonic() + timeout_s
    while not (value := done()) and time.monotonic() < end:
        time.sleep(pause_s)
    return value


class Subject(Server):
    """``stentor up --json`` in given surroundings."""

    def __init__(self, place: Surroundings, config: str, *arguments: str, **settings: str) -> None:
        super().__init__(place.folder, config, *arguments, slots=SLOTS, **settings)
        self.place = place
        place.ports |= {self.port, *range(self.slot_port, self.slot_port + SLOTS)}

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, **self.place.environ}

    # -- its parts

    def workers(self) -> list[psutil.Process]:
        """Gateway workers that live."""
        return [child for child in self.children() if "stentor.app.worker" in _words(child)]

    def engines(self) -> list[psutil.Process]:
        """Engine processes that live, loading ones included."""
        return [child for child in self.children() if "stentor.app.worker" not in _words(child) and child.is_running()]

    def kill_group(self, number: int) -> None:
        """A signal for the server's whole process group, as Ctrl-C sends it."""
        os.killpg(self.pid, number)

    def wait_ended(self, timeout_s: float = PATIENT_S) -> int:
        """Wait for the end by itself; the exit status."""
        assert self.process is not None
        self.process.wait(timeout_s)
        return self._close()

    # -- what it says

    def admin(self, path: str, **query: Any) -> Any:
        """``GET /admin/api/…`` with the first key, which must be an admin key."""
        words = "&".join(f"{name}={value}" for name, value in query.items() if value is not None)
        answer = self.ask("GET", f"/admin/api{path}?{words}", key=self.key)
        assert answer.status == 200, answer.body
        return answer.json()

    def rows(self, path: str) -> list[dict[str, Any]]:
        """All rows of a listing."""
        rows: list[dict[str, Any]] = []
        after = None
        while True:
            page = self.admin(path, limit=1000, after=after)
            rows += page["data"]
            after = page["next"]
            if after is None:
                return rows

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = self.ask("GET", "/metrics").body.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))

    def engine_cards(self) -> list[dict[str, Any]]:
        """The engine processes as the server sees them."""
        rows: list[dict[str, Any]] = self.admin("/slots")["data"]
        return rows

    def wait_whole(self, instances: int, workers: int = 0, timeout_s: float = PATIENT_S) -> None:
        """Until all instances are ready and nothing runs; raises AssertionError when that doesn't come true."""

        def whole() -> bool:
            try:
                cards = self.engine_cards()
            except (OSError, AssertionError):
                return False
            ready = [card for card in cards if card["state"] == "ready" and card["running"] == 0]
            return len(ready) == instances and len(self.workers()) == workers

        assert wait_for(whole, timeout_s), f"not whole: {self.engine_cards()}, workers {self.workers()}"


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


class Ended:
    """How a command ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"status {self.status}\n{self.out}\n{self.err}"

    @property
    def complaint(self) -> str:
        """The one line that says what is wrong; raises AssertionError if there isn't exactly one."""
        lines = [line for line in self.err.splitlines() if line.startswith("stentor: ")]
        assert len(lines) == 1, self
        assert "Traceback" not in self.err, self
        return lines[0].removeprefix("stentor: ")


# Runs the rest of the command line as somebody for whom the rights of files count, as they don't for root.
MORTAL = (
    sys.executable,
    "-c",
    "import ctypes, os, sys\n"
    "drop = ctypes.CDLL(None).prctl\n"
    "[drop(24, capability, 0, 0, 0) for capability in (1, 2, 3)]\n"  # PR_CAPBSET_DROP: the three that ignore rights
    "os.execv(sys.argv[1], sys.argv[1:])",
)


def limited(size_bytes: int) -> tuple[str, ...]:
    """Runs the rest of the command line where no file can grow beyond a size: a full disk that needs no rights."""
    text = (
        "import os, resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size_bytes}, resource.RLIM_INFINITY))\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return (sys.executable, "-c", text)


def run_stentor(
    place: Surroundings,
    *words: str,
    environ: dict[str, str] | None = None,
    before: tuple[str, ...] = (),
    timeout_s: float = 60.0,
) -> Ended:
    """A ``stentor`` command to its end, run by the command line ``before``."""
    own = {name: text for name, text in os.environ.items() if not name.startswith(("STENTOR_", "LLM"))}
    done = subprocess.run(
        [*before, sys.executable, "-m", "stentor", *words],
        cwd=place.folder,
        env={**own, "STENTOR_DATA_DIR": str(place.folder / "data"), **place.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


def fail_start(subject: Subject, *before: str, **more: str) -> str:
    """``stentor up --json`` where it can't start: it ends with status 1 and one line on stderr, which is returned."""
    words = ["up", "--json", "--config", str(subject.config), *subject.arguments]
    ended = run_stentor(subject.place, *words, environ={**subject.environ, **more}, before=before)
    assert ended.status == 1, ended
    assert ended.out == "", ended
    print(ended.complaint)
    return ended.complaint


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """The process stands still meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def events_on_disk(subject: Subject) -> dict[str, dict[str, Any]]:
    """Usage events by request, read from the database of a server that has ended."""
    raw = sqlite3.connect(f"file:{subject.data_dir / 'stentor.db'}?mode=ro", uri=True)
    raw.row_factory = sqlite3.Row
    try:
        return {row["request_id"]: dict(row) for row in raw.execute("SELECT * FROM usage_events ORDER BY id")}
    finally:
        raw.close()
