"""Weights that take their time or never come, and what the log is told."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from engine_harness import fake, give, instance_of, take, until

from stentor.core.errors import Refused, StentorError
from stentor.core.ids import ModelId
from stentor.runtime.child import Child
from stentor.runtime.spec import ModelSpec
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings


class SlowSource:
    """Hands out ``path`` once ``there`` is set; fails first as often as told."""

    def __init__(self, path: Path, failures: int = 0) -> None:
        self.there = asyncio.Event()
        self.asked = 0
        self.cancelled = 0
        self._path = path
        self._failures = failures

    async def fetch(self, source: str, progress: object = None) -> Path:
        self.asked += 1
        if self._failures:
            self._failures -= 1
            raise StentorError(f"{source}: the hub answered 503")
        try:
            await self.there.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self._path

    def find(self, source: str) -> Path | None:
        return self._path if self.there.is_set() else None


def weighty(**fields: Any) -> ModelSpec:
    return ModelSpec(**{"id": "big", "source": "file:/somewhere", "ctx": 256, "parallel": 1, **fields})


async def test_a_download_keeps_no_slot_from_others(make_scheduler: Any, tiny: Path) -> None:
    source = SlowSource(tiny)
    scheduler = make_scheduler(weighty(), fake(), source=source, slot_count=1)
    waiting = asyncio.create_task(take(scheduler, "big"))
    await until(lambda: source.asked == 1)
    give(scheduler, await take(scheduler, "fake"))
    assert (await scheduler.find_model("big")).state == "starting"
    await scheduler.stop(ModelId("fake"))
    source.there.set()
    assert (await waiting).url


async def test_two_instances_fetch_one_after_the_other(make_scheduler: Any, tiny: Path) -> None:
    source = SlowSource(tiny)
    scheduler = make_scheduler(weighty(instances=2), source=source)
    starting = asyncio.create_task(scheduler.start(ModelId("big"), 2))
    await until(lambda: source.asked == 1)
    await asyncio.sleep(0.05)
    assert source.asked == 1
    source.there.set()
    await starting
    assert source.asked == 2


async def test_stop_cancels_a_download(make_scheduler: Any, tiny: Path) -> None:
    source = SlowSource(tiny)
    scheduler = make_scheduler(weighty(), source=source)
    starting = asyncio.create_task(scheduler.start(ModelId("big")))
    await until(lambda: source.asked == 1)
    await scheduler.stop(ModelId("big"))
    assert source.cancelled == 1
    with pytest.raises(Refused, match="stopped"):
        await starting


async def test_a_failed_download_is_told_and_tried_again(make_scheduler: Any, tiny: Path) -> None:
    source = SlowSource(tiny, failures=1)
    source.there.set()
    scheduler = make_scheduler(weighty(), source=source)
    with pytest.raises(Refused, match="could not be fetched") as refusal:
        await take(scheduler, "big")
    assert "503" not in refusal.value.message
    assert (await take(scheduler, "big")).url
    assert source.asked == 2


async def test_a_start_cancelled_while_it_spawns_loses_no_child(make_scheduler: Any, monkeypatch: Any) -> None:
    spawned: list[Child] = []
    real = Child._spawn.__func__  # type: ignore[attr-defined]

    async def slowly(cls: type[Child], *arguments: Any) -> Child:
        child = await real(cls, *arguments)
        spawned.append(child)
        await asyncio.sleep(0.3)
        return child

    monkeypatch.setattr(Child, "_spawn", classmethod(slowly))
    scheduler = make_scheduler(fake())
    starting = asyncio.create_task(scheduler.start(ModelId("fake")))
    await until(lambda: bool(spawned))
    await scheduler.stop(ModelId("fake"))
    assert spawned[0].returncode is not None
    with pytest.raises(Refused):
        await starting


async def test_the_log_tells_the_life_of_an_engine_without_its_words(make_scheduler: Any, tmp_path: Path) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    log = Log(TelemetrySettings(log_format="json"), fd=descriptor)
    scheduler = make_scheduler(fake("fake", "--die", "3", "--once", str(tmp_path / "once")), log=log)
    with pytest.raises(Refused):
        await take(scheduler, "fake")
    place = await take(scheduler, "fake")
    give(scheduler, place, suspect=True)
    give(scheduler, await take(scheduler, "fake"))
    pid = (await instance_of(scheduler, "fake")).pid
    await scheduler.shutdown(0.0)
    log.close()
    os.close(descriptor)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = [line["event"] for line in lines]
    assert names == [
        *("engine_started", "engine_failed", "engine_started", "engine_ready"),
        *("engine_doubted", "engine_answered", "engine_stopped"),
    ]
    assert "exit status 3" in lines[1]["reason"]
    assert lines[3]["pid"] == pid
    assert "told to die" not in path.read_text()
