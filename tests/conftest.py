"""What every part of the tests may ask for."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.keeper import start_keeper
from tests.postgres import shared_url
from tests.sharing import pytest_collection_finish, pytest_configure_node, pytest_xdist_make_scheduler
from tests.speech.node import install_client

__all__ = ["pytest_collection_finish", "pytest_configure_node", "pytest_xdist_make_scheduler"]

# Tests start hundreds of processes: each would compile the whole package anew where none may keep what it compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


def pytest_sessionstart() -> None:
    start_keeper()


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> str:
    """The address of a real PostgreSQL that all tests of this run share; each keeps to a schema of its own."""
    base = tmp_path_factory.getbasetemp()
    return shared_url(base if worker_id == "master" else base.parent)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder with OpenAI's client for Node.js, installed once for all tests of this run."""
    base = tmp_path_factory.getbasetemp()
    return install_client((base if worker_id == "master" else base.parent) / "node")
