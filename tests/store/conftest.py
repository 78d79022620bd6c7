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
from typing import Any

import msgspec
import pytest

from stentor.accounting.settings import AccountingSettings
from stentor.audit.log import Actor
from stentor.control.books import LocalBooks
from stentor.control.management import Management
from stentor.control.wanted import KeyAsk, UserAsk
from stentor.core.books import Close, Grant, Open, Settled, Usage
from stentor.core.errors import Refused
from stentor.core.ids import InstanceId, KeyId, ModelId, RequestId, new_request_id
from stentor.people.key_text import digest_key
from stentor.people.values import Tier
from stentor.runtime.place import Place
from stentor.runtime.spec import ServedModel
from stentor.store.database import Database
from stentor.store.settings import StoreSettings
from stentor.vault.keyring import Keyring
from stentor.vault.settings import VaultSettings

USD = 1_000_000_000
_schemas = itertools.count()
OPERATOR = Actor("tester", "cli")


class HeldClock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self._us = 1_800_000_000_000_000
        self._start_us = self._us

    def now_us(self) -> int:
        return self._us

    def monotonic_s(self) -> float:
        return 1000 + (self._us - self._start_us) / 1e6

    def advance(self, seconds: float) -> None:
        self._us += round(seconds * 1e6)


class FewPlaces:
    """A scheduler with a fixed number of places and a queue in order of arrival."""

    def __init__(self, count: int = 1000) -> None:
        self.free = count
        self.waiting: list[asyncio.Future[Place]] = []
        self.suspects = 0
        self.problem: Refused | None = None
        self.model = ServedModel(ModelId("tiny"), ("small",), ("text",), 8192, "llama", "tiny.gguf", 0)

    def resolve(self, name: str, allowed: frozenset[str]) -> ServedModel:
        if name not in ("tiny", "small") or (allowed and "tiny" not in allowed):
            raise Refused("model_not_found", f"no model {name}")
        return self.model

    def find_able(self, *_: Any) -> None:
        return None

    def try_acquire(self, model: ModelId, prefix_key: int) -> Place | None:
        if self.problem is not None:
            raise self.problem
        if self.free == 0:
            return None
        self.free -= 1
        return Place(InstanceId("one"), 1, "http://127.0.0.1:1", "secret", 0)

    async def acquire(
        self, model: ModelId, *, request_id: RequestId, key_id: KeyId, prefix_key: int, timeout_s: float | None
    ) -> Place:
        future: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(future.result().instance, 1, suspect=False)
            raise
        finally:
            if future in self.waiting:
                self.waiting.remove(future)

    def release(self, place_instance: InstanceId, generation: int, *, suspect: bool) -> None:
        self.suspects += suspect
        self.free += 1
        if self.waiting:
            self.free -= 1
            self.waiting.pop(0).set_result(Place(place_instance, generation, "http://127.0.0.1:1", "secret", 7))


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
        self._child.communicate(timeout=10)


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
def store_settings(system: str, tmp_path: Path, request: pytest.FixtureRequest) -> StoreSettings:
    """An empty place for a database."""
    settings = StoreSettings(data_dir=tmp_path / "data", durability="process", busy_timeout_s=0.2)
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


class House:
    """Books, management and all they stand on."""

    def __init__(self, database: Database, keyring: Keyring, clock: HeldClock, places: FewPlaces) -> None:
        self.database = database
        self.keyring = keyring
        self.clock = clock
        self.places = places
        self.books: LocalBooks
        self.management: Management

    async def start_books(self, settings: AccountingSettings | None = None) -> LocalBooks:
        """New books on the same database, as after a restart."""
        self.books = await LocalBooks.start(
            self.database, self.places, settings or AccountingSettings(default_max_tokens=100), self.clock
        )
        self.management = Management(self.database, self.books, self.keyring, self.clock)
        return self.books

    async def add_user(self, name: str, balance_nano: int = 0, tier: str = "payg") -> None:
        await self.management.add_user(OPERATOR, UserAsk(name, tier=tier))
        if balance_nano:
            await self.management.top_up(OPERATOR, name, balance_nano)

    async def set_tier(self, name: str, *, prepaid: bool = False, **limits: int) -> None:
        """``limits``: requests_per_minute, tokens_per_minute, concurrency; those left out are unlimited."""
        fields = ("requests_per_minute", "tokens_per_minute", "concurrency")
        await self.management.set_tier(
            OPERATOR,
            Tier(name, name, *(limits.get(field) for field in fields), prepaid),  # type: ignore[arg-type]
        )

    async def add_key(self, user: str, **more: object) -> KeyId:
        made = await self.management.add_key(OPERATOR, KeyAsk(user, **more))  # type: ignore[arg-type]
        return made.made.id

    async def open(self, key_id: KeyId, prompt: int = 10, asked: int | None = 10, **more: object) -> Grant:
        ask = Open(new_request_id(), 1, key_id, "/v1/chat/completions", "tiny", prompt, asked)
        return await self.books.open(_replace(ask, more))

    async def close(self, grant: Grant, tokens: tuple[int, int] = (10, 10), **more: object) -> Settled:
        end = Close(grant.request_id, grant.attempt, "completed", Usage(tokens[0], 0, tokens[1]))
        return await self.books.close(_replace(end, more))

    async def balance(self, user: str) -> int:
        """What the database says is left."""
        return next(view.balance_nano for view in await self.management.list_users() if view.user.name == user)

    def digest(self, text: str) -> bytes:
        return digest_key(self.keyring.pepper(), text)

    async def check(self) -> None:
        """The books agree with themselves."""
        assert [found.text for found in await self.management.doctor_books() if not found.ok] == []


def _replace(value, changes):  # type: ignore[no-untyped-def]
    return msgspec.structs.replace(value, **changes)


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def places() -> FewPlaces:
    return FewPlaces()


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
def wait_until() -> Callable[[Callable[[], bool]], object]:
    """Await until a condition holds, at most five seconds."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)

    return wait
