"""The database in trouble: what is said, what is kept, and how it comes back by itself."""

import asyncio
import contextlib
import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select

from stentor.core.errors import StoreUnavailable
from stentor.store.database import Database
from stentor.store.schema import meta
from stentor.store.settings import StoreSettings


@pytest.fixture
def system() -> str:
    """Files, and their locks, are SQLite's."""
    return "sqlite"


def put(name: str, value: str = "x"):
    return lambda connection: connection.execute(insert(meta).values(name=name, value=value)).rowcount


def names(connection: Connection) -> list[str]:
    query = select(meta.c.name).where(meta.c.name.like("t-%")).order_by(meta.c.name)
    return list(connection.execute(query).scalars())


def pragma(text: str):
    return lambda connection: connection.exec_driver_sql(f"PRAGMA {text}") and None


async def test_a_locked_database_is_named_and_comes_back(database: Database, foreign, wait_until) -> None:
    lane = database.lane(lambda connection, items: [put(item)(connection) for item in items])
    await database.write(put("t-0"))
    other = foreign(database.path)
    other.run("BEGIN IMMEDIATE")
    results = await asyncio.gather(
        *(lane.submit(f"t-lane-{n}") for n in range(5)), database.write(put("t-write")), return_exceptions=True
    )
    assert all(isinstance(result, StoreUnavailable) for result in results), results
    assert "another process holds the database locked" in str(results[0])
    assert database.problem() == "another process holds the database locked"
    assert await database.read(names) == ["t-0"]
    other.run("COMMIT")
    await wait_until(lambda: database.problem() is None)
    assert await lane.submit("t-1") == 1
    assert await database.read(names) == ["t-0", "t-1"]


