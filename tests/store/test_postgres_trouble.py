"""PostgreSQL that goes away, stops, or is lost in mid-commit: what is told, what is charged, what comes back."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, text

from stentor.core.errors import InDoubt, StoreUnavailable
from stentor.core.ids import KeyId
from stentor.store.database import Database
from stentor.store.postgres import link_of
from stentor.store.schema import meta
from stentor.store.settings import StoreSettings
from stentor.vault.keyring import Keyring
from stentor.vault.settings import VaultSettings
from tests.postgres import Cluster
from tests.store.house import FewPlaces, HeldClock, House

COST = 30  # of ten tokens in and ten out, as the harness opens and closes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server of our own: it is killed and stopped here."""
    cluster = Cluster()
    yield cluster
    cluster.remove()


@pytest.fixture
async def house(cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    """Books on that server; an indirect parameter says how long they wait for it."""
    if cluster.process is None or cluster.process.poll() is not None:
        cluster.start()
    patience_s = float(getattr(request, "param", 20.0))  # a busy machine isn't a lost database
    schema = tmp_path.name[:60].lower()
    settings = StoreSettings(tmp_path / "data", cluster.url, schema=schema, answer_timeout_s=patience_s)
    database = await asyncio.to_thread(Database.open, settings)
    clock = HeldClock()
    vault = VaultSettings(key_file=tmp_path / "data" / "master.key")
    keyring = await database.write(lambda connection: Keyring.open(connection, vault, clock.now_us()))
    house = House(database, keyring, clock, FewPlaces())
    await house.start_books()
    yield house
    house.management.close()
    await asyncio.to_thread(database.close)


@pytest.fixture
async def key(house: House) -> KeyId:
    await house.set_tier("payg", prepaid=True)
    await house.add_user("ann", 1_000_000)
    return await house.add_key("ann")


def put(name: str):
    return lambda connection: connection.execute(insert(meta).values(name=name, value="x")).rowcount


def names(connection: Connection) -> list[str]:
    query = select(meta.c.name).where(meta.c.name.like("t-%")).order_by(meta.c.name)
    return list(connection.execute(query).scalars())


async def test_a_server_that_was_killed_is_named_and_comes_back(house: House, key: KeyId, cluster, wait_until) -> None:
    first = await house.open(key)
    lost = await house.open(key)
    await house.close(first)
    cluster.kill()
    with pytest.raises(StoreUnavailable):
        await house.close(lost)
    assert house.database.problem() is not None
    with pytest.raises(StoreUnavailable):
        await house.books.find_principal(b"unknown" * 4)  # never a false «no such key»
    with pytest.raises(StoreUnavailable):
        await house.database.read(names)
    assert (await house.books.roll.find(key)) is not None  # known keys stay known
    cluster.start()
    await wait_until(lambda: house.database.problem() is None)
    await house.close(await house.open(key))
    spent = 1_000_000 - await house.balance("ann")
    account = await house.books.roll.find(key)
    assert account is not None
    assert account.user.balance.used == spent
    assert account.user.balance.held == 0
    await house.check()


@pytest.mark.parametrize("house", [2.0], indirect=True)
async def test_a_server_that_stands_still_is_given_up_in_time(house: House, key: KeyId, cluster, wait_until) -> None:
    grant = await house.open(key)
    cluster.signal_all(signal.SIGSTOP)
    try:
        async with asyncio.timeout(40):
            with pytest.raises(StoreUnavailable, match=r"doesn't answer in time|found out once it is back"):
                await house.close(grant)
        assert house.database.problem() is not None
        async with asyncio.timeout(40):
            with pytest.raises(StoreUnavailable):
                await house.database.write(put("t-1"))
    finally:
        cluster.signal_all(signal.SIGCONT)
    await wait_until(lambda: house.database.problem() is None)
    await house.close(await house.open(key))
    account = await house.books.roll.find(key)
    assert account is not None
    assert account.user.balance.used == 1_000_000 - await house.balance("ann")
    await house.check()


async def test_a_connection_lost_between_two_groups_is_not_noticed(house: House, key: KeyId) -> None:
    for _ in range(3):
        grant = await house.open(key)
        link = link_of(house.database._writer._connection).link
        await asyncio.to_thread(_kill, house, link.raw.get_server_pid())
        await house.close(grant)
    assert await house.balance("ann") == 1_000_000 - 3 * COST * 100
    await house.check()


def _kill(house: House, pid: int) -> None:
    engine = house.database._readers
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})


async def test_a_connection_killed_in_mid_transaction_charges_once(house: House, key: KeyId, monkeypatch) -> None:
    """The group is done again on a new connection; nothing of the first try is left."""
    killed = []
    work = house.books._lane.work

    def interrupted(connection: Connection, items: list) -> list:
        done = work(connection, items)
        if not killed:
            killed.append(link_of(connection).link.raw.get_server_pid())
            _kill(house, killed[0])
        return done

    monkeypatch.setattr(house.books._lane, "work", interrupted)
    settled = await house.close(await house.open(key))
    assert killed
    assert await house.balance("ann") == 1_000_000 - settled.cost_nano
    await house.check()


@pytest.mark.parametrize("written", [True, False])
async def test_an_answer_lost_while_committing_is_found_out(
    house: House, key: KeyId, monkeypatch, written: bool
) -> None:
    """The connection dies at COMMIT, after or before the server has done it: each request is charged exactly once."""
    module = type(link_of(house.database._writer._connection))
    real, tries = module.commit, []

    def commit(self) -> None:
        mine = "store-writer" in threading.current_thread().name
        if mine and not tries:
            tries.append(1)
            if written:
                real(self)
            self.link.raw.terminate()
            self.run("COMMIT")
        real(self)

    grant = await house.open(key)
    monkeypatch.setattr(module, "commit", commit)
    settled = await house.close(grant)
    assert tries
    assert await house.balance("ann") == 1_000_000 - settled.cost_nano
    account = await house.books.roll.find(key)
    assert account is not None
    assert account.user.balance.used == settled.cost_nano
    await house.check()


@pytest.mark.parametrize("written", [True, False])
async def test_doubt_that_lasts_ends_when_the_database_is_back(
    house: House, key: KeyId, cluster, monkeypatch, wait_until, written: bool
) -> None:
    """The server is gone together with its answer: until it is back the charge stands, then the truth."""
    module = type(link_of(house.database._writer._connection))
    real, tries = module.commit, []

    def commit(self) -> None:
        mine = "store-writer" in threading.current_thread().name
        if mine and not tries:
            tries.append(1)
            if written:
                real(self)
            cluster.kill()
            self.run("COMMIT")
        real(self)

    account = await house.books.roll.find(key)
    assert account is not None
    grant = await house.open(key)
    house.books._beating.cancel()  # type: ignore[attr-defined]  # or what it gives back is what is in doubt
    await house.database.maintain(lambda _: None)  # behind what it had begun
    monkeypatch.setattr(module, "commit", commit)
    with pytest.raises(InDoubt):
        await house.close(grant)
    assert account.user.balance.used > 0  # not free again while nobody knows
    cluster.start()
    await wait_until(lambda: house.database.problem() is None)
    expected = 3000 if written else 0
    await wait_until(lambda: account.user.balance.used == expected)
    assert await house.balance("ann") == 1_000_000 - expected
    await house.check()
