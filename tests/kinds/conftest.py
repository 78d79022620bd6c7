"""One server with a model of every kind; after each test it must be at rest."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.engine.bert_gguf import write_tiny_reranker
from tests.engine.projector_gguf import write_projector
from tests.engine.tiny_gguf import write_tiny_gguf
from tests.http.harness import Gate, until
from tests.kinds.models import make_minilm
from tests.serving import Server

ODD = Path(__file__).with_name("odd_engine.py")


def table(**fields: object) -> str:
    """A ``[[models]]`` table."""
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
    return f"[[models]]\n{lines}"


def write_with_projector(folder: Path, name: str, *, sees: bool = False, hears: bool = False) -> Path:
    """A model and its projector in a folder of their own."""
    place = folder / name
    place.mkdir()
    write_projector(place / "mmproj-tiny.gguf", sees=sees, hears=hears)
    return write_tiny_gguf(place / "tiny.gguf", trained_ctx=4096)


@pytest.fixture(scope="session")
def _gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    folder = tmp_path_factory.mktemp("kinds")
    minilm = make_minilm(folder)
    ranker = write_tiny_reranker(folder / "tiny-ranker.gguf")
    tiny = write_tiny_gguf(folder / "tiny.gguf", trained_ctx=512)
    seeing = [write_with_projector(folder, "eyes", sees=True), write_with_projector(folder, "ears", hears=True)]
    seeing.append(write_with_projector(folder, "omni", sees=True, hears=True))
    odd = {"engine": "command", "command": [sys.executable, str(ODD), "${PORT}"], "ctx": 512, "canary": False}
    config = "\n".join(
        [
            table(id="minilm", source=f"file:{minilm}", ctx=256, parallel=2, threads=1),
            table(id="shortened", source=f"file:{minilm}", ctx=256, parallel=1, threads=1, matryoshka=True),
            table(id="ranker", source=f"file:{ranker}", ctx=256, parallel=2, threads=1),
            *(table(id=path.parent.name, source=f"file:{path}", ctx=512, parallel=1, threads=1) for path in seeing),
            table(id="wrong", source=f"file:{tiny}", type="reranker", ctx=256),
            table(id="tiny", source=f"file:{tiny}", ctx=512, parallel=2, threads=1),
            table(id="odd", type="embedding", parallel=4, **odd),
            table(id="odd-ranker", type="reranker", parallel=4, **odd),
        ]
    )
    with Server(folder, config, "--admin-key", slots=12, DURABILITY="process") as server:
        gate = Gate(server)
        yield gate
        gate.check_books()
        stopped_well = server.stop()
    assert stopped_well == 0
    assert b"request_crashed" not in server.log, server.log.decode(errors="replace")


@pytest.fixture
def gate(_gate: Gate) -> Iterator[Gate]:
    """The server."""
    yield _gate
    until(_gate.running, lambda count: count == 0)
    until(lambda: _gate.metric("stentor_open_requests"), lambda count: count == 0)


@pytest.fixture
def client(gate: Gate) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=gate.server.ready["base_url"], api_key=gate.key, max_retries=0) as made:
        yield made
