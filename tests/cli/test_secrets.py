"""Secrets over the command line and the admin API of a real server: in, and never out again."""

import json
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import Server, scripted_model

CANARY = "canary-provider-credential-0a1b2c3d"
TOKEN = "hf_canaryHubToken0a1b2c3dXYZ1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("secrets")
    with Server(folder, scripted_model(), "--admin-key", GATEWAY_WORKERS="2", LOG_LEVEL="DEBUG") as running:
        yield running


def say(server: Server, secret: str, *words: str) -> str:
    """A command that reads a secret from stdin."""
    done = subprocess.run(
        [sys.executable, "-m", "stentor", *words],
        cwd=server.folder,
        env=server.environ,
        input=secret + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def everything_said(server: Server, *more: str) -> str:
    """All that the server wrote or answers to whoever may ask: log, database, metrics, lists, process list."""
    said = [server.log.decode(), *more]
    said += [path.read_bytes().decode("latin-1") for path in server.data_dir.glob("stentor.db*")]
    for path in ("/metrics", "/admin/api/providers", "/admin/api/hf-tokens", "/admin/api/secrets", "/openapi.json"):
        answer = server.ask("GET", path)
        assert answer.status == 200
        said.append(answer.body.decode())
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said.append(line.read_bytes().decode("latin-1"))
        except OSError:
            continue
    return "\n".join(said)


def sealed_rows(server: Server) -> list[tuple[object, ...]]:
    """What the vault has in the database of a server that is stopped."""
    connection = sqlite3.connect(server.data_dir / "stentor.db")
    try:
        tables = ("data_keys", "secrets", "providers")
        return [row for table in tables for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1")]
    finally:
        connection.close()


def test_secrets_go_in_and_never_come_out(server: Server) -> None:
    name = f"acme-{uuid.uuid4().hex[:8]}"
    own = f"/admin/api/providers/{name}"
    shown = [
        say(server, CANARY, "providers", "add", name, "--base-url", "https://api.acme.example/v1"),
        say(server, TOKEN, "secrets", "set-hub-token"),
        server.cli("providers", "list"),
        server.cli("providers", "list", "--json"),
        server.cli("secrets", "list"),
    ]
    assert "2c3d" in shown[3]
    answers = [
        server.ask("POST", "/admin/api/providers", {"name": "bad name", "kind": "openai", "base_url": "https://a.example",
                                                    "credential": CANARY}),
        server.ask("POST", "/admin/api/providers", {"name": "x", "kind": CANARY[:6], "credential": CANARY}),
        server.ask("POST", "/admin/api/providers", {"name": "x", "kind": "openai", "base_url": "http://10.0.0.1/",
                                                    "credential": CANARY}),
        server.ask("POST", "/admin/api/hf-tokens", {"name": "x", "token": TOKEN + " "}),
        server.ask("PATCH", own, {"base_url": "https://evil.example"}),
        server.ask("PATCH", own, b'{"credential": "' + CANARY.encode() + b'", broken'),
        server.ask("GET", own),
    ]  # fmt: skip
    assert [answer.status for answer in answers] == [400, 400, 400, 400, 400, 400, 405]
    # Nobody is at that name: what the test says of it must not say with what it was asked.
    shown.append(server.ask("POST", own + "/test").body.decode())
    assert json.loads(shown[-1])["ok"] is False
    said = everything_said(server, *shown, *(answer.body.decode() for answer in answers))
    assert CANARY not in said
    assert TOKEN not in said


def test_an_admin_key_cannot_change_the_master_key(server: Server) -> None:
    answer = server.ask("POST", "/admin/api/vault/rotate", {"master_key": "ab" * 32})
    assert (answer.status, answer.json()["code"]) == (409, "conflict")


def test_keys_and_secrets_outlive_a_rotation_and_a_restart(server: Server) -> None:
    name = f"second-{uuid.uuid4().hex[:8]}"
    say(server, TOKEN, "secrets", "set-hub-token", "--name", name)
    row = json.loads(server.cli("vault", "rotate", "--json"))
    assert row["data_keys"] >= 2
    assert server.chat("still here").status == 200
    server.stop()
    server.start()
    assert server.chat("and after a restart").status == 200
    assert name in server.cli("secrets", "list")


def test_a_wrong_or_missing_master_key_refuses_to_start_and_destroys_nothing(server: Server) -> None:
    server.stop()
    before = sealed_rows(server)
    key = server.data_dir / "master.key"
    kept = key.read_text()
    try:
        for text, words in (("cd" * 32 + "\n", "was sealed with master key"), (None, "that key is missing")):
            key.unlink()
            if text is not None:
                key.write_text(text)
            with pytest.raises(AssertionError, match=words):
                server.start()
            server.stop()
            assert key.exists() == (text is not None)
            key.touch()
        assert sealed_rows(server) == before
    finally:
        server.stop()
        key.write_text(kept)
        server.start()
    assert server.chat("all there").status == 200
