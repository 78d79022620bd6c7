"""A real Stentor in a process of its own, for tests that speak to it as its users do."""

import contextlib
import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.keeper import keep

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60.0
SCRIPTED = str(ROOT / "tests" / "scripted_engine.py")


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_PORTS_FIRST, _PORTS_EACH, _PORTS_REGIONS = 10_000, 1_000, 22
_given_ports = 0
_held_ports: set[int] = set()  # where something may yet be started


@functools.cache
def _take_region() -> tuple[int, socket.socket]:
    """The first port of a region that no other worker of pytest uses, and what shows that to them while it lives."""
    sign, own = socket.socket(socket.AF_UNIX), os.getpid() % _PORTS_REGIONS
    for number in range(_PORTS_REGIONS):
        region = (own + number) % _PORTS_REGIONS
        with contextlib.suppress(OSError):
            sign.bind(f"\0stentor-tests-{region}")  # a name without a file, free again when the process ends
            return _PORTS_FIRST + region * _PORTS_EACH, sign
    return _PORTS_FIRST + own * _PORTS_EACH, sign


def free_ports(count: int, holder: object = None) -> int:
    """The first of ``count`` ports in a row that were free a moment ago, away from the ephemeral range.

    What was given is not given again soon, and never while its ``holder`` lives: engines take their ports later.
    """
    global _given_ports
    region, _ = _take_region()
    for _ in range(2 * _PORTS_EACH):
        offset = _given_ports % _PORTS_EACH
        if offset + count > _PORTS_EACH:
            _given_ports += _PORTS_EACH - offset
            continue
        first = region + offset
        if not _held_ports.isdisjoint(range(first, first + count)):
            _given_ports += 1
            continue
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                _given_ports += 1
                continue
            _given_ports += count
            if holder is not None:
                _held_ports.update(range(first, first + count))
                weakref.finalize(holder, _held_ports.difference_update, range(first, first + count))
            return first
    raise RuntimeError("no free ports")


def model_table(**fields: object) -> str:
    """A ``[[models]]`` table."""
    return "[[models]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())


def scripted_model(model: str = "scripted", **fields: Any) -> str:
    """A ``[[models]]`` table with the scripted engine."""
    lines = {
        "id": model,
        "engine": "command",
        "command": [sys.executable, SCRIPTED, "--port", "${PORT}"],
        "parallel": 64,
        "ctx": 8192,
        "preload": True,
        **fields,
    }
    return model_table(**lines)


class Answer:
    """One HTTP answer, read to its end."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The ``data:`` payloads of a stream, decoded; ``[DONE]`` as that text."""
        datas = [line[5:].strip() for line in self.body.decode().split("\n") if line.startswith("data:")]
        return [data if data == "[DONE]" else json.loads(data) for data in datas]


class Connection(http.client.HTTPConnection):
    """One to a server that can end what a test has left open."""

    def __init__(self, port: int, timeout_s: float, source: str, opened: "weakref.WeakSet[socket.socket]") -> None:
        super().__init__("127.0.0.1", port, timeout=timeout_s, source_address=(source, 0) if source else None)
        self._opened = opened

    def connect(self) -> None:
        super().connect()
        self._opened.add(self.sock)


