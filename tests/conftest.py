"""What every part of the tests may ask for."""

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import shared_url

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> str:
    """The address of a real PostgreSQL that all tests of this run share; each keeps to a schema of its own."""
    base = tmp_path_factory.getbasetemp()
    return shared_url(base if worker_id == "master" else base.parent)
