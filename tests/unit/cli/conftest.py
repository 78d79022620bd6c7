"""A stand-in for a running server: its lock on the data folder, and its admin socket with answers that a test sets."""

import json
import os
import socketserver
import threading
from pathlib import Path
from typing import Any

import pytest

from stentor.cli.root import run
from stentor.store.lock import LOCK_NAME, DataLock
from tests.answering import Answering


class Call:
    def __init__(self, method: str, path: str, body: Any, headers: Any) -> None:
        self.method, self.path, self.body, self.headers = method, path, body, headers


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class AdminSocket:
    """Answers by ``method path``; every call is kept."""

    def __init__(self, path: Path) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[Call] = []
        outer = self

        class Handler(Answering):
            def address_string(self) -> str:
                return "socket"

            def _play(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size)) if size else None
                outer.calls.append(Call(self.command, self.path, body, self.headers))
                answer = outer.answers.get(
                    f"{self.command} {self.path.partition('?')[0]}", (404, {"detail": "no such path"})
                )
                status, document = answer(self.path) if callable(answer) else answer
                data = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.answer(status, data, {})

            do_GET = do_POST = _play

        path.parent.mkdir(parents=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        self._server = _Server(f"/proc/self/fd/{folder}/{path.name}", Handler)
        os.close(folder)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(autouse=True)
def _clean_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("STENTOR_", "LLMSERVER_", "LLMRING_", "LLM_")):
            monkeypatch.delenv(name)


@pytest.fixture
def hold():
    """Hold data folders, as running servers do."""
    locks = []

    def take(data: Path) -> Path:
        data.mkdir(parents=True)
        locks.append(DataLock.acquire(data / LOCK_NAME, data))
        return data

    yield take
    for lock in locks:
        lock.release()


@pytest.fixture
def serve_admin(hold):
    """Hold a data folder and serve its admin socket."""
    servers = []

    def begin(data: Path) -> AdminSocket:
        servers.append(AdminSocket(hold(data) / "run" / "admin.sock"))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


@pytest.fixture
def held(hold, tmp_path):
    return hold(tmp_path / "data")


@pytest.fixture
def admin(serve_admin, tmp_path):
    return serve_admin(tmp_path / "data")


@pytest.fixture
def stentor(capsys):
    """Run a command; returns its status, what it printed, and what it said on stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(list(arguments))
        said = capsys.readouterr()
        return status, said.out, said.err

    return call
