"""``kill -9`` at each named point of open, relay and close: the books agree, nothing stays reserved, nobody pays twice.

``kept`` says what becomes of the request that reached the point: booked whole (its group was committed), or gone
without a trace. A request that is in the middle of its answer meanwhile is always gone.
"""

import contextlib
import http.client
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from stentor.store.asyncpg_dialect import Link
from tests.books.deployment import MASTER_KEY
from tests.http.harness import CHAT, Gate, price, until
from tests.scripted_engine import script
from tests.serving import Server, gone_within, scripted_model

PROGRAM = str(Path(__file__).with_name("pointed.py"))
BALANCE = price(2_000_000, 2_000_000)
CONCURRENCY = 4
PATIENCE_S = 60.0


class Point(NamedTuple):
    """``way``: stream, whole, leave (the client leaves in mid-answer) or wait (in the queue, for a place)."""

    name: str
    kept: bool | None  # None: at that moment it may be committed, or not
    way: str = "stream"
    soak: bool = False

    def __str__(self) -> str:
        return self.name if self.way == "stream" else f"{self.name}-{self.way}"


ALONE = (
    Point("open-asked", False, soak=True),
    Point("open-reserved", False),
    Point("open-place-taken", False, soak=True),
    Point("open-waiting", False, "wait"),
    Point("open-granted", False),
    Point("relay-asking", False),
    Point("relay-headers", False, soak=True),
    Point("relay-first-frame", False, soak=True),
    Point("relay-first-frame-sent", False),
    Point("relay-midway", False),
    Point("relay-collected", False, "whole"),
    Point("relay-finished", False),
    Point("close-asked", False, soak=True),
    Point("close-asked", False, "leave"),
    Point("close-charged-in-memory", False),
    Point("close-queued", None),
    Point("group-begun", False),
    Point("group-event-written", False),
    Point("group-charged", False, "whole"),
    Point("group-committing", False),
    Point("group-committing", False, "leave", soak=True),
    Point("group-committed", True),
    Point("group-committed", True, "leave", soak=True),
    Point("group-durable", True),
    Point("close-delivered", True, "whole"),
    Point("close-settled", True),
    Point("end-unsent", True),
    Point("end-sent", True),
    Point("end-sent", True, "whole", soak=True),
    Point("receipt-numbering", None, soak=True),
    Point("receipt-numbered", None),
    Point("block-summing", None),
    Point("log-copying", None, soak=True),
    Point("log-copied", None, soak=True),
)
SHARED = (
    Point("borrow-begun", False, soak=True),
    Point("borrow-lent", False, soak=True),
    Point("borrow-committed", False),
    Point("borrow-known", False, "whole", soak=True),
    Point("relay-midway", False),
    Point("group-event-written", False, soak=True),
    Point("group-charged", False),
    Point("group-committing", False, soak=True),
    Point("group-committed", True),
    Point("close-settled", True, soak=True),
    Point("return-written", None, soak=True),
)
# With workers of their own: the point is reached in a worker, or in the authority.
WORKERS = (
    Point("line-open", False, soak=True),
    Point("line-open-sent", False, soak=True),
    Point("line-granted", False),
    Point("relay-midway", False, soak=True),
    Point("line-close", False, soak=True),
    Point("line-close-sent", None, soak=True),
    Point("line-settled", True),
    Point("end-sent", True, soak=True),
    Point("desk-open", False, soak=True),
    Point("desk-granted", False),
    Point("desk-close", False, soak=True),
    Point("desk-closing", None),
    Point("group-committed", True),
)


def _params(points: tuple[Point, ...], group: str) -> list[Any]:
    marks = [pytest.mark.xdist_group(group)]
    return [
        pytest.param(point, id=str(point), marks=[*marks, pytest.mark.soak] if point.soak else marks)
        for point in points
    ]


