"""Questions about usage are answered from sums of blocks where they can be, and exactly always."""

import itertools
import random
from collections import defaultdict
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, select

from stentor.accounting import table as accounting_table
from stentor.accounting.spans import ROLLUPS, find_next_span, finish_span, roll_up
from stentor.accounting.spans import table as span_table
from stentor.accounting.usage import (
    UsageEvent,
    UsageFilter,
    UsagePage,
    forget_block,
    list_recent,
    list_usage,
    sum_up,
    sum_up_old,
    total_usage,
)
from stentor.accounting.usage import table as usage_table
from stentor.control.money.summing import UsageSummer
from stentor.core.clock import DAY_US, SystemClock
from stentor.core.ids import new_request_id
from stentor.store.database import Database
from stentor.store.leader import Leader
from stentor.store.schema import span_sums, usage_spans

START_US = 1_800_000_000_000_000
SUBJECTS = ("user_id", "project_id", "key_id", "model", "status", "day_us")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_table, "BLOCK", 7)
    monkeypatch.setattr(span_table, "SPAN", 3)


def make_row(chance: random.Random, settled_us: int) -> tuple[Any, ...]:
    values = {name: 0 for name in accounting_table.EVENT_COLUMNS} | {
        "request_id": new_request_id(),
        "attempt": 1,
        "client_request_id": None,
        "opened_us": settled_us - chance.randrange(1000),
        "settled_us": settled_us,
        "user_id": chance.choice(["ann", "bob", "cyd"]),
        "project_id": chance.choice(["home", "work"]),
        "key_id": chance.choice(["k1", "k1", "k1", "k1", "k2", "rare"]),
        "model": chance.choice(["small", "large"]),
        "engine": "llama",
        "endpoint": "/v1/chat/completions",
        "stream": chance.random() < 0.5,
        "input_tokens": chance.randrange(100),
        "cached_tokens": chance.randrange(10),
        "output_tokens": chance.randrange(100),
        "estimated": False,
        "first_token_us": None,
        "overhead_us": None,
        "cost_nano": chance.randrange(10_000),
        "charged_nano": chance.randrange(10_000),
        "absorbed_nano": chance.randrange(10),
        "price_version": 1,
        "status": chance.choice(["completed", "completed", "failed"]),
        "reason": "",
        "billable": chance.random() < 0.8,
    }
    return tuple(values[name] for name in accounting_table.EVENT_COLUMNS)


async def write(database: Database, rows: list[tuple[Any, ...]]) -> None:
    for start in range(0, len(rows), 10):
        part = rows[start : start + 10]
        await database.write(lambda connection, part=part: accounting_table.add_events(connection, part))


async def sum_all_up(database: Database) -> int:
    count = 0
    while await database.maintain(lambda connection: sum_up(connection, None)):
        count += 1
    return count


async def roll_all_up(database: Database) -> int:
    count = 0
    while (span := await database.read(find_next_span)) is not None:
        for rollup in ROLLUPS:
            for _ in range(2):  # somebody else does it, too
                await database.maintain(partial(roll_up, span=span, rollup=rollup))
        count += await database.maintain(partial(finish_span, span=span))
    return count


async def read_all(database: Database) -> list[UsageEvent]:
    page = await database.read(lambda connection: list_usage(connection, UsageFilter(), limit=10_000))
    assert page.next is None
    return page.events


def choose_filter(chance: random.Random, events: list[UsageEvent]) -> UsageFilter:
    some = chance.choice(events)
    asked: dict[str, Any] = {
        name: getattr(some, name)
        for name in ("user_id", "project_id", "key_id", "model", "status")
        if chance.random() < 0.25
    }
    if chance.random() < 0.5:
        asked["since_us"] = chance.choice(events).settled_us + chance.choice([0, 1])
    if chance.random() < 0.5:
        asked["until_us"] = chance.choice(events).settled_us + chance.choice([0, 1])
    if chance.random() < 0.1:
        asked["request_id"] = some.request_id
    return UsageFilter(**asked)


def matches(event: UsageEvent, where: UsageFilter) -> bool:
    names = ("user_id", "project_id", "key_id", "model", "status", "request_id")
    return (
        all(getattr(where, name) in (None, getattr(event, name)) for name in names)
        and (where.since_us is None or event.settled_us >= where.since_us)
        and (where.until_us is None or event.settled_us < where.until_us)
    )


