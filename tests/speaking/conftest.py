"""One server with real voices; after each test it must be at rest."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from stentor.runtime.offers import OFFERS
from tests.http.harness import Gate, at_rest, serve
from tests.kinds.models import CACHE, fetch
from tests.serving import Server, model_table

SPEECH, VOICES = "/v1/audio/speech", "/v1/audio/voices"


def start(folder: Path, config: str, **settings: str) -> Iterator[Gate]:
    """A server that must stop well."""
    settings = {"DURABILITY": "process", "MODEL_CACHE": str(CACHE), "HF_ENDPOINT": "http://127.0.0.1:9", **settings}
    yield from serve(Server(folder, config, "--admin-key", **settings), Gate)


@pytest.fixture(scope="session")
def _gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    for name in ("piper-joe", "kokoro"):
        fetch(OFFERS[name].source)  # here, as a server may take its time over that
    config = "\n".join(
        [
            model_table(id="joe", source="piper-joe", parallel=2, threads=1, preload=True),
            model_table(id="tone", engine="tone", parallel=8),
            model_table(id="twice", engine="tone", instances=2, parallel=1, preload=True),
            model_table(id="kokoro", source="kokoro", parallel=1, threads=2),
        ]
    )
    yield from start(tmp_path_factory.mktemp("speaking"), config, GATEWAY_WORKERS="2")


@pytest.fixture
def gate(_gate: Gate) -> Iterator[Gate]:
    """The server."""
    yield from at_rest(_gate, 60)


@pytest.fixture
def client(gate: Gate) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=gate.server.ready["base_url"], api_key=gate.key, max_retries=0, timeout=60) as made:
        yield made
