"""``kill -9`` at random moments under load: what a client got whole was booked exactly once, and nothing else was.

Each run prints its seed; ``STORM_SEED`` repeats one. The victims are the server, a worker, an engine.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from tests.faults.conftest import MakeSubject
from tests.faults.storm import Storm, check_money, check_nothing_reserved, compare, prepare_books
from tests.faults.subject import PATIENT_S, Subject, Surroundings, recording_model, wait_for
from tests.serving import gone_within

INSTANCES = 2
PLACES = 5  # of each: fewer than there are clients, so that some always wait
GONE_S = 30.0  # what a server leaves behind when it is killed: a second or two, on a machine that has time
WHOLE = 50  # answers that came whole, of each raid at least
SEED = int(os.environ.get("STORM_SEED", "20261"))


class Raid:
    """A server under load, and the means to kill parts of it and to look whether all is well again."""

    def __init__(self, subject: Subject, storm: Storm, workers: int, seed: int) -> None:
        self.subject = subject
        self.storm = storm
        self.workers = workers
        self.random = random.Random(seed)
        self.finished = subject.folder / "finished"
        self.kills = 0
        self.ends: Counter[str] = Counter()

    async def run(self, victims: list[str]) -> None:
        """Kill each of ``victims`` after a random time under load; check everything after each."""
        for number, victim in enumerate(victims, 1):
            await self.storm.begin()
            await asyncio.sleep(self.random.uniform(0.15, 0.9))
            # A machine that has no time takes longer to get that far.
            await self._wait_loaded(-(-WHOLE * number // len(victims)))
            await getattr(self, f"kill_{victim}")()
            self.kills += 1
            await self.storm.hold()
            await self.check()
        await asyncio.to_thread(self.subject.wait_whole, INSTANCES, self.workers_expected)
        await check_nothing_reserved(self.subject, self.storm.key)

    async def _wait_loaded(self, whole: int) -> None:
        """Until so many answers have come whole in all, and no instance is idle."""
        async with asyncio.timeout(PATIENT_S):
            while len(self.storm.whole) < whole or await asyncio.to_thread(self._taken) <= PLACES:
                await asyncio.sleep(0.01)

    def _taken(self) -> int:
        return int(self.subject.metric("stentor_running_requests"))

    @property
    def workers_expected(self) -> int:
        return self.workers if self.workers > 1 else 0

    async def kill_server(self) -> None:
        subject = self.subject
        workers, engines = subject.workers(), subject.engines()
        assert len(engines) == INSTANCES
        assert len(workers) == self.workers_expected
        await asyncio.to_thread(subject.kill)
        await asyncio.to_thread(_gone, [*workers, *engines])
        assert await asyncio.to_thread(wait_for, lambda: not subject.place.busy_ports()), subject.place.busy_ports()
        await asyncio.to_thread(subject.start)

    async def kill_engine(self) -> None:
        # A few deaths of one instance within minutes are a crash loop: take turns.
        engines = sorted(self.subject.engines(), key=lambda process: process.cmdline()[-1])
        victim = engines[self.kills % len(engines)]
        victim.kill()
        await asyncio.to_thread(self._wait_replaced, victim.pid)

    async def kill_worker(self) -> None:
        victim = self.random.choice(self.subject.workers())
        victim.kill()
        await asyncio.to_thread(self._wait_replaced, victim.pid)

    def _wait_replaced(self, pid: int) -> None:
        # The load goes on while the server heals.
        def replaced() -> bool:
            alive = [*self.subject.workers(), *self.subject.engines()]
            return pid not in [each.pid for each in alive] and len(alive) == INSTANCES + self.workers_expected

        assert wait_for(replaced), [each.cmdline() for each in self.subject.children()]

    async def check(self) -> None:
        await asyncio.to_thread(self.subject.wait_whole, INSTANCES, self.workers_expected)
        events = await asyncio.to_thread(self._settled_events)
        self.ends = compare(self.storm, self.finished, events)
        await asyncio.to_thread(check_money, self.subject, events)

    def _settled_events(self) -> list[dict[str, Any]]:
        """All events, once nothing is open any more."""
        assert wait_for(lambda: self.subject.metric("stentor_open_requests") == 0), "requests stay open"
        return self.subject.rows("/usage")


def _gone(processes: list[psutil.Process]) -> None:
    with gone_within(GONE_S, processes):
        pass


@pytest.fixture
async def raid(make_subject: MakeSubject, place: Surroundings, request: pytest.FixtureRequest) -> AsyncIterator[Raid]:
    workers, offset = request.param
    seed = SEED + offset
    print(f"STORM_SEED={SEED} (run {offset}: {seed})")
    finished = place.folder / "finished"
    finished.touch()
    subject = make_subject(recording_model(finished, instances=INSTANCES, parallel=PLACES), GATEWAY_WORKERS=workers)
    key = await prepare_books(subject)
    await asyncio.to_thread(subject.start)
    yield Raid(subject, Storm(subject, key, seed), workers, seed)
    if subject.process is not None:
        assert await asyncio.to_thread(subject.stop) == 0


def describe(raid: Raid) -> None:
    told = Counter("whole" if each.whole else each.code or "cut" for each in raid.storm.told)
    print(f"{raid.kills} kills; clients {dict(told)}; events {dict(raid.ends)}")


@pytest.mark.parametrize("raid", [(1, 0), (2, 1)], indirect=True, ids=["1-worker", "2-workers"])
async def test_server_killed_under_load_loses_and_invents_nothing(raid: Raid) -> None:
    await raid.run(["server"] * 6)
    describe(raid)
    assert len(raid.storm.whole) >= WHOLE
    assert raid.ends["completed"] >= len(raid.storm.whole)


@pytest.mark.parametrize("raid", [(1, 2), (2, 3)], indirect=True, ids=["1-worker", "2-workers"])
async def test_engine_killed_under_load_takes_only_its_streams_along(raid: Raid) -> None:
    await raid.run(["engine"] * 4)
    describe(raid)
    assert len(raid.storm.whole) >= WHOLE
    assert raid.ends["failed engine_broke_off"] > 0


@pytest.mark.parametrize("raid", [(2, 4)], indirect=True, ids=["2-workers"])
async def test_worker_killed_under_load_is_replaced_and_owes_nothing(raid: Raid) -> None:
    await raid.run(["worker"] * 5)
    describe(raid)
    assert len(raid.storm.whole) >= WHOLE
    assert raid.ends["failed worker_lost"] > 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("raid", [(1, 10), (2, 11), (2, 12)], indirect=True)
async def test_many_kills_of_everything(raid: Raid) -> None:
    # An engine may die a few times between two starts of the server before that counts as a crash loop.
    rounds = 12 if raid.workers > 1 else 20
    victims = ["server", "engine", "engine", "worker", "engine", "worker"] if raid.workers > 1 else ["server", "engine"]
    started = time.monotonic()
    await raid.run(victims * rounds)
    describe(raid)
    print(f"{time.monotonic() - started:.0f} s")