class Asked:
    """A request on a thread of its own, and how much of its answer came."""

    def __init__(
        self,
        victim: "Victim",
        *do: dict[str, Any],
        model: str = "scripted",
        stream: bool = True,
        borrows: bool = False,
    ) -> None:
        self.nonce = uuid.uuid4().hex
        self.whole = False
        self.frames = 0
        self._stream = stream
        self._connection = victim.server.connect(PATIENCE_S)
        fields = {"model": model, "messages": [{"role": "user", "content": script(*do)}], "max_tokens": 100}
        self._body = json.dumps({**fields, "stream": stream})
        # Requests of a minute are borrowed one by one: each asks the database first.
        key = victim.rated_key if borrows else victim.key
        self._headers = {"Authorization": f"Bearer {key}", "x-client-request-id": self.nonce}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._connection.request("POST", CHAT, self._body, self._headers)
            response = self._connection.getresponse()
            assert response.status == 200 or response.status == 503, response.status
            if not self._stream:
                self.whole = bool(response.status == 200 and json.loads(response.read())["choices"])
                return
            while line := response.readline():
                self.frames += line.startswith(b"data: {")
                self.whole = self.whole or line == b"data: [DONE]\n"

    def leave(self) -> None:
        """Hang up."""
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def wait(self) -> None:
        """Until nothing more comes."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self._connection.close()


class Victim:
    """The server with points, and a prepaid user's key."""

    def __init__(self, folder: Path, workers: int, url: str) -> None:
        self.arm = folder / "arm"
        self.workers = workers
        self.schema = f"kills_{uuid.uuid4().hex[:12]}"
        settings = {"GATEWAY_WORKERS": str(workers), "DURABILITY": "process", "HF_ENDPOINT": "http://127.0.0.1:9"}
        settings["MASTER_KEY"] = MASTER_KEY
        self.url = url
        if url:
            settings |= {"DATABASE_URL": url, "DATABASE_SCHEMA": self.schema, "DATABASE_POOL_SIZE": "2"}
        models = "\n".join([scripted_model(), scripted_model("narrow", parallel=1, preload=False)])
        self.server = Server(folder, models, "--admin-key", slots=2, **settings)
        self.server.program = (PROGRAM, str(self.arm))

    def prepare(self) -> None:
        self.gate = Gate(self.server)
        self.gate.admin("POST", "/tiers", {"id": "flood", "prepaid": True, "concurrency": CONCURRENCY})
        self.user = self.gate.make_user(tier="flood", balance_nano=BALANCE)
        self.key = self.gate.make_key(self.user["id"])["key"]
        self.rated_key = self.gate.make_key(self.user["id"], limits={"requests_per_minute": 1000})["key"]

    def parts(self) -> list[psutil.Process]:
        """The authority, or the gateway workers."""
        children = self.server.children()
        return [child for child in children if "worker" in child.cmdline()]

    def wait_killed(self, parts: list[psutil.Process]) -> None:
        """Until one of ``parts`` (none: the authority) has reached the point and is gone."""
        assert self.server.process is not None
        if not parts:
            self.server.process.wait(PATIENCE_S)
        else:
            until(lambda: not all(part.is_running() for part in parts), timeout_s=PATIENCE_S)
        assert not self.arm.exists()

    def heal(self) -> None:
        """Afterwards all of it runs."""
        server = self.server
        assert server.process is not None
        if server.process.poll() is not None:
            server.kill()
            server.start()
        elif self.workers > 1:
            until(lambda: len(self.parts()), lambda count: count == self.workers, PATIENCE_S)
        until(lambda: self.gate.operate("GET", "/health").status, lambda status: status == 200, PATIENCE_S)

    def leased(self) -> int:
        """What nodes have borrowed, over all buckets."""
        link = Link.open({"dsn": self.url}, 30.0)
        try:
            rows = link.fetch(f"SELECT coalesce(sum(abs(leased)), 0)::bigint FROM {self.schema}.bucket", ())[1]
            return int(rows[0][0])
        finally:
            link.close()

    def events(self, nonce: str) -> list[dict[str, Any]]:
        """All events of a client's request."""
        rows = self.gate.admin("GET", "/usage?limit=1000")["data"]
        return [row for row in rows if row["client_request_id"] == nonce]

    def check(self) -> None:
        """The books agree with themselves, with the balance, and nothing is reserved."""
        self.gate.check_books()
        assert self.gate.metric("stentor_open_requests") == 0
        rows = self.gate.admin("GET", f"/usage?user={self.user['id']}&limit=1000")["data"]
        attempts = [(row["request_id"], row["attempt"]) for row in rows]
        assert len(attempts) == len(set(attempts))
        assert self.gate.balance(self.user["id"]) == BALANCE - sum(row["charged_nano"] for row in rows)
        together = [Asked(self, {"sleep": 0.05}, {"tokens": 1}) for _ in range(CONCURRENCY)]
        for asked in together:
            asked.wait()
        assert [asked.whole for asked in together] == [True] * CONCURRENCY
        self.gate.check_books()


