"""PostgreSQL goes away under a running server, or gets slow: what is told meanwhile, and that all comes back by itself.

docs/guide/failures.md says the same in words.
"""

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.books.deployment import Deployment, deploy
from tests.books.road import Road
from tests.http.harness import Gate, price, until
from tests.postgres import Cluster
from tests.scripted_engine import script

GONE_S = 8.0
BACK_S = 60.0
STEP_S = 2  # for which the server waits in a step; a machine that is busy holds it up for a second
BOUND_S = 60.0  # an answer waits for a few steps
BALANCE = price(100_000, 100_000)

pytestmark = pytest.mark.xdist_group("books-gone")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.remove()


@pytest.fixture(scope="module")
def road(cluster: Cluster) -> Iterator[Road]:
    with Road(cluster.port) as road:
        yield road


@pytest.fixture(scope="module")
def far(road: Road, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server with two workers, whose database is at the end of the road."""
    url = f"postgresql://stentor@127.0.0.1:{road.port}/postgres"
    # What is told as done must outlive the database's own death.
    settings = {"DATABASE_TIMEOUT_S": str(STEP_S), "DURABILITY": "power"}
    with deploy(tmp_path_factory.mktemp("far"), workers=2, url=url, **settings) as made:
        yield made


class Payer:
    """A prepaid user with a key that is in use, and one that the server has never seen."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.user = gate.make_user(tier="flood", balance_nano=BALANCE)
        self.key = gate.make_key(self.user["id"])["key"]
        self.unseen = gate.make_key(self.user["id"])["key"]
        self.whole: list[str] = []
        for _ in range(8):  # every worker knows it
            self.ask()

    def ask(self, key: str = "") -> tuple[int, str]:
        """Status and error code of a short request."""
        answer = self._gate.chat("hello", key=key or self.key)
        if answer.status == 200:
            self.whole.append(answer.request_id)
            return 200, ""
        return answer.status, str(answer.json()["error"]["code"])

    def check(self) -> None:
        """What came whole is booked once, and nothing else was charged."""
        rows: list[dict[str, Any]] = self._gate.admin("GET", f"/usage?user={self.user['id']}&limit=1000")["data"]
        completed = [row["request_id"] for row in rows if row["status"] == "completed"]
        assert set(self.whole) <= set(completed)
        assert len(completed) == len(set(completed))
        assert self._gate.balance(self.user["id"]) == BALANCE - sum(row["charged_nano"] for row in rows)


@pytest.fixture
def payer(far: Deployment) -> Payer:
    return Payer(far.first)


def health(gate: Gate) -> int:
    return gate.ask("GET", "/health", key="").status


def watch(gate: Gate, payer: Payer, seconds: float) -> None:
    """While the database is away: red, and refusals that tell the truth, each in bounded time."""
    end = time.monotonic() + seconds
    unknown = "sk-" + "0" * 48
    while time.monotonic() < end:
        start = time.monotonic()
        check_red(gate, payer)
        for key in (payer.unseen, unknown, "anything"):
            assert payer.ask(key) == (503, "store_unavailable"), key
        assert gate.chat("hello", key="").status == 401  # no database is needed to know that
        listing = gate.ask("GET", "/admin/api/users", key=gate.key)
        assert listing.status == 503
        assert "database" in listing.body.decode()
        assert gate.metric("stentor_store_problem") == 1
        assert time.monotonic() - start < BOUND_S
        time.sleep(0.2)


def check_red(gate: Gate, payer: Payer) -> None:
    answer = gate.ask("GET", "/health", key="")
    assert (answer.status, answer.json()["database"]) == (503, "unavailable")
    assert payer.ask() == (503, "store_unavailable")


def come_back(far: Deployment, payer: Payer) -> None:
    """Without a restart: green, both keys work, nothing was lost or invented."""
    gate = far.first
    until(lambda: health(gate), lambda status: status == 200, BACK_S)
    until(lambda: payer.ask(), lambda told: told == (200, ""), BACK_S)
    until(lambda: payer.ask(payer.unseen), lambda told: told == (200, ""), BACK_S)
    until(lambda: payer.ask("sk-" + "0" * 48), lambda told: told == (401, "invalid_api_key"), BACK_S)
    far.check()
    payer.check()


def check_gone(far: Deployment, payer: Payer, cluster: Cluster, seconds: float) -> None:
    gate = far.first
    pid = gate.server.pid
    go = far.folder / f"go-{uuid.uuid4().hex}"
    stream = gate.open(script({"say": "one two"}, {"until": str(go)}, {"say": "three"}), key=payer.key)
    assert stream.content() == "one "
    cluster.kill()
    go.touch()
    try:
        answer = stream.answer()
        assert answer.events()[-1]["error"]["code"] == "store_unavailable"
        assert b"[DONE]" not in answer.body
        until(lambda: health(gate), lambda status: status == 503, BACK_S)
        watch(gate, payer, seconds)
    finally:
        cluster.start()
    come_back(far, payer)
    assert gate.server.pid == pid
    assert gate.find_events(answer.request_id) == []


def test_a_database_that_is_gone_for_seconds(far: Deployment, payer: Payer, cluster: Cluster) -> None:
    check_gone(far, payer, cluster, GONE_S)


@pytest.mark.soak
def test_a_database_that_is_gone_for_a_minute(far: Deployment, payer: Payer, cluster: Cluster) -> None:
    check_gone(far, payer, cluster, 60.0)


def test_a_database_that_stands_still(far: Deployment, payer: Payer, road: Road) -> None:
    gate = far.first
    road.standing = True
    try:
        start = time.monotonic()
        assert payer.ask() == (503, "store_unavailable")
        assert payer.ask(payer.unseen) == (503, "store_unavailable")
        assert time.monotonic() - start < BOUND_S
        until(lambda: health(gate), lambda status: status == 503, BACK_S)
        check_red(gate, payer)
    finally:
        road.standing = False
    come_back(far, payer)


def test_a_slow_database_makes_slow_answers_and_no_wrong_ones(far: Deployment, payer: Payer, road: Road) -> None:
    gate = far.first
    road.delay_s = 0.1
    try:
        start = time.monotonic()
        told = [payer.ask(), payer.ask(payer.unseen)]
        assert set(told) <= {(200, ""), (503, "store_unavailable")}
        assert (200, "") in told
        assert time.monotonic() - start < len(told) * BOUND_S
        road.delay_s = 2.0 * STEP_S  # slower than what a step may take
        until(lambda: payer.ask(), lambda told: told == (503, "store_unavailable"), BACK_S)
        until(lambda: health(gate), lambda status: status == 503, BACK_S)
        check_red(gate, payer)
    finally:
        road.delay_s = 0.0
    come_back(far, payer)
