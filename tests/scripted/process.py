"""The engine as a process of its own, and the routes by which a test steers it."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.keeper import keep
from tests.scripted.script import Json

PROGRAM = Path(__file__).parents[1] / "scripted_engine.py"


class ScriptedEngine:
    """A scripted engine on a port of 127.0.0.1, as a test looks at it and steers it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request on a connection of its own; the decoded JSON answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def log(self) -> list[Json]:
        """What the engine received so far, oldest first."""
        entries: list[Json] = self.ask("GET", "/log")
        return entries

    def control(self, **changes: Any) -> None:
        """Change how the engine behaves from now on: ``health=503``, ``default={"do": [...]}``."""
        self.ask("POST", "/control", changes)


class EngineProcess(ScriptedEngine):
    """A scripted engine in a process of its own, on a free port of 127.0.0.1."""

    def __init__(self, *arguments: str, token: str | None = None, stdin: str = "", stderr: int | None = None) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "STENTOR_ENGINE_TOKEN"}
        if token is not None:
            environment["STENTOR_ENGINE_TOKEN"] = token
        command = [sys.executable, str(PROGRAM), "--port", "0", *arguments]
        pipe = subprocess.PIPE
        self.process = keep(
            subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=stderr, text=True)
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin:
            self.process.stdin.write(stdin)
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            self.stop()
            raise RuntimeError(f"the scripted engine did not start: {line!r}")
        super().__init__(int(line.rsplit(":", 1)[1]))
        self.url = f"http://127.0.0.1:{self.port}"

    def wait_log(self, number: int, *, ended: bool = True, timeout_s: float = 30.0) -> Json:
        """The entry of the request with this number (from 0), once it is there and, if ``ended``, over."""
        deadline = time.monotonic() + timeout_s
        while True:
            entries = self.log()
            if len(entries) > number and (not ended or entries[number]["ended"] != "open"):
                return entries[number]
            if time.monotonic() > deadline:
                raise TimeoutError(f"request {number} is not there or not over: {entries}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End the process; it is gone when this returns."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()
