"""One running server a worker of pytest and a number of gateway workers; after every test it must be at rest."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.harness import Gate, at_rest, serve
from tests.serving import Server, scripted_model

DYING = 16  # the last four are of tests that take theirs by name


def _config() -> str:
    models = [
        scripted_model(aliases=["also", "repo.name"]),
        scripted_model("narrow", parallel=1),
        *(scripted_model(f"mortal-{number}", preload=False, parallel=2) for number in range(DYING)),
    ]
    return "\n".join(models)


def _start(folder: Path, config: str, **settings: str) -> Iterator[Gate]:
    # Nobody listens there: no test asks the real hub.
    settings.setdefault("HF_ENDPOINT", "http://127.0.0.1:9")
    server = Server(folder, config, "--admin-key", slots=DYING + 2, DURABILITY="process", **settings)
    yield from serve(server, Gate)


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """The server in one process."""
    yield from _start(tmp_path_factory.mktemp("single"), _config(), GATEWAY_WORKERS="1", QUEUE_MAX="4")


@pytest.fixture(scope="session")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """The server with two gateway workers of their own."""
    yield from _start(tmp_path_factory.mktemp("double"), _config(), GATEWAY_WORKERS="2", QUEUE_MAX="4")


@pytest.fixture(scope="session")
def triple(tmp_path_factory: pytest.TempPathFactory, postgres_url: str, worker_id: str) -> Iterator[Gate]:
    """The server with three gateway workers and its books in PostgreSQL."""
    settings = {"DATABASE_URL": postgres_url, "DATABASE_SCHEMA": f"http_{worker_id}", "DATABASE_POOL_SIZE": "2"}
    settings["DATABASE_TIMEOUT_S"] = "1"
    folder = tmp_path_factory.mktemp("triple")
    yield from _start(folder, _config(), GATEWAY_WORKERS="3", QUEUE_MAX="4", **settings)


@pytest.fixture(scope="session")
def _strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    settings = {
        "QUEUE_TIMEOUT_S": "0.5",
        "RATE_LIMIT_QPS": "5",
        "BODY_MAX_MB": "1",
        "CORS_ORIGINS": "https://app.example,http://localhost:3000",
        "ALLOWED_HOSTS": "gate.example,*.inner.example",
    }
    models = "\n".join([scripted_model(), scripted_model("narrow", parallel=1)])
    yield from _start(tmp_path_factory.mktemp("strict"), models, **settings)


@pytest.fixture(params=["single", "double", "triple"])
def each(request: pytest.FixtureRequest) -> Iterator[Gate]:
    """Each server: for what passes through the worker's line, and into each kind of database."""
    yield from at_rest(request.getfixturevalue(request.param))


@pytest.fixture
def gate(single: Gate) -> Iterator[Gate]:
    """The server in one process."""
    yield from at_rest(single)


@pytest.fixture
def strict(_strict: Gate) -> Iterator[Gate]:
    """A server with other settings: short waits, few requests a second, small bodies, origins, names."""
    yield from at_rest(_strict)
