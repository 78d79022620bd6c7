"""``kill -9`` at named points of open, relay and close: the books agree, nothing stays reserved, nobody pays twice.

At all of them, on every kind of server, ``make kills`` strikes; here is a choice.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.books.kills import ALONE, KINDS, SHARED, WORKERS, Point, Victim, attacked, run_alone, run_crew


def _params(points: tuple[Point, ...], group: str) -> list[Any]:
    mark = pytest.mark.xdist_group(group)
    return [pytest.param(point, id=str(point), marks=mark) for point in points if point.often]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with attacked(tmp_path_factory.mktemp("alone")) as victim:
        yield victim


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Victim]:
    with attacked(tmp_path_factory.mktemp("shared"), url=postgres_url) as victim:
        yield victim


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with attacked(tmp_path_factory.mktemp("crew"), workers=2) as victim:
        yield victim


@pytest.mark.parametrize("point", _params(ALONE, "kills-alone"))
def test_a_server_killed_at_a_point(alone: Victim, point: Point) -> None:
    run_alone(alone, point)


@pytest.mark.parametrize("point", _params((*SHARED, Point("group-committed", True, often=True)), "kills-shared"))
def test_a_server_on_postgresql_killed_at_a_point(shared: Victim, point: Point) -> None:
    run_alone(shared, point)


@pytest.mark.parametrize("point", _params(WORKERS, "kills-crew"))
def test_a_worker_or_its_authority_killed_at_a_point(crew: Victim, point: Point) -> None:
    run_crew(crew, point)


def test_there_are_more_than_twenty_points() -> None:
    assert len({point.name for point in ALONE if point.often}) >= 20
    assert len({str(point) for kind in KINDS for point in kind.points}) >= 40
