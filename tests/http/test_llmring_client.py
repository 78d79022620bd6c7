"""The real LLMRing client, 1.4.0: session, logging service, decorators, registry and command line, against a server."""

import asyncio
import gc
import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from llmring.cli import main as llmring_main
from llmring.logging import log_llm_call, log_llm_stream
from llmring.mcp.http_client import MCPHttpClient
from llmring.registry import RegistryClient
from llmring.schemas import LLMRequest, Message
from llmring.server_client import ServerClient
from llmring.service_extended import LLMRingSession
from openai import AsyncOpenAI

from tests.http.harness import Gate, until
from tests.http.test_account import somewhere

pytestmark = pytest.mark.filterwarnings("ignore")  # the client's own


@pytest.fixture(autouse=True)
def _leave_nothing() -> Iterator[None]:
    """The client leaves some connections open; here, not in a later test, is where that is passed over."""
    yield
    gc.collect()


@pytest.fixture
def url(each: Gate) -> str:
    return f"http://127.0.0.1:{each.port}"


@pytest.fixture
def key(each: Gate) -> str:
    """A key of a project of its own."""
    user = each.make_user()
    return str(each.make_key(user["id"], scopes=["ring", "inference"])["key"])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No configuration but ours."""
    for name in list(os.environ):
        if name.startswith(("LLMRING_", "OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def session_of(url: str, key: str, home: Path, **more: Any) -> LLMRingSession:
    """A session whose OpenAI provider is this server."""
    session = LLMRingSession(server_url=url, api_key=key, registry_url=f"{url}/registry", **more)
    session.registry.cache_dir = home / "registry"
    session.registry.cache_dir.mkdir()
    session.register_provider("openai", api_key=key, base_url=f"{url}/v1")
    return session


async def test_a_session_keeps_its_conversation(url: str, key: str, home: Path) -> None:
    session = session_of(url, key, home)
    try:
        conversation = await session.create_conversation("Plans", "Be brief.", "openai:scripted", 0.2, 64)
        assert conversation is not None
        request = LLMRequest(model="openai:scripted", messages=[Message(role="user", content="How do ships float?")])
        answer = await session.chat_with_conversation(request, conversation)
        assert answer.content
        history = await session.get_conversation_history(conversation, limit=10)
        assert history is not None
        assert [message["role"] for message in history["messages"]] == ["user", "assistant"]
        assert history["messages"][1]["content"] == answer.content
        assert (history["title"], history["message_count"]) == ("Plans", 2)
        assert history["total_input_tokens"] == answer.usage["prompt_tokens"]
        assert [row["id"] for row in await session.list_conversations()] == [str(conversation)]
        await asyncio.sleep(0)
        logs = await session.server_client.get("/api/v1/logs", params={"limit": 10})
        assert [(row["model"], row["output_tokens"]) for row in logs] == [
            ("scripted", answer.usage["completion_tokens"])
        ]
        assert logs[0]["conversation_id"] == str(conversation)
    finally:
        await session.close()


@pytest.mark.parametrize("level", ["none", "metadata"])
async def test_a_session_keeps_less_if_told(url: str, key: str, home: Path, level: str) -> None:
    session = session_of(url, key, home, message_logging_level=level)
    try:
        conversation = await session.create_conversation("Quiet")
        request = LLMRequest(model="openai:scripted", messages=[Message(role="user", content="secret words")])
        await session.chat_with_conversation(request, conversation)
        history = await session.get_conversation_history(conversation)
        assert history is not None
        assert "secret words" not in json.dumps(history)
        kept = history["messages"]
        assert len(kept) == (0 if level == "none" else 2)
        assert all(message["content"] is None and len(message["content_hash"]) == 64 for message in kept)
    finally:
        await session.close()


async def test_the_logging_service_logs_whole_conversations(url: str, key: str, home: Path) -> None:
    session = session_of(url, key, home, enable_conversations=True)
    try:
        service = session.logging_service
        service.log_conversations = True
        request = LLMRequest(model="openai:scripted", messages=[Message(role="user", content="Hi")])
        answer = await session.chat(request)
        cost = {"input_cost": 0.001, "output_cost": 0.002, "total_cost": 0.003}
        await service._log_conversation(request, answer, "quick", "openai", "gpt-4o", cost, "default")
        kept = await session.server_client.get(f"/conversations/{service._conversation_id}")
        assert [message["content"] for message in kept["messages"]] == ["Hi", answer.content]
        assert kept["total_cost"] == 0.003
        logs = await session.server_client.get("/api/v1/logs", params={"alias": "quick"})
        assert (logs[0]["cost"], logs[0]["conversation_id"]) == (0.003, service._conversation_id)
    finally:
        await session.close()


@pytest.mark.parametrize("whole", [False, True])
async def test_decorated_calls_are_logged(url: str, key: str, home: Path, whole: bool) -> None:
    origin = f"test-{uuid.uuid4().hex[:8]}"
    async with AsyncOpenAI(api_key=key, base_url=f"{url}/v1") as openai:

        @log_llm_call(server_url=url, api_key=key, provider="openai", log_conversations=whole, origin=origin)
        async def ask(messages: list[dict[str, Any]], model: str = "scripted") -> Any:
            return await openai.chat.completions.create(model=model, messages=messages)

        @log_llm_stream(server_url=url, api_key=key, provider="openai", log_conversations=whole, origin=origin)
        async def stream(messages: list[dict[str, Any]], model: str = "scripted") -> Any:
            made = await openai.chat.completions.create(
                model=model, messages=messages, stream=True, stream_options={"include_usage": True}
            )
            async for chunk in made:
                yield chunk

        said = [{"role": "user", "content": "Tell me"}]
        answer = await ask(messages=said)
        async for _ in stream(messages=said):
            pass
    async with ServerClient(base_url=url, api_key=key) as client:
        async with asyncio.timeout(30):
            while len(logs := await client.get("/api/v1/logs", params={"origin": origin})) < 2:
                await asyncio.sleep(0.05)
        assert {row["output_tokens"] for row in logs} == {answer.usage.completion_tokens}
        kept = await client.get("/conversations")
        assert len(kept) == (2 if whole else 0)


async def test_the_mcp_client_talks(url: str, key: str) -> None:
    client = MCPHttpClient(base_url=url, api_key=key)
    try:
        conversation = await client.create_conversation("Tools", system_prompt="Use them.")
        added = await client.add_message(conversation, "user", "What time is it?", {"zone": "UTC"})
        assert (added["content"], added["metadata"]) == ("What time is it?", {"zone": "UTC"})
        assert [row["id"] for row in await client.get_conversation_messages(conversation)] == [added["id"]]
    finally:
        await client.close()


async def test_the_registry_client_reads_models_and_versions(url: str, tmp_path: Path) -> None:
    registry = RegistryClient(f"{url}/registry", cache_dir=tmp_path)
    models = await registry.fetch_current_models("openai")
    assert {model.model_name for model in models} >= {"gpt-4o", "gpt-4o-mini"}
    mini = next(model for model in models if model.model_name == "gpt-4o-mini")
    assert (float(mini.dollars_per_million_tokens_input), mini.max_input_tokens) == (0.15, 128_000)
    version = await registry.get_current_version("openai")
    pinned = await registry.fetch_version("openai", version)
    assert {model.model_name for model in pinned.models} == {model.model_name for model in models}
    own = await registry.fetch_current_models("stentor")
    scripted = next(model for model in own if model.model_name == "scripted")
    assert float(scripted.dollars_per_million_tokens_input) == 0.1


class Done(NamedTuple):
    status: int
    stdout: str


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The client's command line, in this process: loading it takes seconds."""

    def run(url: str, key: str, *words: str) -> Done:
        monkeypatch.setenv("LLMRING_SERVER_URL", url)
        monkeypatch.setenv("LLMRING_API_KEY", key)
        monkeypatch.setattr(sys, "argv", ["llmring", *words])
        capsys.readouterr()
        try:
            status = llmring_main()
        except SystemExit as end:
            status = end.code
        return Done(int(status or 0), capsys.readouterr().out)

    return run


