"""Each kind of deployment runs once for all tests that want it, on one worker of pytest."""

from collections.abc import Iterator

import pytest

from tests.books.deployment import Deployment, deploy

# name: gateway workers, nodes, whether on PostgreSQL
KINDS = {
    "sqlite-1-worker": (1, 1, False),
    "sqlite-4-workers": (4, 1, False),
    "postgres-1-worker": (1, 1, True),
    "postgres-4-workers": (4, 1, True),
    "two-nodes": (1, 2, True),
}


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(f"books-{name}")) for name in KINDS],
)
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Real servers of each kind in turn."""
    workers, nodes, shared = KINDS[request.param]
    url = request.getfixturevalue("postgres_url") if shared else ""
    with deploy(tmp_path_factory.mktemp(request.param), workers=workers, nodes=nodes, url=url) as made:
        yield made
