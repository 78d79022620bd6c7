"""One server with a model of every kind; after each test it must be at rest."""

import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.engine.bert_gguf import write_tiny_reranker
from tests.engine.projector_gguf import write_projector
from tests.engine.tiny_gguf import write_tiny_gguf
from tests.http.harness import Gate, at_rest, serve
from tests.kinds.models import make_minilm
from tests.serving import Server, model_table, scripted_model

# As Mistral's and Gemma's do, but in fewer words.
TEMPLATE = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<' + message.role + '>' + message.content }}{% endfor %}"
)
ODD = Path(__file__).with_name("odd_engine.py")


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
            model_table(id="minilm", source=f"file:{minilm}", ctx=256, parallel=2, threads=1),
            model_table(id="shortened", source=f"file:{minilm}", ctx=256, parallel=1, threads=1, matryoshka=True),
            model_table(id="ranker", source=f"file:{ranker}", ctx=256, parallel=2, threads=1),
            *(
                model_table(id=path.parent.name, source=f"file:{path}", ctx=512, parallel=1, threads=1)
                for path in seeing
            ),
            model_table(id="wrong", source=f"file:{tiny}", type="reranker", ctx=256),
            model_table(id="tiny", source=f"file:{tiny}", ctx=512, parallel=2, threads=1),
            model_table(id="picky", source=f"file:{tiny}", ctx=512, parallel=1, threads=1, chat_template=TEMPLATE),
            model_table(
                id="gazer",
                source=f"file:{seeing[0]}",
                type="vision-embedding",
                pooling="last",
                ctx=256,
                parallel=1,
                threads=1,
            ),
            model_table(id="mean", source=f"file:{seeing[0]}", type="vision-embedding", ctx=256, parallel=1, threads=1),
            model_table(id="recorder", source=f"file:{seeing[1]}", type="audio", ctx=512, parallel=1, threads=1),
            scripted_model("scribe", type="omni", preload=False),
            model_table(id="odd", type="embedding", parallel=4, **odd),
            model_table(id="odd-ranker", type="reranker", parallel=4, **odd),
        ]
    )
    yield from serve(Server(folder, config, "--admin-key", slots=12, DURABILITY="process", AUDIO_MAX_S="30"), Gate)


@pytest.fixture
def gate(_gate: Gate) -> Iterator[Gate]:
    """The server."""
    yield from at_rest(_gate)


@pytest.fixture
def client(gate: Gate) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=gate.server.ready["base_url"], api_key=gate.key, max_retries=0) as made:
        yield made
