"""What is done as time goes by: usage folded away, uptime noted."""

import asyncio
from typing import Any

import pytest

from stentor.accounting.usage import UsageFilter, sum_up
from stentor.audit.log import Actor
from stentor.control.jobs import Job, Jobs, Retention, Uptime
from stentor.control.money.reports import Reports
from stentor.core.operator import Task
from stentor.people.values import KeyLimits
from stentor.store.leader import Leader
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings

USD = 1_000_000_000
DAY_S = 86_400
OPERATOR = Actor("tester", "cli")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stentor.accounting.usage.table.BLOCK", 2)


async def fold(house, days: int | None) -> int:
    """Sum up what there is, then fold what is older."""
    while await house.database.maintain(lambda connection: sum_up(connection, None)):
        pass
    return await Retention(Leader(house.database, "jobs"), house.books, house.clock, days).fold()


@pytest.fixture
async def ann(house) -> str:
    await house.set_tier("payg", prepaid=True)
    await house.add_user("ann", USD)
    return "ann"


async def events(house) -> int:
    return len((await house.management.list_usage(UsageFilter(), limit=1000)).events)


async def test_old_usage_is_folded_and_the_books_still_agree(house, ann) -> None:
    key = await house.add_key(ann, limits=KeyLimits(token_limit=10_000, spending_limit_nano=USD))
    project = (await house.management.list_projects(user=ann))[0].id
    await house.management.set_budget(OPERATOR, project, "none", USD)
    spent = 0
    for _ in range(3):
        for _ in range(4):
            spent += (await house.close(await house.open(key))).cost_nano
        house.clock.advance(DAY_S)
    before = await house.balance(ann)
    meter = house.books.roll.keys[key].user.balance
    free = meter.left()
    reports = Reports(house.database)
    by_day = await reports.report(UsageFilter(user_id=ann), "day")
    assert await fold(house, 1) == 8
    assert await fold(house, 1) == 0
    assert await events(house) == 4
    assert await house.balance(ann) == before == USD - spent
    assert meter.left() == free
    await house.check()
    assert await reports.report(UsageFilter(user_id=ann), "day") == by_day
    assert sum(row.cost_nano for row in (await reports.report(UsageFilter(), "model"))[0]) == spent
    # What was folded still counts against what is for ever, after a restart, too.
    await house.start_books()
    await house.close(await house.open(key))
    await house.check()
    account = house.books.roll.keys[key]
    assert account.quota.used == 13 * 20
    assert account.spending.used == spent + spent // 12
    assert await house.balance(ann) == before - spent // 12


async def test_folding_goes_on_while_requests_are_settled(house, ann) -> None:
    key = await house.add_key(ann)
    for _ in range(20):
        await house.close(await house.open(key))
    house.clock.advance(5 * DAY_S)
    running = [await house.open(key) for _ in range(10)]
    assert await fold(house, 2) == 18  # the newest event stays, and so does its block
    await house.management.top_up(OPERATOR, ann, 5)
    for grant in running:
        await house.close(grant)
    await house.check()
    account = house.books.roll.keys[key]
    assert account.user.balance.held == 0
    assert account.user.balance.left() >= 0


async def test_an_account_read_before_memory_hears_of_a_folding_is_no_richer(house, ann) -> None:
    key = await house.add_key(ann)
    for _ in range(5):
        await house.close(await house.open(key))
    house.clock.advance(5 * DAY_S)
    await house.start_books()
    real = house.database.maintain

    async def maintain(work: Any) -> Any:
        result = await real(work)
        await house.books.roll.find(key)
        return result

    house.database.maintain = maintain
    assert await fold(house, 1) == 4
    await house.management.top_up(OPERATOR, ann, 5)
    assert house.books.roll.keys[key].user.balance.left() == await house.balance(ann)
    await house.check()


async def test_a_servers_few_events_are_folded_as_well(house, ann, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stentor.accounting.usage.table.BLOCK", 2000)
    key = await house.add_key(ann, limits=KeyLimits(token_limit=10_000))
    for _ in range(2):
        for _ in range(3):
            await house.close(await house.open(key))
        house.clock.advance(3 * DAY_S)
    reports = Reports(house.database)
    by_day = await reports.report(UsageFilter(user_id=ann), "day")
    balance = await house.balance(ann)
    assert await fold(house, 4) == 3
    assert await events(house) == 3
    house.clock.advance(3 * DAY_S)
    assert await fold(house, 4) == 2
    assert await fold(house, 4) == 0
    assert await events(house) == 1  # the newest
    assert await house.balance(ann) == balance
    await house.check()
    assert await reports.report(UsageFilter(user_id=ann), "day") == by_day
    await house.close(await house.open(key))
    assert await events(house) == 2
    assert await fold(house, 4) == 1
    await house.check()


async def test_without_the_setting_everything_is_kept(house, ann) -> None:
    await house.close(await house.open(await house.add_key(ann)))
    house.clock.advance(1000 * DAY_S)
    assert await fold(house, None) == 0
    assert await events(house) == 1


class Ready:
    async def list_models(self) -> list[object]:
        return []


async def test_uptime_by_day(house) -> None:
    uptime = Uptime(house.database, Leader(house.database, "jobs"), Ready(), house.clock)  # type: ignore[arg-type]
    to_midnight = DAY_S - (house.clock.now_us() // 1_000_000) % DAY_S
    house.clock.advance(to_midnight + 60)
    for _ in range(10):
        await uptime.check()
        house.clock.advance(60)
    answer = await uptime.get_uptime(Task("x", "api", {"days": "2"}))
    assert [day["status"] for day in answer["daily"]] == ["unknown", "up"]
    assert answer["overall_uptime_percent"] == 100
    house.clock.advance(DAY_S)
    for _ in range(5):
        await uptime.check()
    answer = await uptime.get_uptime(Task("x", "api", {"days": "3"}))
    assert [day["status"] for day in answer["daily"]] == ["unknown", "up", "down"]
    assert answer["daily"][2]["avg_latency_ms"] >= 0
    assert answer["daily"][1]["avg_models"] == 0
    assert answer["overall_uptime_percent"] < 100


async def test_uptime_is_kept_for_ninety_days(house) -> None:
    uptime = Uptime(house.database, Leader(house.database, "jobs"), Ready(), house.clock)  # type: ignore[arg-type]
    for _ in range(95):
        await uptime.check()
        house.clock.advance(DAY_S)
    answer = await uptime.get_uptime(Task("x", "api", {"days": "90"}))
    assert len(answer["daily"]) == 90
    count = await house.database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM uptime").scalar_one())
    assert count == 91


async def test_a_defect_of_one_job_ends_neither_it_nor_the_others(house, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []
    both = asyncio.Event()

    async def break_down() -> None:
        tries.append("broken")
        async with asyncio.TaskGroup() as group:
            group.create_task(_fail())

    async def work() -> int:
        tries.append("sound")
        if tries.count("broken") > 1 and tries.count("sound") > 1:
            both.set()
        return 0

    log = Log(TelemetrySettings(log_level="INFO"), fd=-1)
    told: list[tuple[str, Any]] = []
    monkeypatch.setattr(log, "event", lambda name, **fields: told.append((name, fields.get("job"))))
    jobs = Jobs(Leader(house.database, "jobs"), log, [Job("bad", break_down, 0.01), Job("good", work, 0.01)])
    running = asyncio.create_task(jobs.run())
    waiting = asyncio.create_task(both.wait())
    try:
        await asyncio.wait((running, waiting), timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert both.is_set()
        assert ("job_failed", "bad") in told
    finally:
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        log.close()


async def _fail() -> None:
    raise ZeroDivisionError