class Server:
    """``stentor up --json`` on its own data folder and ports. Use it as a context manager."""

    def __init__(self, folder: Path, config: str, *arguments: str, slots: int = 8, **settings: str) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.config = folder / "stentor.toml"
        self.config.write_text(config)
        # Not an ephemeral one: until the server is up, somebody's connection might take it.
        self.port = free_ports(1 + slots, self)
        self.slots = slots
        self.slot_port = self.port + 1
        self.arguments = arguments
        self.settings = settings
        self.before: tuple[str, ...] = ()  # a command line that runs the server's
        self.program: tuple[str, ...] = ("-m", "stentor")
        self.ready: dict[str, Any] = {}
        self.key = ""
        self.password = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.log = b""
        self._reader: threading.Thread | None = None
        self._opened: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the server and of commands that are to find it."""
        own = {name: text for name, text in os.environ.items() if not name.startswith(("STENTOR_", "LLM"))}
        return {
            **own,
            "STENTOR_DATA_DIR": str(self.data_dir),
            "STENTOR_PORT": str(self.port),
            "STENTOR_SLOT_FIRST_PORT": str(self.slot_port),
            "STENTOR_SLOT_COUNT": str(self.slots),
            "STENTOR_LOG_FORMAT": "json",
            **{f"STENTOR_{name}": text for name, text in self.settings.items()},
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until it says that it is ready."""
        words = ["up", "--json", "--config", str(self.config), *self.arguments]
        self.process = keep(
            subprocess.Popen(
                [*self.before, sys.executable, *self.program, *words],
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        )
        self._reader = threading.Thread(target=self._read_log, args=(self.process,), daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        killer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        killer.start()
        line = self.process.stdout.readline()
        killer.cancel()
        if not line:
            self.process.wait()
            self._reader.join(5)
            raise AssertionError(f"the server did not start:\n{self.log.decode(errors='replace')}")
        self.ready = json.loads(line)
        self.key = self.ready["api_key"] or self.key
        self.password = self.ready["admin_password"] or self.password

    def _read_log(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.log += line
        process.stderr.close()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def children(self) -> list[psutil.Process]:
        """Every process below the server."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def stop(self, timeout_s: float = 45.0) -> int:
        """SIGTERM, and wait; the exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self._close()

    def kill(self) -> None:
        """SIGKILL, the server alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> int:
        assert self.process is not None
        status = self.process.returncode
        if self._reader is not None:
            self._reader.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None
        return status

    # -- speaking to it

    def connect(self, timeout_s: float = 60.0, source: str = "") -> http.client.HTTPConnection:
        """A fresh connection; from ``source``, an address of this machine, if there is one."""
        return Connection(self.port, timeout_s, source, self._opened)

    def hang_up(self) -> None:
        """End what is still open of the connections made here: a test that failed left its streams running."""
        for opened in list(self._opened):
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        self._opened.clear()

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        wait_s: float = 60.0,
        source: str = "",
        **headers: str,
    ) -> Answer:
        """One request; ``body`` bytes go as they are, anything else as JSON. ``key`` "" sends none."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        token = self.key if key is None else key
        if token:
            sent["Authorization"] = f"Bearer {token}"
        connection = self.connect(wait_s, source)
        try:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return Answer(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def chat(self, text: str, **fields: Any) -> Answer:
        """One chat request with one user message."""
        body = {"model": self.ready["model"], "messages": [{"role": "user", "content": text}], **fields}
        return self.ask("POST", "/v1/chat/completions", body)

    def cli(self, *words: str, status: int = 0) -> str:
        """A ``stentor`` command beside the server; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "stentor", *words],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, f"status {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        return done.stdout.decode() if status == 0 else done.stderr.decode()

    def usage(self, limit: int = 1000) -> list[dict[str, Any]]:
        """Usage events, newest first."""
        rows: list[dict[str, Any]] = json.loads(self.cli("usage", "--json", "--limit", str(limit)))
        return rows

    def event(self, request_id: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """The one event of a request; waits for it."""
        end = time.monotonic() + timeout_s
        while True:
            events = [row for row in self.usage() if row["request_id"] == request_id]
            if events or time.monotonic() > end:
                assert len(events) == 1, f"{len(events)} events of {request_id}"
                return events[0]
            time.sleep(0.1)


@contextlib.contextmanager
def gone_within(seconds: float, processes: list[psutil.Process]) -> Iterator[None]:
    """Afterwards none of ``processes`` may be alive, at most ``seconds`` later."""
    yield
    end = time.monotonic() + seconds
    while left := [process for process in processes if lives(process)]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def lives(process: psutil.Process) -> bool:
    """Whether it hasn't ended; one that nobody has waited for has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
