"""What tests with real engine processes share: definitions, free ports, and a look at what is alive."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ModelId
from stentor.runtime import procfs
from stentor.runtime.place import Place
from stentor.runtime.scheduler import LocalScheduler
from stentor.runtime.spec import ModelSpec

FAKE = Path(__file__).with_name("fake_engine.py")
QUICK: dict[str, Any] = {
    "slot_count": 4,
    "queue_timeout_s": 20.0,
    "start_stall_s": 10.0,
    "canary_timeout_s": 5.0,
    "drain_s": 2.0,
    "stop_grace_s": 2.0,
    "backoff_first_s": 0.05,
    "backoff_max_s": 0.2,
    "breaker_open_s": 30.0,
}


class LocalFiles:
    """Stands for the download of weights: ``file:`` sources, and a count of how often each was fetched."""

    def __init__(self) -> None:
        self.fetched: list[str] = []

    async def fetch(self, source: str, progress: object = None) -> Path:
        self.fetched.append(source)
        await asyncio.sleep(0)
        return Path(source.removeprefix("file:"))

    def find(self, source: str) -> Path | None:
        path = Path(source.removeprefix("file:"))
        return path if path.is_file() else None


def fake(name: str = "fake", *options: str, **fields: Any) -> ModelSpec:
    """A model served by the scripted engine, started with ``options``."""
    command = (sys.executable, str(FAKE), "--port", "${PORT}", *options)
    return ModelSpec(id=name, engine="command", command=command, **fields)


def list_children(parent: int | None = None) -> list[procfs.Stat]:
    """Live children of ``parent`` (default: this process) and their groups, zombies left out."""
    wanted = parent or os.getpid()
    stats = [procfs.find_stat(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    return [stat for stat in stats if stat is not None and stat.parent == wanted and stat.state not in "ZX"]


async def take(scheduler: LocalScheduler, model: str, key: str = "k1", timeout_s: float | None = None) -> Place:
    """``acquire`` with the arguments that don't matter filled in."""
    return await scheduler.acquire(ModelId(model), key_id=KeyId(key), prefix_key=0, timeout_s=timeout_s)


def give(scheduler: LocalScheduler, place: Place, suspect: bool = False) -> None:
    """``release`` of a place."""
    scheduler.release(place.instance, place.generation, suspect=suspect)


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for ``condition``; raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def refused_with(scheduler: LocalScheduler, model: str, words: str) -> Refused:
    """The refusal that says ``words``; others come where a process was paused for longer than a test's short time."""
    async with asyncio.timeout(60):
        while True:
            try:
                give(scheduler, await take(scheduler, model))
            except Refused as refusal:
                if words in refusal.message:
                    return refusal
            await asyncio.sleep(0.02)


async def instance_of(scheduler: LocalScheduler, model: str) -> Any:
    """The card of the model's first instance."""
    return next(card for card in await scheduler.list_instances() if card.model == model)


async def ask(place: Place, path: str, body: dict[str, Any] | None = None, token: str | None = None) -> tuple[int, Any]:
    """Status and decoded JSON of one request to the engine of ``place``; POST where there is a body."""
    headers = {"Authorization": f"Bearer {place.token if token is None else token}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        method = "GET" if body is None else "POST"
        async with session.request(method, place.url + path, json=body, headers=headers) as response:
            return response.status, await response.json()