def add_up(events: list[UsageEvent], by: tuple[str, ...]) -> dict[tuple[Any, ...], list[int]]:
    sums: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * 8)
    for event in events:
        day_us = event.settled_us - event.settled_us % DAY_US
        key = tuple(day_us if name == "day_us" else getattr(event, name) for name in by)
        billable = event.input_tokens + event.output_tokens if event.billable else 0
        values = (
            1, event.input_tokens, event.cached_tokens, event.output_tokens, billable, event.cost_nano,
            event.charged_nano, event.absorbed_nano,
        )  # fmt: skip
        sums[key] = [a + b for a, b in zip(sums[key], values, strict=True)]
    return dict(sums)


async def test_every_question_has_the_answer_that_counting_gives(database: Database) -> None:
    chance = random.Random(20261)
    now_us = START_US
    for _ in range(3):
        rows = []
        for _ in range(60):
            now_us += chance.choice([0, 1, 1000, DAY_US // 20])
            rows.append(make_row(chance, now_us))
        await write(database, rows)
        await sum_all_up(database)
        await roll_all_up(database)
        if chance.random() < 0.5:
            await database.write(lambda connection: forget_block(connection, START_US + DAY_US))
        await write(database, [make_row(chance, now_us) for _ in range(chance.randrange(12))])
        events = await read_all(database)
        assert [event.id for event in events] == sorted((event.id for event in events), reverse=True)
        for _ in range(25):
            await ask_once(database, chance, events)
        since_us = chance.choice(events).settled_us
        recent = await database.read(partial(list_recent, user_id="ann", since_us=since_us))
        assert len(recent) == sum(event.user_id == "ann" and event.settled_us >= since_us for event in events)


async def ask_once(database: Database, chance: random.Random, events: list[UsageEvent]) -> None:
    where = choose_filter(chance, events)
    expected = [event for event in events if matches(event, where)]
    seen: list[UsageEvent] = []
    page = UsagePage([], 0)
    limit = chance.choice([1, 3, 50])
    while page.next is not None:
        page = await database.read(partial(list_usage, where=where, before=page.next or None, limit=limit))
        seen += page.events
    assert seen == expected, where
    by = tuple(chance.sample(SUBJECTS, chance.randrange(4)))
    totals = await database.read(partial(total_usage, where=where, by=by))
    found = {total.subjects: [getattr(total, name) for name in usage_table.SUMS] for total in totals}
    assert found == (add_up(expected, by) or ({} if by else {(): [0] * 8})), (where, by)


async def test_only_full_blocks_are_summed_up_and_once(database: Database) -> None:
    chance = random.Random(1)
    await write(database, [make_row(chance, START_US) for _ in range(6)])
    assert await sum_all_up(database) == 0
    await write(database, [make_row(chance, START_US) for _ in range(9)])
    assert await sum_all_up(database) == 2
    assert await sum_all_up(database) == 0


async def test_young_events_are_left_alone_where_others_may_come_late(database: Database) -> None:
    chance = random.Random(1)
    await write(database, [make_row(chance, START_US + number) for number in range(8)])
    assert not await database.maintain(lambda connection: sum_up(connection, START_US + 6))
    assert await database.maintain(lambda connection: sum_up(connection, START_US + 7))


async def test_old_blocks_are_forgotten_whole_with_what_they_charged(database: Database) -> None:
    chance = random.Random(2)
    await write(database, [make_row(chance, START_US + number) for number in range(30)])
    await sum_all_up(database)
    before = await read_all(database)
    charged: dict[str, int] = defaultdict(int)
    while True:
        charges = await database.write(lambda connection: forget_block(connection, START_US + 20))
        if charges is None:
            break
        for user, amount in charges.items():
            charged[user] += amount
    left = await read_all(database)
    gone = before[len(left) :]
    assert len(gone) == 14  # two blocks of seven; the third ends with the event of the 21st microsecond
    assert left == before[: len(left)]
    assert charged == {key[0]: sums[6] for key, sums in add_up(gone, ("user_id",)).items()}
    await write(database, [make_row(chance, START_US + 99) for _ in range(7)])
    await sum_all_up(database)
    (total,) = await database.read(lambda connection: total_usage(connection, UsageFilter()))
    assert total.events == len(left) + 7


async def forget_all(database: Database, before_us: int) -> int:
    count = 0
    while await database.write(lambda connection: forget_block(connection, before_us)) is not None:
        count += 1
    return count


async def test_the_newest_event_stays_so_that_no_id_is_given_out_again(database: Database) -> None:
    chance = random.Random(3)
    await write(database, [make_row(chance, START_US) for _ in range(14)])
    await sum_all_up(database)
    assert await forget_all(database, START_US + 1) == 1
    assert await sum_all_up(database) == 0
    newest = (await read_all(database))[0].id
    await write(database, [make_row(chance, START_US)])
    assert await forget_all(database, START_US + 1) == 1  # nothing is in a block any more
    assert [event.id for event in await read_all(database)] == [newest + 1]
    assert not await database.write(lambda connection: sum_up_old(connection, START_US + 1))
    await write(database, [make_row(chance, START_US) for _ in range(6)])
    assert await sum_all_up(database) == 1
    (total,) = await database.read(lambda connection: total_usage(connection, UsageFilter()))
    assert total.events == len(await read_all(database)) == 7


async def test_few_events_become_a_block_when_they_are_old(database: Database) -> None:
    chance = random.Random(20261)
    await write(database, [make_row(chance, START_US + number) for number in range(5)])
    assert not await database.write(lambda connection: sum_up_old(connection, START_US))
    assert await database.write(lambda connection: sum_up_old(connection, START_US + 3))
    assert not await database.write(lambda connection: sum_up_old(connection, START_US + 3))
    for _ in range(10):
        await ask_once(database, chance, await read_all(database))
    assert await forget_all(database, START_US + 3) == 1
    assert [event.settled_us - START_US for event in await read_all(database)] == [4, 3]
    now_us = START_US + 5
    for _ in range(5):
        await write(database, [make_row(chance, now_us + number) for number in range(chance.randrange(1, 12))])
        await sum_all_up(database)
        for _ in range(10):
            await ask_once(database, chance, await read_all(database))
        await database.write(partial(sum_up_old, settled_before_us=now_us))
        await forget_all(database, now_us)
        now_us += 20


async def test_a_span_is_made_of_whole_blocks_and_goes_with_the_first_of_them(database: Database) -> None:
    chance = random.Random(5)
    await write(database, [make_row(chance, START_US + number) for number in range(7 * 8)])
    await sum_all_up(database)
    assert await roll_all_up(database) == 2
    assert await roll_all_up(database) == 0
    everything = await read_all(database)
    for by in ((), ("key_id",), ("day_us", "model"), ("user_id", "model")):
        totals = await database.read(partial(total_usage, where=UsageFilter(), by=by))
        found = {total.subjects: [getattr(total, name) for name in usage_table.SUMS] for total in totals}
        assert found == add_up(everything, by)
    assert await database.write(lambda connection: forget_block(connection, START_US + 10)) is not None
    left = await read_all(database)
    assert len(left) == len(everything) - 7
    (total,) = await database.read(lambda connection: total_usage(connection, UsageFilter()))
    assert total.events == len(left)
    assert await count_spans(database) == {1}


async def test_a_span_that_loses_a_block_while_it_is_made_never_counts(database: Database) -> None:
    chance = random.Random(6)
    await write(database, [make_row(chance, START_US + number) for number in range(7 * 4)])
    await sum_all_up(database)
    span = await database.read(find_next_span)
    await database.maintain(partial(roll_up, span=span, rollup=("key_id",)))
    (total,) = await database.read(lambda connection: total_usage(connection, UsageFilter()))
    assert total.events == 28
    await database.write(lambda connection: forget_block(connection, START_US + 10))
    await database.maintain(partial(roll_up, span=span, rollup=("model",)))
    assert not await database.maintain(partial(finish_span, span=span))
    for by in ("key_id", "model"):
        totals = await database.read(partial(total_usage, where=UsageFilter(), by=(by,)))
        assert sum(total.events for total in totals) == 21
    assert await count_spans(database) == set()


async def count_spans(database: Database) -> set[int]:
    """The spans of which anything is kept."""

    def read(connection: Connection) -> set[int]:
        made = connection.execute(select(usage_spans.c.span)).scalars()
        summed = connection.execute(select(span_sums.c.span)).scalars()
        return {*made, *summed}

    return await database.read(read)


async def test_the_job_catches_up(database: Database) -> None:
    chance = random.Random(4)
    await write(database, [make_row(chance, START_US) for _ in range(40)])
    await UsageSummer(Leader(database, "jobs"), SystemClock(), shared=False).catch_up()
    assert await sum_all_up(database) == 0
    counts = await database.read(lambda connection: total_usage(connection, UsageFilter(), ("key_id",)))
    assert sum(total.events for total in counts) == 40


def test_blocks_know_every_subject_that_can_be_asked_for() -> None:
    fields = set(UsageFilter.__struct_fields__) - {"since_us", "until_us", "request_id"}
    assert fields == set(usage_table.SUBJECTS)
    assert len(set(itertools.chain(usage_table.SUBJECTS, usage_table.SUMS))) == 13