async def test_those_who_come_while_it_is_locked_hear_soon(store_settings: StoreSettings, foreign) -> None:
    patient = StoreSettings(data_dir=store_settings.data_dir, durability="process", busy_timeout_s=1.5)
    database = Database.open(patient)
    try:
        foreign(database.path).run("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            await database.write(put("t-1"))
        took_s: list[float] = []
        while len(took_s) < 5 and min(took_s, default=1.2) >= 1.2:  # a busy machine may hold one up
            start = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await database.write(put("t-2"))
            took_s.append(time.monotonic() - start)
        assert min(took_s) < 1.2, took_s
    finally:
        database.close()


async def test_a_full_disk_fails_the_group_and_is_over_when_there_is_room(database: Database, wait_until) -> None:
    pages = await database.read(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar_one())
    await database.write(pragma(f"max_page_count={pages}"))
    lane = database.lane(lambda connection, items: [put(item, "v" * 6000)(connection) for item in items])
    results = await asyncio.gather(*(lane.submit(f"t-{n}") for n in range(20)), return_exceptions=True)
    assert all(isinstance(result, StoreUnavailable) for result in results)
    assert "the disk is full" in str(results[0])
    assert await database.read(names) == []
    await database.write(pragma("max_page_count=1000000"))
    await wait_until(lambda: database.problem() is None)
    assert await asyncio.gather(*(lane.submit(f"t-{n}") for n in range(20))) == [1] * 20


async def test_a_read_only_database_is_named_and_comes_back_on_a_new_connection(database: Database, wait_until) -> None:
    await database.write(pragma("query_only=ON"))
    with pytest.raises(StoreUnavailable, match="read-only"):
        await database.write(put("t-1"))
    await wait_until(lambda: database.problem() is None)
    await database.write(put("t-2"))
    assert await database.read(names) == ["t-2"]


@pytest.mark.parametrize("replaced", [False, True], ids=["moved away", "another in its place"])
async def test_nothing_is_written_into_a_file_that_is_gone(
    database: Database, wait_until, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    monkeypatch.setattr("stentor.store.writer.LOOK_S", 0.0)
    await database.write(put("t-0"))
    folder, elsewhere = database.path.parent, database.path.parent.with_name("elsewhere")
    folder.rename(elsewhere)
    if replaced:
        folder.mkdir()
        database.path.touch()
    async with asyncio.timeout(30):  # the writer looks when it wakes up; what finds it still awake is written
        for number in itertools.count():
            if database.problem() is not None:
                break
            with contextlib.suppress(StoreUnavailable):
                await database.write(put(f"early-{number}"))
    for name in ("t-1", "t-2"):
        with pytest.raises(StoreUnavailable, match="moved, deleted or replaced"):
            await database.write(put(name))
    assert "moved, deleted or replaced" in str(database.problem())
    if replaced:
        assert database.path.stat().st_size == 0
        database.path.unlink()
        folder.rmdir()
    elsewhere.rename(folder)
    await wait_until(lambda: database.problem() is None)
    await database.write(put("t-3"))
    assert await database.read(names) == ["t-0", "t-3"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_writer_that_stops_by_a_defect_says_so_and_lets_nobody_wait(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = database.lane(lambda connection, items: items)
    monkeypatch.setattr("stentor.store.writer.Writer._do_writes", None)
    with pytest.raises(StoreUnavailable):
        await database.write(put("t-1"))
    assert "defect" in str(database.problem())
    with pytest.raises(StoreUnavailable):
        await lane.submit("x")


LIMITED = """
import asyncio, json, resource, sys
from pathlib import Path
from sqlalchemy import insert, select
from stentor.core.errors import StoreUnavailable
from stentor.store.database import Database
from stentor.store.schema import meta
from stentor.store.settings import StoreSettings

async def main():
    database = Database.open(StoreSettings(data_dir=Path(sys.argv[1]), durability="process"))
    def put(connection, name):
        connection.execute(insert(meta).values(name=name, value="v" * 3000))
        return name
    lane = database.lane(lambda connection, names: [put(connection, name) for name in names])
    room = sum(file.stat().st_size for file in Path(sys.argv[1]).glob("*.db*")) + 100_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    kept, refused, problem = [], 0, None
    for n in range(300):
        try:
            kept.append(await lane.submit(f"t-{n:03}"))
        except StoreUnavailable:
            refused += 1
            problem = problem or database.problem()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    async with asyncio.timeout(30):
        while database.problem():
            await asyncio.sleep(0.01)
    kept.append(await lane.submit("t-after"))
    rows = await database.read(lambda c: list(c.execute(select(meta.c.name).where(meta.c.name.like("t-%"))).scalars()))
    database.close()
    print(json.dumps({"refused": refused, "problem": problem, "same": sorted(rows) == sorted(kept), "kept": len(kept)}))

asyncio.run(main())
"""


def test_a_file_that_may_not_grow_loses_nothing_acknowledged(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["refused"] > 0
    assert said["problem"] in ("the disk reports an input/output error", "the disk is full")
    assert said["same"]
    assert said["kept"] > 10


KILLED = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import FewPlaces, HeldClock, House, OPERATOR, USD
from stentor.core.clock import SystemClock
from stentor.people.values import KeyLimits
from stentor.store.database import Database
from stentor.store.settings import StoreSettings
from stentor.vault.keyring import Keyring
from stentor.vault.settings import VaultSettings

async def main():
    data = Path(sys.argv[1])
    database = Database.open(StoreSettings(data_dir=data))
    clock = SystemClock()
    keyring = await database.write(lambda c: Keyring.open(c, VaultSettings(data / "master.key"), clock.now_us()))
    house = House(database, keyring, clock, FewPlaces())
    await house.start_books()
    await house.set_tier("payg", prepaid=True)
    if not await house.management.list_users():
        await house.add_user("ann", 1000 * USD)
        await house.add_key("ann", limits=KeyLimits(token_limit=10**12))
    key = (await house.management.list_keys())[0]
    async def work():
        while True:
            grant = await house.open(key.id)
            await house.close(grant, (10, 7))
            print(grant.request_id, flush=True)
    await asyncio.gather(*(work() for _ in range(8)))

asyncio.run(main())
"""


async def _acknowledged_until_killed(data_dir: Path) -> list[str]:
    """What a child said is booked until it was killed: whole lines alone, for a line may be written in two."""
    said, problems = data_dir / "said", data_dir / "problems"
    with said.open("wb") as out, problems.open("wb") as err:
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(data_dir), str(Path(__file__).parent)], stdout=out, stderr=err
        )
    try:
        async with asyncio.timeout(30):
            while b"\n" not in said.read_bytes():
                assert child.poll() is None, problems.read_text()
                await asyncio.sleep(0.01)
        await asyncio.sleep(random.uniform(0.05, 0.4))
    finally:
        child.kill()
        child.wait(timeout=30)
    return said.read_text().rpartition("\n")[0].splitlines()


async def test_kill_at_any_moment_keeps_every_acknowledged_event_whole(tmp_path: Path) -> None:
    acknowledged: set[str] = set()
    for _ in range(3):
        acknowledged.update(await _acknowledged_until_killed(tmp_path))
    database = Database.open(StoreSettings(data_dir=tmp_path))
    try:
        await _check_after_kill(database, acknowledged)
    finally:
        database.close()


async def _check_after_kill(database: Database, acknowledged: set[str]) -> None:
    columns = "request_id, status, input_tokens, output_tokens, charged_nano"
    rows = await database.read(lambda c: c.exec_driver_sql(f"SELECT {columns} FROM usage_events").fetchall())
    assert acknowledged <= {row[0] for row in rows}
    assert {tuple(row[1:4]) for row in rows} == {("completed", 10, 7)}
    used = dict(
        await database.read(
            lambda c: [
                tuple(row) for row in c.exec_driver_sql("SELECT kind, used FROM bucket ORDER BY kind").fetchall()
            ]
        )
    )
    assert used == {"balance": sum(row[4] for row in rows), "key_tokens": 17 * len(rows)}
    assert await database.read(lambda c: c.exec_driver_sql("PRAGMA integrity_check").scalar_one()) == "ok"
