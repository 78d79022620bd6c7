"""Kills at every named point of open, relay and close: ``python -m tests.books.kills`` strikes at all of them.

Each server, on SQLite and on PostgreSQL, alone and with workers of its own, is killed at one point after the other,
healed, and looked at: what was told, what was booked, whether the books agree, whether anything stays reserved. A table
says what was found. The ordinary tests strike at some of them (test_named_kills.py).

``kept`` says what becomes of the request that reached a point: booked whole (its group was committed), or gone without
a trace. A request that is in the middle of its answer meanwhile is always gone.
"""

import contextlib
import http.client
import json
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from stentor.store.asyncpg_dialect import Link
from tests.books.deployment import MASTER_KEY
from tests.http.harness import CHAT, Gate, price, until
from tests.postgres import Cluster
from tests.scripted_engine import script
from tests.serving import Server, gone_within, scripted_model

PROGRAM = str(Path(__file__).with_name("pointed.py"))
BALANCE = price(2_000_000, 2_000_000)
CONCURRENCY = 4
PATIENCE_S = 60.0


class Point(NamedTuple):
    """``way``: stream, whole, leave (the client leaves in mid-answer) or wait (in the queue, for a place).

    ``often``: the ordinary tests strike at it, too. ``local``: with PostgreSQL there is no such moment within a minute.
    """

    name: str
    kept: bool | None  # None: at that moment it may be committed, or not
    way: str = "stream"
    often: bool = False
    local: bool = False

    def __str__(self) -> str:
        return self.name if self.way == "stream" else f"{self.name}-{self.way}"


ALONE = (
    Point("open-asked", False),
    Point("open-reserved", False, often=True),
    Point("open-place-taken", False),
    Point("open-waiting", False, "wait", often=True),
    Point("open-granted", False, often=True),
    Point("relay-asking", False, often=True),
    Point("relay-headers", False),
    Point("relay-first-frame", False),
    Point("relay-first-frame-sent", False, often=True),
    Point("relay-midway", False, often=True),
    Point("relay-collected", False, "whole", often=True),
    Point("relay-finished", False, often=True),
    Point("close-asked", False),
    Point("close-asked", False, "leave", often=True),
    Point("close-charged-in-memory", False, often=True),
    Point("close-queued", None, often=True),
    Point("group-begun", False, often=True),
    Point("group-event-written", False, often=True),
    Point("group-charged", False, "whole", often=True),
    Point("group-committing", False, often=True),
    Point("group-committing", False, "leave"),
    Point("group-committed", True, often=True),
    Point("group-committed", True, "leave"),
    Point("group-durable", True, often=True),
    Point("close-delivered", True, "whole", often=True),
    Point("close-settled", True, often=True),
    Point("end-unsent", True, often=True),
    Point("end-sent", True, often=True),
    Point("end-sent", True, "whole"),
    Point("receipt-numbering", None),
    Point("receipt-numbered", None, often=True),
    Point("block-summing", None, often=True, local=True),
    Point("log-copying", None, local=True),
    Point("log-copied", None, local=True),
)
# What is lent to nodes, and returned: with PostgreSQL alone.
SHARED = (
    Point("borrow-begun", False),
    Point("borrow-lent", False),
    Point("borrow-committed", False, often=True),
    Point("borrow-known", False, "whole"),
    Point("return-written", None),
)
# With workers of their own: the point is reached in a worker, or in the authority.
WORKERS = (
    Point("line-open", False),
    Point("line-open-sent", False),
    Point("line-granted", False),
    Point("relay-midway", False),
    Point("line-close", False),
    Point("line-close-sent", None),
    Point("line-settled", True, often=True),
    Point("end-sent", True),
    Point("desk-open", False),
    Point("desk-granted", False),
    Point("desk-close", False),
    Point("desk-closing", None, often=True),
    Point("group-committed", True),
)


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
        self._struck = False

    def prepare(self) -> None:
        self.gate = Gate(self.server)
        self.gate.admin("POST", "/tiers", {"id": "flood", "prepaid": True, "concurrency": CONCURRENCY})
        self.user = self.gate.make_user(tier="flood", balance_nano=BALANCE)
        self.key = self.gate.make_key(self.user["id"])["key"]
        self.rated_key = self.gate.make_key(self.user["id"], limits={"requests_per_minute": 1000})["key"]

    def parts(self) -> list[psutil.Process]:
        """The gateway workers."""

        def is_worker(child: psutil.Process) -> bool:
            with contextlib.suppress(psutil.Error):  # it has just ended
                return "worker" in child.cmdline()
            return False

        return [child for child in self.server.children() if is_worker(child)]

    def wait_killed(self, parts: list[psutil.Process]) -> None:
        """Until one of ``parts`` (none: the authority) has reached the point and is gone."""
        assert self.server.process is not None
        if not parts:
            self.server.process.wait(PATIENCE_S)
        else:
            until(lambda: not all(part.is_running() for part in parts), timeout_s=PATIENCE_S)
        assert not self.arm.exists()

    @contextlib.contextmanager
    def being_struck(self) -> Iterator[None]:
        """Begin with a server that runs and has nothing to do, whatever was left by a strike that didn't go well."""
        if self._struck:
            self.arm.unlink(missing_ok=True)
            if self.server.process is not None:
                self.server.kill()
            self.server.start()
        self._struck = True
        yield
        self._struck = False

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

    def reserved(self) -> int:
        """Requests that are open, and what is lent out."""
        return int(self.gate.metric("stentor_open_requests")) + (self.leased() if self.url else 0)

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