def _victim(tmp_path_factory: pytest.TempPathFactory, name: str, workers: int = 1, url: str = "") -> Iterator[Victim]:
    victim = Victim(tmp_path_factory.mktemp(name), workers, url)
    with victim.server:
        victim.prepare()
        yield victim
        assert victim.server.stop() == 0
    assert b"request_crashed" not in victim.server.log, victim.server.log.decode(errors="replace")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    yield from _victim(tmp_path_factory, "alone")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Victim]:
    yield from _victim(tmp_path_factory, "shared", url=postgres_url)


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    yield from _victim(tmp_path_factory, "crew", workers=2)


def strike(victim: Victim, point: Point) -> tuple[Asked, Asked, Asked]:
    """Have a request reach the point while another is in mid-answer; both, and one that ended well before."""
    victim.arm.unlink(missing_ok=True)
    before = Asked(victim, {"tokens": 2})
    before.wait()
    model = "narrow" if point.way == "wait" else "scripted"
    holder = Asked(victim, {"tokens": 3}, {"hang": True}, model=model)
    until(lambda: holder.frames >= 3, timeout_s=PATIENCE_S)
    steps = [{"tokens": 12, "delay_s": 0.01}, *([{"hang": True}] if point.way == "leave" else [])]
    fresh = victim.arm.with_suffix(".new")
    fresh.write_text(point.name)
    fresh.rename(victim.arm)
    borrows = point.name.startswith("borrow")
    asked = Asked(victim, *steps, model=model, stream=point.way != "whole", borrows=borrows)
    if point.way == "leave":
        until(lambda: asked.frames >= 5, timeout_s=PATIENCE_S)
        asked.leave()
    return before, holder, asked


def check_told(victim: Victim, point: Point, before: Asked, asked: Asked) -> None:
    """What a client got whole was booked once; what was cut was booked only if that was durable before."""
    assert before.whole
    assert [event["status"] for event in victim.events(before.nonce)] == ["completed"]
    events = victim.events(asked.nonce)
    status = "cancelled" if point.way == "leave" else "completed"
    if asked.whole:
        assert [event["status"] for event in events] == ["completed"]
    elif point.kept is None:
        assert [event["status"] for event in events] in ([], [status])
    else:
        assert [event["status"] for event in events] == [status] * point.kept


def run_alone(victim: Victim, point: Point) -> None:
    before, holder, asked = strike(victim, point)
    victim.wait_killed([])
    holder.wait()
    asked.wait()
    victim.heal()
    if victim.url:
        assert victim.leased() == 0
    check_told(victim, point, before, asked)
    assert victim.events(holder.nonce) == []
    victim.check()


@pytest.mark.parametrize("point", _params(ALONE, "kills-alone"))
def test_a_server_killed_at_a_point(alone: Victim, point: Point) -> None:
    run_alone(alone, point)


@pytest.mark.parametrize("point", _params(SHARED, "kills-shared"))
def test_a_server_on_postgresql_killed_at_a_point(shared: Victim, point: Point) -> None:
    run_alone(shared, point)


@pytest.mark.parametrize("point", _params(WORKERS, "kills-crew"))
def test_a_worker_or_its_authority_killed_at_a_point(crew: Victim, point: Point) -> None:
    workers = crew.parts()
    before, holder, asked = strike(crew, point)
    authority = point.name.startswith(("desk-", "group-"))
    crew.wait_killed([] if authority else workers)
    if authority:
        with gone_within(PATIENCE_S, workers):
            pass
        holder.wait()
        asked.wait()
        crew.heal()
        assert crew.events(holder.nonce) == []
        check_told(crew, point, before, asked)
    else:
        asked.wait()
        holder.leave()  # it may have been with the other worker, who lives
        holder.wait()
        crew.heal()
        until(lambda: crew.gate.metric("stentor_open_requests"), lambda count: count == 0, PATIENCE_S)
        check_lost(crew, point, before, asked)
    crew.check()


def check_lost(victim: Victim, point: Point, before: Asked, asked: Asked) -> None:
    """As for a server; but what a lost worker had open is on record, at no cost."""
    assert [event["status"] for event in victim.events(before.nonce)] == ["completed"]
    events = victim.events(asked.nonce)
    lost = [event for event in events if event["reason"] == "worker_lost"]
    assert all(event["cost_nano"] == 0 for event in lost)
    done = [event["status"] for event in events if event not in lost]
    if asked.whole or point.kept:
        assert (done, lost) == (["completed"], [])
    elif point.kept is None:
        assert len(events) <= 1
    else:
        assert done == []
        assert len(lost) <= 1


def test_there_are_more_than_twenty_points() -> None:
    assert len({point.name for point in ALONE if not point.soak}) >= 20
