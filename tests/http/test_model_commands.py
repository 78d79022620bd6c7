"""``stentor models`` beside a running server and without one, on a hub of the tests."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.tiny_gguf import write_tiny_gguf
from tests.hub import Hub, running_hub
from tests.serving import Server, scripted_model


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(params=["beside a server", "alone"])
def server(request: pytest.FixtureRequest, tmp_path: Path, hub: Hub) -> Iterator[Server]:
    server = Server(tmp_path, scripted_model(), slots=3, HF_ENDPOINT=hub.url, CONFIG=str(tmp_path / "stentor.toml"))
    if request.param == "alone":
        yield server
        return
    with server:
        yield server
    assert b"request_crashed" not in server.log, server.log.decode(errors="replace")


def test_models_are_found_pulled_added_updated_and_removed(server: Server, hub: Hub, tmp_path: Path):
    tiny = write_tiny_gguf(tmp_path / "t.gguf").read_bytes()
    repo = hub.add("org/Cli-GGUF", {"Cli-Q4_0.gguf": tiny})
    assert [row["repo"] for row in json.loads(server.cli("models", "search", "cli", "--json"))] == ["org/Cli-GGUF"]
    assert "org/Cli-GGUF" in server.cli("models", "search", "cli")
    pulled = json.loads(server.cli("models", "pull", "hf:org/Cli-GGUF:Q4_0", "--json"))
    assert pulled["size_bytes"] == len(tiny)
    assert Path(pulled["path"]).read_bytes() == tiny
    added = json.loads(
        server.cli("models", "add", "hf:org/Cli-GGUF:Q4_0", "--id", "cli", "--alias", "c", "--set", "ctx=256", "--json")
    )
    assert added["definition"] == {"source": "hf:org/Cli-GGUF:Q4_0", "aliases": ["c"], "ctx": 256}
    assert "cli" in [row["id"] for row in json.loads(server.cli("models", "list", "--json"))]
    (local,) = json.loads(server.cli("models", "local", "--json"))
    assert local["models"] == ["cli"]
    repo.commit({"Cli-Q4_0.gguf": tiny + b"\0" * 32})
    updated = json.loads(server.cli("models", "update", "cli", "--json"))
    assert Path(updated["path"]).stat().st_size == len(tiny) + 32
    assert not Path(pulled["path"]).exists()
    server.cli("models", "add", f"file:{tmp_path / 't.gguf'}", "--json")
    assert "There is a model 'cli' already" in server.cli("models", "add", "hf:org/Cli-GGUF", "--id", "cli", status=1)
    assert "has no 'Q9'" in server.cli("models", "add", "hf:org/Cli-GGUF:Q9", status=1)
    assert len(json.loads(server.cli("models", "list", "--json"))) == 3
    assert "has no 'Q9'" in server.cli("models", "pull", "hf:org/Cli-GGUF:Q9", status=1)
    assert "no FIELD=VALUE" in server.cli("models", "add", "hf:a/b", "--set", "ctx", status=1)
    assert "removed" in server.cli("models", "rm", "cli", "--files")
    assert json.loads(server.cli("models", "local", "--json")) == []
    assert (tmp_path / "t.gguf").exists()
