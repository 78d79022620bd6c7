"""What a cluster needs done once is done by one node, and by another as soon as that one is gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection, insert, select, text

from stentor.core.errors import NotLeader
from stentor.store.database import Database
from stentor.store.leader import Leader
from stentor.store.schema import meta
from stentor.store.settings import StoreSettings

PATIENCE_S = 30


def note(name: str):
    """Work that leaves a row, so that a test sees whether it was done."""

    def work(connection: Connection) -> str:
        connection.execute(insert(meta).values(name=name, value="done"))
        return name

    return work


async def noted(database: Database) -> set[str]:
    query = select(meta.c.name).where(meta.c.value == "done")
    return set(await database.read(lambda connection: connection.execute(query).scalars().all()))


async def expire(database: Database) -> None:
    """As if the leader had been silent for longer than its lease."""
    await database.write(lambda connection: connection.execute(text("UPDATE leaders SET until_us = 1")))


@contextlib.contextmanager
def opened(settings: StoreSettings, data_dir: Path) -> Iterator[Database]:
    database = Database.open(msgspec.structs.replace(settings, data_dir=data_dir))
    try:
        yield database
    finally:
        database.close()


class TestAlone:
    @pytest.fixture
    def system(self) -> str:
        return "sqlite"

    async def test_a_server_alone_leads_and_writes_nothing_for_it(self, database: Database) -> None:
        leader = Leader(database, "jobs")
        assert leader.term == 1
        await asyncio.wait_for(leader.keep(), PATIENCE_S)
        assert await leader.write(note("a"), leader.term) == "a"
        assert await leader.maintain(note("b")) == "b"
        rows = await leader.read(lambda connection: connection.execute(text("SELECT count(*) FROM leaders")).scalar())
        assert (await noted(database), rows) == ({"a", "b"}, 0)


class TestShared:
    @pytest.fixture
    def system(self) -> str:
        return "postgres"

    @pytest.fixture
    async def nodes(self, store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[tuple[Database, Database]]:
        with opened(store_settings, tmp_path / "one") as one, opened(store_settings, tmp_path / "two") as two:
            yield one, two

    async def test_of_two_nodes_one_leads_and_the_other_writes_nothing(self, nodes) -> None:
        one, two = nodes
        first, second = Leader(one, "jobs"), Leader(two, "jobs")
        assert await first.maintain(note("first")) == "first"
        for submit in (second.write, second.maintain):
            with pytest.raises(NotLeader):
                await submit(note("second"))
        assert (first.term, second.term) == (1, None)
        assert await second.claim() is None
        assert await first.write(note("again")) == "again"
        assert await noted(one) == {"first", "again"}

    async def test_each_job_has_its_own_leader(self, nodes) -> None:
        one, two = nodes
        await Leader(one, "jobs").claim()
        assert await Leader(two, "receipts").claim() == 1

    async def test_of_many_who_want_it_at_once_one_gets_it(self, nodes) -> None:
        leaders = [Leader(database, "jobs") for database in nodes]
        terms = await asyncio.gather(*(leader.claim() for leader in leaders))
        assert sorted(map(str, terms)) == ["1", "None"]

    async def test_who_was_silent_past_its_lease_writes_nothing_under_its_old_term(self, nodes) -> None:
        one, two = nodes
        first, second = Leader(one, "jobs"), Leader(two, "jobs")
        term = await first.claim()
        await expire(two)
        assert await second.claim() == 2
        with pytest.raises(NotLeader):
            await first.maintain(note("late"), term)
        assert first.term is None
        await expire(two)
        # Nobody leads now; but somebody else has in between, so what was begun under the old term is void all the same.
        with pytest.raises(NotLeader):
            await first.maintain(note("late"), term)
        assert await first.claim() == 3
        await first.maintain(note("anew"), 3)
        assert await noted(one) == {"anew"}

    async def test_who_was_silent_and_missed_by_nobody_goes_on(self, nodes) -> None:
        one, _ = nodes
        leader = Leader(one, "jobs")
        term = await leader.claim()
        await expire(one)
        await leader.write(note("late"), term)
        assert leader.term == term

    async def test_an_orderly_end_lets_the_next_one_lead_at_once(self, store_settings, tmp_path) -> None:
        with opened(store_settings, tmp_path / "two") as two:
            with opened(store_settings, tmp_path / "one") as one:
                assert await Leader(one, "jobs").claim() == 1
                assert await Leader(two, "jobs").claim() is None
            assert await Leader(two, "jobs").claim() == 2

    async def test_the_others_take_over_when_the_leader_is_gone(self, nodes) -> None:
        one, two = nodes
        first, second = Leader(one, "jobs", lease_s=1), Leader(two, "jobs", lease_s=1)
        leading = asyncio.create_task(first.keep())
        waiting = asyncio.create_task(second.keep())
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not any(terms := (first.term, second.term)):
                    await asyncio.sleep(0.01)
                task, term, heir = (leading, terms[0], second) if terms[0] else (waiting, terms[1], first)
                task.cancel()
                while (next_term := heir.term) is None:
                    await asyncio.sleep(0.01)
            assert next_term > term
        finally:
            leading.cancel()
            waiting.cancel()
