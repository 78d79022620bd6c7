"""A whole set of books on a database, with a clock that stands still and places that are counted."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection

from stentor.accounting.settings import AccountingSettings
from stentor.audit.log import Actor
from stentor.control.books import LocalBooks
from stentor.control.management import Management
from stentor.control.nodes.shared import start_books
from stentor.control.people.changes import Changes, UserChange
from stentor.control.wanted import KeyAsk, UserAsk
from stentor.core.books import Close, Grant, Open, Settled, Usage
from stentor.core.errors import Refused
from stentor.core.ids import InstanceId, KeyId, ModelId, new_request_id
from stentor.people.key_text import digest_key
from stentor.people.values import Tier
from stentor.runtime.place import Place
from stentor.runtime.spec import ServedModel
from stentor.store.database import Database
from stentor.store.settings import StoreSettings
from stentor.store.writer import SLICE_S
from stentor.vault.keyring import Keyring
from stentor.vault.settings import VaultSettings

USD = 1_000_000_000
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

    async def acquire(self, model: ModelId, *, key_id: KeyId, prefix_key: int, timeout_s: float | None) -> Place:
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
        self.books = await start_books(
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

    async def change_user(self, user: str, **change: object) -> None:
        changes = Changes(self.database, self.books, self.management, self.clock)
        await changes.change_user(OPERATOR, user, UserChange(**change))  # type: ignore[arg-type]

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
        problems = [found.text for found in await self.management.doctor_books() if not found.ok]
        assert problems == [], problems


def _replace(value, changes):  # type: ignore[no-untyped-def]
    return msgspec.structs.replace(value, **changes)


@contextlib.asynccontextmanager
async def busy_writer(database: Database) -> AsyncIterator[None]:
    """Meanwhile the writer is in the middle of a write: what is submitted waits, and comes to it together."""
    begun, over = threading.Event(), threading.Event()

    def work(_: Connection) -> None:
        begun.set()
        over.wait(30)
        time.sleep(2 * SLICE_S)  # nothing else gets into this transaction

    writing = asyncio.ensure_future(database.write(work))
    try:
        assert await asyncio.to_thread(begun.wait, 30)
        yield
    finally:
        over.set()
        await writing


@contextlib.asynccontextmanager
async def two_houses(settings: StoreSettings, folder: Path, clock: HeldClock) -> AsyncIterator[tuple[House, House]]:
    """Two nodes on one PostgreSQL, with the same clock and master key, and a data folder each in ``folder``."""
    houses = []
    vault = VaultSettings(key_file=folder / "master.key")
    for name in ("one", "two"):
        mine = msgspec.structs.replace(settings, data_dir=folder / name)
        database = await asyncio.to_thread(Database.open, mine)
        keyring = await database.write(lambda connection: Keyring.open(connection, vault, clock.now_us()))
        house = House(database, keyring, clock, FewPlaces())
        await house.start_books()
        houses.append(house)
    yield houses[0], houses[1]
    for house in houses:
        house.management.close()
        await asyncio.to_thread(house.database.close)
