"""One server with real voices; after each test it must be at rest."""

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from stentor.runtime.offers import OFFERS
from tests.http.harness import Gate, until
from tests.kinds.models import CACHE, fetch
from tests.serving import Server

SPEECH, VOICES = "/v1/audio/speech", "/v1/audio/voices"


def table(**fields: object) -> str:
    """A ``[[models]]`` table."""
    return "[[models]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())


def start(folder: Path, config: str, **settings: str) -> Iterator[Gate]:
    """A server that must stop well."""
    settings = {"DURABILITY": "process", "MODEL_CACHE": str(CACHE), "HF_ENDPOINT": "http://127.0.0.1:9", **settings}
    with Server(folder, config, "--admin-key", **settings) as server:
        gate = Gate(server)
        yield gate
        gate.check_books()
        stopped_well = server.stop()
    assert stopped_well == 0
    assert b"request_crashed" not in server.log, server.log.decode(errors="replace")


@pytest.fixture(scope="session")
def _gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    fetch(OFFERS["piper-joe"].source)
    config = "\n".join(
        [
            table(id="joe", source="piper-joe", parallel=2, threads=1, preload=True),
            table(id="tone", engine="tone", parallel=8),
            table(id="twice", engine="tone", instances=2, parallel=1, preload=True),
            table(id="kokoro", source="kokoro", parallel=1, threads=2),
        ]
    )
    yield from start(tmp_path_factory.mktemp("speaking"), config, GATEWAY_WORKERS="2")


@pytest.fixture
def gate(_gate: Gate) -> Iterator[Gate]:
    """The server."""
    yield _gate
    until(_gate.running, lambda count: count == 0, 60)
    until(lambda: _gate.metric("stentor_open_requests"), lambda count: count == 0, 60)


@pytest.fixture
def client(gate: Gate) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=gate.server.ready["base_url"], api_key=gate.key, max_retries=0, timeout=60) as made:
        yield made
