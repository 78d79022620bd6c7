"""One running server a worker of pytest and a number of gateway workers; after every test it must be at rest."""

from collections.abc import Iterator

import pytest

from tests.http.harness import Gate, until
from tests.serving import Server, scripted_model

DYING = 12


def _config() -> str:
    models = [
        scripted_model(aliases=["also", "repo.name"]),
        scripted_model("narrow", parallel=1),
        *(scripted_model(f"mortal-{number}", preload=False, parallel=2) for number in range(DYING)),
    ]
    return "\n".join(models)


def _start(tmp_path_factory: pytest.TempPathFactory, workers: int) -> Iterator[Gate]:
    folder = tmp_path_factory.mktemp(f"gate{workers}")
    settings = {"GATEWAY_WORKERS": str(workers), "QUEUE_MAX": "4", "DURABILITY": "process"}
    with Server(folder, _config(), "--admin-key", slots=DYING + 2, **settings) as server:
        gate = Gate(server)
        yield gate
        gate.check_books()
        stopped_well = server.stop()
    assert stopped_well == 0
    assert b"request_crashed" not in server.log, server.log.decode(errors="replace")


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """The server in one process."""
    yield from _start(tmp_path_factory, 1)


@pytest.fixture(scope="session")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """The server with two gateway workers of their own."""
    yield from _start(tmp_path_factory, 2)


@pytest.fixture(params=["single", "double"])
def each(request: pytest.FixtureRequest) -> Iterator[Gate]:
    """Either server: for what passes through the worker's line."""
    yield from _at_rest(request.getfixturevalue(request.param))


@pytest.fixture
def gate(single: Gate) -> Iterator[Gate]:
    """The server in one process."""
    yield from _at_rest(single)


def _at_rest(gate: Gate) -> Iterator[Gate]:
    yield gate
    until(gate.running, lambda count: count == 0)
    until(lambda: gate.metric("stentor_open_requests"), lambda count: count == 0)
