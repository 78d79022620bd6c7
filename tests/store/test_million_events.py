"""A million usage events: any page and any report is there at once, memory stays flat, and settling doesn't mind."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import psutil
import pytest
from sqlalchemy import text

from stentor.accounting.usage import UsageFilter, list_usage
from stentor.control.money.reports import Reports
from stentor.control.money.summing import UsageSummer
from stentor.core.clock import SystemClock
from stentor.core.ids import KeyId
from stentor.store.database import Database
from tests.store.house import USD, House

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

MILLION = 1_000_000
DAYS = 90
DAY_US = 86_400_000_000
START_US = 1_790_000_000_000_000 - 1_790_000_000_000_000 % DAY_US
STEP_US = DAYS * DAY_US // MILLION
PROMISED_S = 0.3
GROWTH_BYTES = 48_000_000
SETTLED = 1000
TRIES = 8
PIECE = 50_000  # what PostgreSQL's deadline for a step allows

# Fifty users, two hundred keys, eight models; one key that is hardly ever used, and pairs that never meet.
_SERIES = {
    "sqlite": "(WITH RECURSIVE s(i) AS "
    "(SELECT :first UNION ALL SELECT i + 1 FROM s WHERE i + 1 < :end) SELECT i FROM s)",
    "postgres": "(SELECT i FROM generate_series(CAST(:first AS bigint), CAST(:end AS bigint) - 1) AS s(i))",
}
_FILL = """
INSERT INTO usage_events (request_id, attempt, client_request_id, opened_us, settled_us, user_id, project_id, key_id,
  model, engine, endpoint, stream, input_tokens, cached_tokens, output_tokens, reasoning_tokens, audio_ms, characters,
  estimated, queued_us, latency_us, first_token_us, overhead_us, cost_nano, charged_nano, absorbed_nano, price_version,
  status, reason, billable)
SELECT 'filled-' || i, 1, NULL, {start} + i * {step} - 1000, {start} + i * {step}, 'user-' || (i % 50),
  'project-' || (i % 50), CASE WHEN i % 200000 = 77 THEN 'rare' ELSE 'key-' || (i * 7919 % 200) END,
  'model-' || (i % 8), 'llama', '/v1/chat/completions', TRUE, 100 + i % 900, i % 50, 10 + i % 300, 0, 0, 0,
  FALSE, 0, 1000, NULL, 200, 1000 * (i % 1000), 0, 0, 1,
  CASE WHEN i % 20 = 3 THEN 'failed' WHEN i % 50 = 7 THEN 'cancelled' ELSE 'completed' END, '', TRUE