@contextlib.contextmanager
def attacked(folder: Path, workers: int = 1, url: str = "") -> Iterator[Victim]:
    """A server to be killed."""
    victim = Victim(folder, workers, url)
    with victim.server:
        victim.prepare()
        yield victim
        assert victim.server.stop() == 0
    assert b"request_crashed" not in victim.server.log, victim.server.log.decode(errors="replace")


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
    """Strike at a server in one process."""
    with victim.being_struck():
        before, holder, asked = strike(victim, point)
        victim.wait_killed([])
        holder.wait()
        asked.wait()
        victim.heal()
        assert victim.reserved() == 0
        check_told(victim, point, before, asked)
        assert victim.events(holder.nonce) == []
        victim.check()


def run_crew(victim: Victim, point: Point) -> None:
    """Strike at a server with workers: the point is reached in one of them, or in the authority."""
    with victim.being_struck():
        _run_crew(victim, point)


def _run_crew(victim: Victim, point: Point) -> None:
    workers = victim.parts()
    before, holder, asked = strike(victim, point)
    authority = point.name.startswith(("desk-", "group-"))
    victim.wait_killed([] if authority else workers)
    if authority:
        with gone_within(PATIENCE_S, workers):
            pass
        holder.wait()
        asked.wait()
        victim.heal()
        assert victim.events(holder.nonce) == []
        check_told(victim, point, before, asked)
    else:
        asked.wait()
        holder.leave()  # it may have been with the other worker, who lives
        holder.wait()
        victim.heal()
        until(lambda: victim.gate.metric("stentor_open_requests"), lambda count: count == 0, PATIENCE_S)
        check_lost(victim, point, before, asked)
    victim.check()


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


# -- all of them -------------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A server to be struck: ``shared``: on PostgreSQL."""

    name: str
    workers: int
    shared: bool
    points: tuple[Point, ...]
    strike: Callable[[Victim, Point], None]


KINDS = (
    Kind("SQLite, one process", 1, False, ALONE, run_alone),
    Kind("SQLite, two workers", 2, False, WORKERS, run_crew),
    Kind("PostgreSQL, one process", 1, True, tuple(point for point in ALONE if not point.local) + SHARED, run_alone),
    Kind("PostgreSQL, two workers", 2, True, WORKERS, run_crew),
)


def strike_all(kind: Kind, url: str) -> int:
    """Strike at each point of a kind, and say what was found; how many were not well."""
    bad = 0
    print(f"\n{kind.name}\n{'point':32} {'kills':>5} {'identity':>9} {'reserved':>9} {'seconds':>8}", flush=True)
    with tempfile.TemporaryDirectory(prefix="stentor-kills-") as name:
        left = list(kind.points)
        while left:
            try:
                folder = Path(name, str(len(left)))
                folder.mkdir()
                with attacked(folder, kind.workers, url) as victim:
                    while left:
                        bad += not _strike_one(kind, victim, left.pop(0))
            except Exception:  # noqa: BLE001 - a server that is past healing is told of, and the rest gets another one
                traceback.print_exc()
                bad += 1
    return bad


def _strike_one(kind: Kind, victim: Victim, point: Point) -> bool:
    start_s = time.monotonic()
    problem: Exception | None = None
    try:
        kind.strike(victim, point)
    except Exception as error:  # noqa: BLE001 - told in the table
        problem = error
        victim.arm.unlink(missing_ok=True)
        traceback.print_exc()
        victim.heal()
    reserved = until(victim.reserved, lambda count: count == 0, PATIENCE_S) if problem is None else victim.reserved()
    told = "exact" if problem is None else "BROKEN"
    print(f"{point!s:32} {1:5} {told:>9} {reserved:9} {time.monotonic() - start_s:8.1f}", flush=True)
    return problem is None and reserved == 0


def main() -> int:
    """Strike at all points of all kinds; ends with 1 where anything was not well."""
    cluster = Cluster()
    try:
        bad = sum(strike_all(kind, cluster.url if kind.shared else "") for kind in KINDS)
    finally:
        cluster.remove()
    struck = sum(len(kind.points) for kind in KINDS)
    names = {str(point) for kind in KINDS for point in kind.points}
    print(f"\n{struck} kills at {len(names)} named points, {bad} not well")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
