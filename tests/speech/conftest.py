"""One server with real recognizers; after each test it must be at rest, with nothing left in its spool."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from stentor.runtime.offers import OFFERS
from tests.http.harness import Gate, at_rest, serve, until
from tests.kinds.models import CACHE, fetch
from tests.serving import Answer, Server, model_table

ANSWER_TIMEOUT_S = 110.0  # a minute of sound on a machine that does other things, too
TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"


def form(content: bytes | None, filename: str = "sound.wav", **fields: Any) -> tuple[bytes, str]:
    """A multipart body and its type; a list is a field that stands more than once."""
    mark = uuid.uuid4().hex
    parts: list[bytes] = []
    for name, value in fields.items():
        for each in value if isinstance(value, list) else [value]:
            head = f'Content-Disposition: form-data; name="{name}"\r\n\r\n'
            parts.append(f"--{mark}\r\n{head}{each}\r\n".encode())
    if content is not None:
        head = f'Content-Disposition: form-data; name="file"; filename="{filename}"\r\nContent-Type: audio/x\r\n\r\n'
        parts.append(f"--{mark}\r\n{head}".encode() + content + b"\r\n")
    return b"".join([*parts, f"--{mark}--\r\n".encode()]), f"multipart/form-data; boundary={mark}"


class Hearing(Gate):
    """The server, and uploads to it."""

    def hear(
        self, content: bytes | None, *, path: str = TRANSCRIPTIONS, key: str | None = None, **fields: Any
    ) -> Answer:
        """One upload; ``fields`` are the form's."""
        body, kind = form(content, **{"model": "tiny", "language": "en", **fields})
        connection = self.server.connect(ANSWER_TIMEOUT_S)
        try:
            headers = {"Authorization": f"Bearer {key or self.key}", "Content-Type": kind}
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            answer = Answer(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())
        finally:
            connection.close()
        self.contract.check("POST", path, answer)
        return answer

    def spooled(self) -> list[str]:
        """Uploads that lie in the data folder."""
        return [path.name for path in (self.server.data_dir / "tmp").glob("*")]

    def check_spool(self) -> None:
        """No upload may stay; of one whose client left the server hears a moment later."""
        until(self.spooled, lambda left: left == [], 60)


def start(folder: Path, config: str, **settings: str) -> Iterator[Hearing]:
    """A server that must stop well."""
    settings = {"DURABILITY": "process", "MODEL_CACHE": str(CACHE), "HF_ENDPOINT": "http://127.0.0.1:9", **settings}
    yield from serve(Server(folder, config, "--admin-key", **settings), Hearing)


@pytest.fixture(scope="session")
def _hearing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hearing]:
    for name in ("whisper-tiny.en", "whisper-base"):
        fetch(OFFERS[name].source)
    config = "\n".join(
        [
            model_table(id="tiny", source="whisper-tiny.en", parallel=4, threads=1),
            model_table(id="base", source="whisper-base", parallel=2, threads=2),
        ]
    )
    yield from start(
        tmp_path_factory.mktemp("speech"), config, GATEWAY_WORKERS="2", AUDIO_MAX_MB="4", AUDIO_MAX_S="100"
    )


@pytest.fixture
def gate(_hearing: Hearing) -> Iterator[Hearing]:
    """The server: two gateway workers, uploads of at most 4 MiB and 100 s."""
    yield from at_rest(_hearing, 60)
    _hearing.check_spool()


@pytest.fixture
def client(gate: Hearing) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=gate.server.ready["base_url"], api_key=gate.key, max_retries=0) as made:
        yield made