def test_the_command_line(gate: Gate, home: Path, run_cli: Callable[..., Done]) -> None:
    url, key = f"http://127.0.0.1:{gate.port}", gate.make_key(gate.make_user()["id"], scopes=["ring"])["key"]
    for cost in (0.25, 0.5):
        body = {"model": "gpt-4o", "provider": "openai", "input_tokens": 10, "output_tokens": 5, "cost": cost,
                "alias": "fast", "origin": "cli"}  # fmt: skip
        assert gate.ask("POST", "/api/v1/log", body, key=key).status == 200
    title = gate.ask("POST", "/conversations", {"title": "From the shell"}, key=key).json()
    gate.ask("POST", f"/conversations/{title['id']}/messages", {"role": "user", "content": "Hello"}, key=key)

    status = run_cli(url, key, "server", "status")
    assert status.status == 0, status.stdout
    assert "API key accepted" in status.stdout
    stats = run_cli(url, key, "server", "stats", "--json")
    assert json.loads(stats.stdout)["summary"]["total_cost"] == "0.750000000"
    for words in (["--json"], [], ["--output", "csv"], ["--alias", "fast", "--limit", "1"]):
        done = run_cli(url, key, "server", "logs", *words)
        assert done.status == 0, done.stdout
        assert "gpt-4o" in done.stdout or "fast" in done.stdout
    listed = run_cli(url, key, "server", "conversations")
    assert "From the shell" in listed.stdout
    shown = run_cli(url, key, "server", "conversations", "--conversation-id", title["id"], "--messages", "--json")
    assert json.loads(shown.stdout)["messages"][0]["content"] == "Hello"
    refused = run_cli(url, "sk-" + "x" * 48, "server", "status")
    assert "rejected (401)" in refused.stdout


