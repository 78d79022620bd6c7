"""The scripted engine looks like the real one: same statuses, headers, fields and kinds of values, frame by frame."""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scripted_engine import EngineProcess
from tests.serving import free_ports

TOKEN = "shapes-token"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 3, "temperature": 0}
PROMPT: dict[str, Any] = {"prompt": "Hi", "max_tokens": 3, "temperature": 0}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}

pytestmark = pytest.mark.xdist_group("scripted-shapes")


def call(port: int, method: str, path: str, body: Any = None) -> tuple[int, str, bytes]:
    """Status, content type and bytes of one answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, json.dumps(body), {"Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        return response.status, response.getheader("content-type", ""), response.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def real(starter: Path) -> Iterator[int]:
    """The port of the embedded engine with the starter model."""
    port = free_ports(1)
    order = {"model_path": str(starter), "alias": "m", "port": port, "token": TOKEN, "ctx": 512, "parallel": 1}
    command = [sys.executable, "-m", "stentor.engines.llama"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(json.dumps({**order, "threads": 1}).encode() + b"\n")
    try:
        wait_until_ready(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def wait_until_ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            if call(port, "GET", "/health")[0] == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.05)
    pytest.fail("the engine did not become ready")


@pytest.fixture(scope="module")
def scripted() -> Iterator[int]:
    with EngineProcess("--ctx", "512", token=TOKEN) as engine:
        yield engine.port


def shape(value: Any) -> Any:
    """Fields and kinds of a value; of a list, its first element's."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def shapes(data: bytes) -> list[Any]:
    """The shapes of an answer's frames, equal neighbours joined; of a JSON answer, its one shape."""
    if not data.startswith(b"data: "):
        return [shape(json.loads(data))]
    assert data.endswith(b"\n\n")
    found: list[Any] = []
    for frame in data.decode().strip().split("\n\n"):
        text = frame.removeprefix("data: ")
        seen = text if text == "[DONE]" else shape(json.loads(text))
        if not found or found[-1] != seen:
            found.append(seen)
    return found


@pytest.mark.parametrize(("path", "body"), [
    (CHAT, HELLO),
    (CHAT, HELLO | {"stream": True}),
    (CHAT, HELLO | USAGE),
    (CHAT, HELLO | {"logprobs": True, "top_logprobs": 1}),
    (CHAT, HELLO | {"logprobs": True, "top_logprobs": 1, "stream": True}),
    (TEXT, PROMPT),
    (TEXT, PROMPT | {"stream": True}),
    (TEXT, PROMPT | USAGE),
    (TEXT, PROMPT | {"logprobs": 1}),
    (CHAT, {"messages": 5}),
    (CHAT, {"messages": [{"role": "user", "content": "word " * 600}]}),
    (CHAT, {"messages": [{"role": "user", "content": "word " * 600}], "stream": True}),
    ("/v1/nothing", {}),
])  # fmt: skip
def test_answers_look_alike(real: int, scripted: int, path: str, body: dict[str, Any]) -> None:
    status, content_type, data = call(real, "POST", path, body)
    mine, my_content_type, my_data = call(scripted, "POST", path, body)
    assert (mine, my_content_type) == (status, content_type)
    assert shapes(my_data) == shapes(data)


def test_a_missing_token_is_refused_alike(real: int, scripted: int) -> None:
    answers = []
    for port in (real, scripted):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", CHAT, json.dumps(HELLO))
        response = connection.getresponse()
        answers.append((response.status, json.loads(response.read())))
        connection.close()
    assert answers[0] == answers[1]


def test_health_is_the_same(real: int, scripted: int) -> None:
    assert call(real, "GET", "/health") == call(scripted, "GET", "/health")
