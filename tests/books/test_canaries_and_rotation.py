"""Secrets that must show up nowhere, traces included, while requests succeed and fail; a new master key under load."""

import http.client
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.collector import Collector, collecting
from tests.http.harness import Gate, until
from tests.scripted_engine import script
from tests.serving import Server, free_port, scripted_model

pytestmark = pytest.mark.xdist_group("books-canaries")
PASSWORD = "canary-password-correct-horse-7d1"
CREDENTIAL = "canary-provider-credential-9f8e7d6c"
PROMPT = "canaryprompt5b4a"
ROTATIONS, CLIENTS = 3, 4


@pytest.fixture(scope="module")
def traces() -> Iterator[Collector]:
    """Where spans go."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory, traces: Collector) -> Iterator[Gate]:
    """A server with two workers that is traced, and logs all that it ever would."""
    settings = {"GATEWAY_WORKERS": "2", "DURABILITY": "process", "LOG_LEVEL": "DEBUG", "OTEL_ENDPOINT": traces.url}
    settings |= {"EGRESS_ALLOW": "127.0.0.1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    with Server(tmp_path_factory.mktemp("canaries"), scripted_model(), "--admin-key", slots=2, **settings) as server:
        yield Gate(server)


def said_anywhere(gate: Gate, traces: Collector) -> dict[str, str]:
    """All that the server wrote, answers or is seen to be, by where."""
    server = gate.server
    said = {"log": server.log.decode(errors="replace"), "traces": b"".join(traces.bodies).decode("latin-1")}
    said["database"] = "".join(path.read_bytes().decode("latin-1") for path in server.data_dir.glob("stentor.db*"))
    for path in ("/metrics", "/admin/api/providers", "/admin/api/secrets", "/admin/api/audit", "/admin/api/config"):
        said[path] = server.ask("GET", path).body.decode()
    lines = []
    for process in (server.pid, *(child.pid for child in server.children())):
        try:
            lines.append(Path(f"/proc/{process}/cmdline").read_bytes().decode("latin-1"))
        except OSError:
            continue
    return said | {"process list": "\n".join(lines)}


def test_secrets_are_nowhere_whatever_fails(gate: Gate, traces: Collector) -> None:
    server = gate.server
    mark = uuid.uuid4().hex[:10]
    canary, acme, far = "canary-" + mark, "acme-" + mark, "far-" + mark
    user = gate.admin("POST", "/users", {"name": canary, "tier": "payg", "password": PASSWORD})
    poor = gate.make_key(user["id"])["key"]
    key = gate.make_key()["key"]
    dead = f"http://127.0.0.1:{free_port()}/v1"
    provider = {"name": acme, "kind": "openai", "base_url": dead, "credential": CREDENTIAL}
    answers = [server.ask("POST", "/admin/api/providers", provider)]
    remote = {"id": far, "remote": {"provider": acme, "price": {"input": 1, "output": 1}}, "ctx": 4096}
    answers.append(server.ask("POST", "/admin/api/models", remote))
    assert [answer.status for answer in answers] == [200, 200], [answer.body for answer in answers]
    bad = "sk-" + "canaryBadKey" * 4
    failing: list[tuple[str, dict[str, Any]]] = [
        (key, {"content": PROMPT}),
        (key, {"content": script({"say": PROMPT}, {"error": "engine's own"}), "stream": True}),
        (key, {"content": script({"say": PROMPT}, {"reset": True}), "stream": True}),
        (key, {"content": script({"say": PROMPT}, status=500, message=PROMPT)}),
        (key, {"content": PROMPT, "model": far}),
        (key, {"content": PROMPT, "model": "no-such-model"}),
        (poor, {"content": PROMPT}),
        (bad, {"content": PROMPT}),
    ]
    refused = ""
    for text, fields in failing:
        body = {"model": "scripted", "messages": [{"role": "user", "content": fields.pop("content")}], **fields}
        try:
            answer = server.ask("POST", "/v1/chat/completions", body, key=text)
        except http.client.IncompleteRead:
            continue
        refused += "" if answer.status == 200 else answer.body.decode()
    tries = ({"username": canary, "password": PASSWORD}, {"username": "nobody", "password": PASSWORD})
    answers += [server.ask("POST", "/user/api/login", words, key="") for words in tries]
    answers.append(server.ask("POST", "/user/api/login", {"api_key": bad}, key=""))
    until(lambda: b"chat scripted" in b"".join(traces.bodies), timeout_s=60.0)
    until(lambda: b"request_refused" in server.log, timeout_s=60.0)
    said = said_anywhere(gate, traces)
    said["answers"] = refused + "".join(answer.body.decode() for answer in answers)
    assert "chat scripted" in said["traces"]
    assert "request_refused" in said["log"]
    for name, secret in {
        "key": key, "poor key": poor, "admin key": gate.key, "bad key": bad, "password": PASSWORD,
        "credential": CREDENTIAL, "first password": server.password,
    }.items():  # fmt: skip
        assert secret
        assert [where for where, text in said.items() if secret in text] == [], name
    del said["answers"]  # whose request it was may be told what was wrong with it
    assert [where for where, text in said.items() if PROMPT in text] == []


def test_keys_and_sessions_go_on_while_the_master_key_changes(gate: Gate) -> None:
    server = gate.server
    name = "p" + uuid.uuid4().hex[:10]
    gate.admin("POST", "/users", {"name": name, "role": "admin", "tier": "admin", "password": PASSWORD})
    keys = [gate.make_key()["key"] for _ in range(CLIENTS)]
    ending = threading.Event()
    seen: list[set[int]] = [set() for _ in range(CLIENTS + 1)]
    cookie = sign_in(server, name)

    def keep(number: int, ask: Callable[[], int]) -> None:
        while not ending.is_set():
            seen[number].add(ask())

    asks = [lambda key=key: gate.chat("hello", key=key).status for key in keys]
    asks.append(lambda: session_status(server, cookie))
    threads = [threading.Thread(target=keep, args=pair) for pair in enumerate(asks)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(ROTATIONS):
            assert "data keys are wrapped" in server.cli("vault", "rotate")
            assert gate.chat("hello", key=gate.make_key()["key"]).status == 200  # one made in between
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    assert seen == [{200}] * len(seen)
    server.stop()
    server.start()
    assert [gate.chat("hello", key=key).status for key in keys] == [200] * CLIENTS
    assert session_status(server, cookie) == 200
    gate.check_books()


def sign_in(server: Server, name: str) -> str:
    """The cookie of a new session."""
    answer = server.ask("POST", "/admin/api/login", {"username": name, "password": PASSWORD}, key="")
    assert answer.status == 200, answer.body
    return answer.headers["set-cookie"].partition(";")[0]


def session_status(server: Server, cookie: str) -> int:
    """Status of a question that the session's cookie alone allows."""
    return server.ask("GET", "/admin/api/users", key="", Cookie=cookie).status