def test_the_command_line_asks_for_an_account(triple: Gate, home: Path, run_cli: Callable[..., Done]) -> None:
    url, email = f"http://127.0.0.1:{triple.port}", f"{uuid.uuid4().hex[:8]}@example.org"
    words = ("register", "--email", email, "--org", "Choir", "--project-name", "songs", "--accept-terms",
             "--non-interactive", "--server", url)  # fmt: skip
    done = run_cli(url, "", *words)
    assert done.status == 0, done.stdout
    assert "cannot be used yet" in done.stdout
    key = re.search(r"sk-[0-9A-Za-z]{48}", done.stdout)[0]
    assert triple.ask("GET", "/api/v1/logs", key=key).status == 401
    again = run_cli(url, "", *words)  # whether an email is known is nobody's business
    other = re.search(r"sk-[0-9A-Za-z]{48}", again.stdout)[0]
    assert again.stdout.replace(other, key) == done.stdout
    (waiting,) = [row for row in triple.admin("GET", "/signups?state=pending")["data"] if row["email"] == email]
    assert "organization Choir; project songs" in waiting["message"]
    triple.admin("POST", f"/signups/{waiting['id']}/approve", {})
    until(lambda: triple.ask("GET", "/v1/models", key=key).status, lambda status: status == 200, 60)
    assert triple.ask("GET", "/v1/models", key=other).status == 401
    unasked = {"email": email, "accept_terms": False}
    assert triple.ask("POST", "/api/v1/cli/register", unasked, key="", source=somewhere()).status == 400


async def test_a_wrong_key_is_an_error_that_the_client_knows(url: str) -> None:
    async with ServerClient(base_url=url, api_key="sk-" + "x" * 48) as client:
        with pytest.raises(httpx.HTTPStatusError) as refused:
            await client.get("/api/v1/stats")
    assert refused.value.response.status_code == 401
