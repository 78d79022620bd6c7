"""What the authority does by itself, as time goes by: folding old usage, and noting that it could serve.

Where several nodes share a database one of them does it, the leader.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection

from stentor.accounting.days.folding import fold_block
from stentor.accounting.days.uptime import KEEP_DAYS, UptimeDay, add_checks, list_days
from stentor.control.books import LocalBooks
from stentor.control.reading import Operation, Row, number_of
from stentor.core.clock import DAY_US, Clock
from stentor.core.errors import NotLeader, Refused, StentorError, StoreUnavailable
from stentor.core.operator import Task
from stentor.core.scheduler import Scheduler
from stentor.store.database import Database
from stentor.store.leader import Leader
from stentor.telemetry.logs import Log

FOLD_PAUSE_S = 0.05


class Retention:
    """Folds usage events older than so many days, a slice at a time; None days: keeps everything."""

    def __init__(self, leader: Leader, books: LocalBooks, clock: Clock, days: int | None) -> None:
        self._leader = leader
        self._books = books
        self._clock = clock
        self._days = days

    async def fold(self) -> int:
        """Fold all that is old enough; how many events that were."""
        if self._days is None:
            return 0
        total = 0
        while True:
            now_us = self._clock.now_us()
            before_us = now_us - now_us % DAY_US - self._days * DAY_US
            self._books.roll.changed()
            count, credited = await self._leader.maintain(
                lambda connection, before_us=before_us, now_us=now_us: fold_block(connection, before_us, now_us)  # type: ignore[misc]
            )
            for user_id, credited_nano in credited.items():
                self._books.roll.close_period(user_id, credited_nano)
            total += count
            if not count:
                return total
            await asyncio.sleep(FOLD_PAUSE_S)


class Uptime:
    """Checks once a minute whether the server can serve, and says how often it could."""

    def __init__(self, database: Database, leader: Leader, scheduler: Scheduler, clock: Clock) -> None:
        self._database = database
        self._leader = leader
        self._scheduler = scheduler
        self._clock = clock
        self._unwritten: dict[int, list[int]] = {}

    async def check(self) -> None:
        """One check. What can't be written now is written with the next one that can."""
        started_s = time.perf_counter()
        try:
            await self._database.read(lambda connection: list_days(connection, self._clock.now_us()))
            good = self._database.problem() is None
        except StoreUnavailable:
            good = False
        latency_us = int((time.perf_counter() - started_s) * 1e6)
        ready = [card for card in await self._scheduler.list_models() if card.state == "ready"]
        now_us = self._clock.now_us()
        sums = self._unwritten.setdefault(now_us - now_us % DAY_US, [0, 0, 0, 0])
        for index, amount in enumerate((1, int(good), latency_us, len(ready))):
            sums[index] += amount
        days = [UptimeDay(day_us, *sums) for day_us, sums in self._unwritten.items()]

        def write(connection: Connection) -> None:
            for day in days:
                add_checks(connection, day)

        try:
            await self._leader.maintain(write)
        except StoreUnavailable:
            return
        except NotLeader:  # whose check it is writes it down, and what it saw while the database was gone, too
            self._unwritten.clear()
            return
        self._unwritten.clear()

    def table(self) -> dict[str, Operation]:
        """The operation by name."""
        return {"get_uptime": self.get_uptime}

    async def get_uptime(self, task: Task) -> Row:
        """The last days: percent of minutes in which the server could serve."""
        asked = number_of(task.query, "days")
        days = 30 if asked is None else asked
        if not 1 <= days <= KEEP_DAYS:
            raise Refused("invalid_request", f"'days' is {days}; it must be 1 to {KEEP_DAYS}.", param="days")
        now_us = self._clock.now_us()
        today_us = now_us - now_us % DAY_US
        found = await self._database.read(lambda connection: list_days(connection, 0))
        first_us = found[0].day_us if found else today_us
        by_day = {day.day_us: day for day in found}
        wanted = [today_us - back * DAY_US for back in reversed(range(days))]
        return describe_uptime([(day_us, by_day.get(day_us)) for day_us in wanted], first_us, now_us)


def describe_uptime(days: list[tuple[int, UptimeDay | None]], first_us: int, now_us: int) -> Row:
    """Days as people read them. A minute without a check counts as one without service, from the second day on."""
    daily, good_total, expected_total = [], 0, 0
    for day_us, day in days:
        date = datetime.fromtimestamp(day_us / 1e6, UTC).strftime("%Y-%m-%d")
        if day is None and day_us < first_us:
            daily.append(_unknown(date))
            continue
        checks, good = (0, 0) if day is None else (day.checks, day.good)
        passed = min(DAY_US, now_us - day_us) // 60_000_000
        expected = max(checks, 1) if day_us == first_us else max(passed, checks, 1)
        good_total, expected_total = good_total + good, expected_total + expected
        percent = round(100 * good / expected, 2)
        daily.append(
            {
                "date": date,
                "status": "up" if percent >= 99.5 else "degraded" if percent >= 95 else "down",
                "uptime_percent": percent,
                "avg_latency_ms": round(day.latency_us / day.checks / 1000, 3) if day and day.checks else None,
                "avg_models": round(day.models / day.checks, 2) if day and day.checks else None,
            }
        )
    overall = round(100 * good_total / expected_total, 2) if expected_total else None
    return {"days": len(days), "overall_uptime_percent": overall, "daily": daily}


def _unknown(date: str) -> Row:
    return {"date": date, "status": "unknown", "uptime_percent": None, "avg_latency_ms": None, "avg_models": None}


class StoreWatch:
    """Tells the log when the database can't be written any more and why, and when it can again."""

    def __init__(self, database: Database, log: Log) -> None:
        self._database = database
        self._log = log
        self._told: str | None = None

    async def look(self) -> None:
        """One look."""
        problem = self._database.problem()
        if problem == self._told:
            return
        self._told = problem
        if problem is None:
            self._log.event("store_recovered", path=self._database.place)
        else:
            self._log.event("store_failed", level="error", message=problem, path=self._database.place)


class Job(NamedTuple):
    """Something that is done every so often; a number that it returns is how much it found to do."""

    name: str
    work: Callable[[], Awaitable[object]]
    every_s: float


class Jobs:
    """Runs all of them until it is cancelled; one that fails is told of and tried again at its next turn."""

    def __init__(self, leader: Leader, log: Log, jobs: Sequence[Job]) -> None:
        self._leader = leader
        self._log = log
        self._jobs = jobs

    async def run(self) -> None:
        """Go on for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._leader.keep(), name="leader")
            for job in self._jobs:
                group.create_task(self._repeat(job), name=job.name)

    async def _repeat(self, job: Job) -> None:
        while True:
            try:
                done = await job.work()
                if isinstance(done, int) and done:
                    self._log.event("job_done", job=job.name, count=done)
            except NotLeader:
                pass  # another node does it
            except StentorError as error:
                self._log.event("job_failed", level="warning", job=job.name, cause=error)
            except Exception as error:  # noqa: BLE001 - a defect of one job is told of; it must not end all the others
                self._log.event("job_failed", level="error", job=job.name, cause=error)
            await asyncio.sleep(job.every_s)
