"""What every part of the tests may ask for."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import shared_url
from tests.speech.node import install_client

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> str:
    """The address of a real PostgreSQL that all tests of this run share; each keeps to a schema of its own."""
    base = tmp_path_factory.getbasetemp()
    return shared_url(base if worker_id == "master" else base.parent)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with OpenAI's client for Node.js, installed once."""
    return install_client(tmp_path_factory.mktemp("node"))