FROM {series} AS n
"""

FILTERS = {
    "all": UsageFilter(),
    "user": UsageFilter(user_id="user-7"),
    "project": UsageFilter(project_id="project-7"),
    "key": UsageFilter(key_id="key-7"),
    "rare key": UsageFilter(key_id="rare"),
    "nobody's key": UsageFilter(key_id="nobody"),
    "model": UsageFilter(model="model-3"),
    "failed": UsageFilter(status="failed"),
    "user and failed": UsageFilter(user_id="user-13", status="failed"),
    "never together": UsageFilter(user_id="user-2", model="model-3"),
    "never together either": UsageFilter(user_id="user-2", status="failed"),
    "one day": UsageFilter(since_us=START_US + 40 * DAY_US, until_us=START_US + 41 * DAY_US),
    "half an hour": UsageFilter(since_us=START_US + 10 * DAY_US + 77, until_us=START_US + 10 * DAY_US + DAY_US // 48),
    "key in a month": UsageFilter(key_id="key-7", since_us=START_US + 5 * DAY_US + 9, until_us=START_US + 36 * DAY_US),
    "rare key of old": UsageFilter(key_id="rare", until_us=START_US + 9 * DAY_US + 5),
    "request": UsageFilter(request_id="filled-123456"),
}


@pytest.fixture
async def filled(house: House, system: str) -> House:
    """Books with a million events in them, summed up as the server does it."""
    start = time.monotonic()
    statement = text(_FILL.format(series=_SERIES[system], start=START_US, step=STEP_US))
    for first in range(0, MILLION, PIECE):
        numbers = {"first": first, "end": first + PIECE}
        await house.database.write(lambda connection, numbers=numbers: connection.execute(statement, numbers).rowcount)
    print(f"\n{system}: filled in {time.monotonic() - start:.1f} s")
    start = time.monotonic()
    await UsageSummer(house.database, SystemClock(), shared=False).catch_up()
    print(f"{system}: summed up in {time.monotonic() - start:.1f} s")
    return house


async def best_of(ask: Callable[[], Awaitable[object]]) -> float:
    """Seconds, of the quickest try: others use the machine, too."""
    took_s: list[float] = []
    while len(took_s) < 2 or (len(took_s) < TRIES and min(took_s) > PROMISED_S):
        start = time.monotonic()
        await ask()
        took_s.append(time.monotonic() - start)
    return min(took_s)


def pages(database: Database) -> Iterator[tuple[str, Callable[[], Awaitable[object]]]]:
    """First pages, and those after a cursor in the middle of it all."""
    for name, where in FILTERS.items():
        for before in (None, MILLION // 2 + 777):
            ask = partial(list_usage, where=where, before=before, limit=100)
            yield f"page: {name}{'' if before is None else ', from the middle'}", partial(database.read, ask)


def reports(database: Database) -> Iterator[tuple[str, Callable[[], Awaitable[object]]]]:
    """Totals by each subject, of everything and of a part."""
    reader = Reports(database)
    for by in ("day", "model", "key", "user", "project"):
        yield f"report by {by}", partial(reader.report, UsageFilter(), by)
    cut = UsageFilter(since_us=START_US + 33 * DAY_US + 12345, until_us=START_US + 66 * DAY_US + 99)
    yield "report by day, a month, cut in mid-day", partial(reader.report, cut, "day")
    yield "report by day, one key", partial(reader.report, UsageFilter(key_id="key-7"), "day")


async def test_any_page_and_any_report_is_there_at_once(filled: House) -> None:
    database = filled.database
    process = psutil.Process()
    slow = {}
    before_bytes = 0
    for round_ in range(2):
        for name, ask in (*pages(database), *reports(database)):
            took_s = await best_of(ask)
            if round_ == 0:
                print(f"  {took_s * 1000:7.1f} ms  {name}")
            if took_s > PROMISED_S:
                slow[name] = took_s
        if round_ == 0:
            before_bytes = process.memory_info().rss
    growth_bytes = process.memory_info().rss - before_bytes
    print(f"  memory grew by {growth_bytes / 1e6:.1f} MB")
    assert slow == {}
    assert growth_bytes < GROWTH_BYTES


async def settle_many(house: House, key: KeyId) -> list[float]:
    """Seconds that each of many requests took to be opened and settled."""
    took_s = []
    for _ in range(SETTLED):
        start = time.monotonic()
        await house.close(await house.open(key))
        took_s.append(time.monotonic() - start)
    return took_s


async def test_settling_does_not_mind_reports(filled: House) -> None:
    await filled.add_user("ann", USD, tier="admin")
    key = await filled.add_key("ann")
    await settle_many(filled, key)
    alone_s = await settle_many(filled, key)
    reading = [asyncio.create_task(read_on(filled.database)) for _ in range(2)]
    beside_s = await settle_many(filled, key)
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    p99_s = {}
    for name, took_s in (("alone", alone_s), ("beside reports", beside_s)):
        p99_s[name] = statistics.quantiles(took_s, n=100)[98]
        print(f"  settled {name}: median {statistics.median(took_s) * 1000:.2f} ms, p99 {p99_s[name] * 1000:.2f} ms")
    assert statistics.median(beside_s) < 2 * statistics.median(alone_s) + 0.002
    # A turn or two of the machine's processors, however many others want them.
    assert p99_s["beside reports"] < 3 * p99_s["alone"] + 0.02


async def read_on(database: Database) -> None:
    """Reports without a pause, as nobody asks for them."""
    while True:
        for _, ask in reports(database):
            await ask()
