"""A real database for each test, and a whole set of books on it.

``database`` is one of each system in turn, SQLite and PostgreSQL.
"""

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from stentor.egress.outbound import Outbound
from stentor.egress.settings import EgressSettings
from stentor.store.database import Database
from stentor.store.settings import StoreSettings
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings
from stentor.vault.keyring import Keyring
from stentor.vault.settings import VaultSettings
from tests.receiver import Receiver, receiving
from tests.store.house import OPERATOR, USD, FewPlaces, HeldClock, House, two_houses
from tests.store.watch import Watch

__all__ = ["OPERATOR", "USD", "FewPlaces", "HeldClock", "House"]  # programs that tests run import them from here
_schemas = itertools.count()


class Foreign:
    """Another program that has the database file open."""

    CODE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    connection.execute(line).fetchall()
    print("done", flush=True)
"""

    def __init__(self, path: Path) -> None:
        pipe = subprocess.PIPE
        self._child = subprocess.Popen([sys.executable, "-c", self.CODE, path], stdin=pipe, stdout=pipe, text=True)

    def run(self, statement: str) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(statement + "\n")
        self._child.stdin.flush()
        assert self._child.stdout.readline() == "done\n"

    def end(self) -> None:
        self._child.kill()
        self._child.communicate(timeout=30)


@pytest.fixture
def foreign() -> Iterator[Callable[[Path], Foreign]]:
    """Opens the database in another process."""
    made: list[Foreign] = []

    def start(path: Path) -> Foreign:
        made.append(Foreign(path))
        return made[-1]

    yield start
    for other in made:
        other.end()


@pytest.fixture(params=["sqlite", "postgres"])
def system(request: pytest.FixtureRequest) -> str:
    """Which database system a test runs on: each in turn."""
    return str(request.param)


@pytest.fixture
def busy_timeout_s(request: pytest.FixtureRequest) -> float:
    """How long the writer waits for whoever else has SQLite's file locked; another one by indirect parameter."""
    return float(getattr(request, "param", 0.2))


@pytest.fixture
def store_settings(system: str, tmp_path: Path, busy_timeout_s: float, request: pytest.FixtureRequest) -> StoreSettings:
    """An empty place for a database."""
    settings = StoreSettings(data_dir=tmp_path / "data", durability="process", busy_timeout_s=busy_timeout_s)
    if system == "sqlite":
        return settings
    url = request.getfixturevalue("postgres_url")
    schema = f"t{os.getpid()}_{next(_schemas)}"
    return msgspec.structs.replace(settings, url=url, schema=schema, pool_size=2, pool_overflow=2)


@pytest.fixture
def database(store_settings: StoreSettings) -> Iterator[Database]:
    """An empty, migrated database."""
    database = Database.open(store_settings)
    yield database
    database.close()


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def places() -> FewPlaces:
    return FewPlaces()


@pytest.fixture
async def pair(store_settings: StoreSettings, tmp_path: Path, clock: HeldClock) -> AsyncIterator[tuple[House, House]]:
    """Two nodes with the same clock and master key."""
    async with two_houses(store_settings, tmp_path, clock) as houses:
        yield houses


@pytest.fixture
async def house(database: Database, clock: HeldClock, places: FewPlaces, tmp_path: Path) -> AsyncIterator[House]:
    """Books on an empty database, with a clock that stands still."""
    settings = VaultSettings(key_file=tmp_path / "data" / "master.key")
    keyring = await database.write(lambda connection: Keyring.open(connection, settings, clock.now_us()))
    house = House(database, keyring, clock, places)
    await house.start_books()
    yield house
    house.management.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Who is told."""
    yield from receiving()


@pytest.fixture
async def watch(house: House) -> AsyncIterator[Watch]:
    """What tells, allowed to reach this machine."""
    outbound = Outbound(EgressSettings(allow=("127.0.0.1",)))
    log = Log(TelemetrySettings(log_level="ERROR"))
    yield Watch(house, outbound, log)
    await outbound.close()
    log.close()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], object]:
    """Await until a condition holds, at most half a minute."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.005)

    return wait
