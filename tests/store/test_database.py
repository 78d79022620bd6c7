"""The database while all is well: groups, lanes, order, durability."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError, OperationalError

from stentor.core.errors import StoreUnavailable
from stentor.store.database import Database
from stentor.store.schema import meta
from stentor.store.settings import StoreSettings
from tests.store.house import busy_writer


def put(name: str, value: str = "x"):
    return lambda connection: connection.execute(insert(meta).values(name=name, value=value)).rowcount


def names(connection: Connection) -> list[str]:
    query = select(meta.c.name).where(meta.c.name.like("t-%")).order_by(meta.c.name)
    return list(connection.execute(query).scalars())


async def test_a_write_is_seen_by_the_next_read(database: Database) -> None:
    assert await database.write(put("t-1")) == 1
    assert await database.read(names) == ["t-1"]


async def test_a_failed_write_undoes_itself_and_no_other_of_its_group(database: Database) -> None:
    def half(connection: Connection) -> None:
        put("t-half")(connection)
        raise ValueError("no")

    async with busy_writer(database):
        writes = [asyncio.ensure_future(database.write(work)) for work in (put("t-1"), half, put("t-2"))]
        await asyncio.sleep(0)
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert results[0] == 1
    assert isinstance(results[1], ValueError)
    assert results[2] == 1
    assert await database.read(names) == ["t-1", "t-2"]


async def test_a_statement_error_is_the_callers_own(database: Database) -> None:
    await database.write(put("t-1"))
    with pytest.raises(IntegrityError):
        await database.write(put("t-1"))
    assert database.problem() is None


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises((StoreUnavailable, OperationalError)):
        await database.read(put("t-1"))
    await database.write(put("t-2"))
    assert await database.read(names) == ["t-2"]


async def test_a_lane_answers_each_item_in_its_place(database: Database) -> None:
    def work(connection: Connection, items: list[int]) -> list[int]:
        return [item * 2 for item in items]

    lane = database.lane(work)
    assert await asyncio.gather(*(lane.submit(number) for number in range(3000))) == [n * 2 for n in range(3000)]


async def test_items_that_wait_together_share_a_commit(database: Database) -> None:
    sizes: list[int] = []

    def work(connection: Connection, items: list[int]) -> list[int]:
        sizes.append(len(items))
        return items

    lane = database.lane(work)
    async with busy_writer(database):
        futures = [lane.submit(number) for number in range(50)]
    await asyncio.gather(*futures)
    assert sizes == [50]


async def test_a_bad_item_fails_alone(database: Database) -> None:
    def work(connection: Connection, items: list[str]) -> list[str]:
        for item in items:
            put(item)(connection)
        return items

    lane = database.lane(work)
    async with busy_writer(database):
        futures = [lane.submit(item) for item in ("t-1", "t-2", "t-1", "t-3")]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [str, str, IntegrityError, str]
    assert await database.read(names) == ["t-1", "t-2", "t-3"]


async def test_lanes_go_before_writes_and_writes_before_maintenance(database: Database) -> None:
    order: list[str] = []
    lane = database.lane(lambda connection, items: [order.append("lane") for _ in items])
    async with busy_writer(database):
        work = [
            asyncio.ensure_future(database.maintain(lambda _: order.append("maintenance"))),
            asyncio.ensure_future(database.write(lambda _: order.append("write"))),
        ]
        await asyncio.sleep(0)
        first = lane.submit(1)
    await asyncio.gather(first, *work)
    assert order == ["lane", "write", "maintenance"]


async def test_a_lane_tells_its_group_even_if_nobody_waits_any_more(database: Database) -> None:
    told: list[object] = []
    lane = database.lane(lambda connection, items: items, lambda items, outcome: told.append((items, outcome)))

    async def submit() -> None:
        await lane.submit("a")

    async with busy_writer(database):
        task = asyncio.ensure_future(submit())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await database.write(lambda _: None)
    assert told == [(["a"], ["a"])]


async def test_close_writes_what_is_queued(store_settings: StoreSettings, wait_until) -> None:
    database = Database.open(store_settings)
    lane = database.lane(lambda connection, items: [put(item)(connection) for item in items])
    async with busy_writer(database):
        futures = [lane.submit(f"t-{number}") for number in range(10, 20)]
        closing = asyncio.ensure_future(asyncio.to_thread(database.close))
        await wait_until(lambda: database._writer._stopping)
    await closing
    assert [await future for future in futures] == [1] * 10
    assert not list(Path(store_settings.data_dir).glob("*-wal"))
    again = Database.open(store_settings)
    assert len(await again.read(names)) == 10
    again.close()


async def test_a_closed_database_says_so(store_settings: StoreSettings) -> None:
    database = Database.open(store_settings)
    lane = database.lane(lambda connection, items: items)
    database.close()
    database.close()
    assert database.problem() is not None
    for call in (database.write(put("t-1")), database.read(names), lane.submit(1)):
        with pytest.raises(StoreUnavailable):
            await call


@pytest.mark.parametrize(("durability", "level"), [("power", 2), ("process", 1)])
async def test_durability_is_as_asked(tmp_path: Path, durability, level: int) -> None:
    database = Database.open(StoreSettings(data_dir=tmp_path, durability=durability))
    try:
        asked = await database.write(lambda c: c.exec_driver_sql("PRAGMA synchronous").scalar_one())
        mode = await database.read(lambda c: c.exec_driver_sql("PRAGMA journal_mode").scalar_one())
    finally:
        database.close()
    assert (asked, mode) == (level, "wal")


@pytest.mark.parametrize("system", ["sqlite"], indirect=True)
async def test_the_log_is_copied_back_when_nothing_happens(database: Database, wait_until) -> None:
    size = database.path.stat().st_size
    await database.write(lambda c: [put(f"t-{n}", "v" * 2000)(c) for n in range(200)])
    await wait_until(lambda: database.path.stat().st_size > size + 200 * 2000)


def test_an_up_to_date_database_opens_without_alembic(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stentor.store.database import Database;"
        "from stentor.store.settings import StoreSettings;"
        f"Database.open(StoreSettings(data_dir=Path({str(tmp_path)!r}))).close();"
        "print('alembic' in sys.modules)"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert said == ["True", "False"]
