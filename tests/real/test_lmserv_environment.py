"""LMServ's own environment starts Stentor: its model, its key, its workers."""

import subprocess
from pathlib import Path

from tests.kinds.models import STARTER, fetch
from tests.real.test_many_models import wait_for
from tests.serving import Server


class LmservServer(Server):
    """A server whose environment was written for LMServ."""

    lmserv: dict[str, str]

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, **self.lmserv}


def count_idle(server: Server) -> int:
    """What is said of workers that have nothing to do."""
    said = server.ask("GET", "/health", key="", Accept="text/plain").body.decode()
    return int(said.rpartition(" ")[2])


def test_the_quick_start_of_lmserv(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    client = tmp_path / "build" / "llama-cli"
    client.write_text("#!/bin/sh\n")
    client.chmod(0o755)
    server = LmservServer(tmp_path, "", DEFAULT_THREADS="1")
    server.lmserv = {
        "LLM_MODEL_PATH": str(fetch(STARTER)),
        "LLM_BIN_PATH": str(client),  # no llama-server beside it: the embedded engine serves
        "LLM_WORKERS": "2",
        "API_KEY": "secret123",
        "LOG_LEVEL": "WARNING",
    }
    with server:
        address = f"http://127.0.0.1:{server.port}"
        curl = [
            "curl", "-sN", "-H", "X-API-Key: secret123", "-H", "Content-Type: application/json",
            "-d", '{"prompt":"Name a famous Peruvian dish"}', f"{address}/chat",
        ]  # fmt: skip
        said = subprocess.run(curl, capture_output=True, timeout=60, check=True).stdout.decode()
        assert len(said.split()) > 3
        assert "detail" not in said
        wrong = subprocess.run(
            [*curl[:3], "X-API-Key: changeme", *curl[4:]], capture_output=True, timeout=60, check=True
        ).stdout
        assert b"Bad API key" in wrong
        for path, words in (("/health", "ok – workers idle: "), ("/", "LMServ is running.")):
            answer = server.ask("GET", path, key="", Accept="text/plain")
            assert answer.body.decode().startswith(words)
        slots = server.ask("GET", "/v1/models", key="secret123").json()["data"]
        assert len(slots) == 1
        wait_for(lambda: count_idle(server) >= 2, 60)
    assert b"llama-server" in server.log or b"llama-cli" in server.log
    assert b'"level":"info"' not in server.log.replace(b" ", b"")
