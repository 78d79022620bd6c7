"""A thousand random days of a scheduler: starts, stops, requests, idle times, crashes, changed settings, any order.

Each seed is one day, the same every time. Afterwards and in between: nobody was left without an answer, nothing was
started twice, no slot or memory was given away twice, nobody's work was ended to make room, and everything that is
sound still serves.
"""

import asyncio
import contextlib
import math
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from engine_harness import LocalFiles
from virtual import VirtualChild, VirtualClock, VirtualHost, VirtualLoop

from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ModelId, RequestId
from stentor.runtime.keeping import KeepWish
from stentor.runtime.place import Place
from stentor.runtime.scheduler import LocalScheduler
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.spec import ModelSpec

DAYS, SHARDS, STEPS = 1_000, 4, 40
FIRST_PORT = 5000
WAIT_S, SLACK_S = 20.0, 0.5
PROGRAM = "/bin/sh"


class Day:
    """One seed."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        random.seed(seed)  # the breaker's jitter
        rng = self.rng
        self.names = ["a", "b", "c", "d"][: rng.randint(2, 4)]
        self.slots = rng.randint(1, 3)
        self.memory_mib = rng.choice((300, 600, 10_000))
        self.sizes = {name: rng.choice((50, 150, 290)) for name in self.names}
        self.host = VirtualHost(rng, self.memory_mib, self.sizes)
        self.host.trouble = rng.choice((0.0, 0.0, 0.1, 0.4))
        self.host.on_stop = self.note_stop
        settings = RuntimeSettings(
            data_dir=folder / str(seed), slot_first_port=FIRST_PORT, slot_count=self.slots, queue_max=12,
            queue_timeout_s=WAIT_S, memory_limit_mb=rng.choice((None, self.memory_mib)), drain_s=3.0,
            idle_unload_s=rng.choice((0.0, 5.0)), models=tuple(self.spec(name) for name in self.names),
            start_stall_s=5.0, start_max_s=60.0, canary_timeout_s=2.0, stop_grace_s=1.0,
        )  # fmt: skip
        self.scheduler = LocalScheduler(settings, LocalFiles(), {}, VirtualClock(), None, self.host)  # type: ignore[arg-type]
        self.held: Counter[tuple[str, int]] = Counter()
        self.works: Counter[VirtualChild | None] = Counter()
        self.operated: Counter[str] = Counter()
        self.problems = self.host.problems
        self.asked = self.served = self.refused = 0
        self.tasks: list[asyncio.Task[None]] = []

    def spec(self, name: str) -> ModelSpec:
        rng = self.rng
        return ModelSpec(
            id=name, engine="command", command=(PROGRAM, "${PORT}", name), parallel=rng.randint(1, 4),
            instances=rng.choice((1, 1, 2)), memory_mib=self.sizes[name], pinned=rng.random() < 0.1,
            preload=rng.random() < 0.2, idle_unload_s=rng.choice((None, 0.0, 2.0)), threads=1,
        )  # fmt: skip

    def plain(self, name: str) -> ModelSpec:
        """A definition that nothing is special about, and that differs from any before."""
        command = (PROGRAM, "${PORT}", name)
        return ModelSpec(id=name, engine="command", command=command, memory_mib=self.sizes[name], threads=2)

    # -- what happens

    async def live(self) -> None:
        running = asyncio.create_task(self.scheduler.run())
        for _ in range(STEPS):
            self.step()
            await asyncio.sleep(self.rng.choice((0.0, 0.0, 0.01, 0.3, 1.0, 4.0)))
        await self.settle()
        await self.check_everything_serves()
        await self.scheduler.shutdown(self.rng.choice((0.0, 1.0)))
        await asyncio.wait_for(running, 5)
        if self.host.live:
            self.problems.append(f"left running: {[child.model for child in self.host.live.values()]}")

    def step(self) -> None:
        kind = self.rng.choices(
            ("burst", "request", "start", "stop", "load", "unload", "drain", "crash", "hang", "change"),
            (6, 10, 2, 2, 1, 1, 1, 3, 1, 2),
        )[0]
        name = self.rng.choice(self.names)
        if kind == "burst":
            for _ in range(self.rng.randint(2, 9)):
                self.begin(self.request(name))
        elif kind == "request":
            self.begin(self.request(name))
        elif kind in ("crash", "hang"):
            self.strike(kind)
        else:
            self.begin(self.operate(kind, name))

    def begin(self, work: Any) -> None:
        self.tasks.append(asyncio.create_task(work))

    def strike(self, kind: str) -> None:
        for child in list(self.host.live.values()):
            if self.rng.random() < 0.5:
                self.operated[child.model] += 1  # what it runs is lost by the crash, not by a decision
                asyncio.get_running_loop().call_later(30, self.operated.subtract, [child.model])
                if kind == "crash":
                    child.die(-9)
                else:
                    child.fate = "mute"

    async def request(self, name: str, *, patient: bool = False) -> None:
        self.asked += 1
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        give_up = not patient and self.rng.random() < 0.15
        try:
            async with asyncio.timeout(self.rng.uniform(0, 6) if give_up else None):
                place = await self.scheduler.acquire(
                    ModelId(name), key_id=KeyId(self.rng.choice("xyz")),
                    prefix_key=self.rng.randint(0, 3), timeout_s=WAIT_S,
                )  # fmt: skip
        except (Refused, TimeoutError):
            self.refused += 1
            self.check_wait(name, loop.time() - began_s)
            return
        self.check_wait(name, loop.time() - began_s)
        await self.hold(name, place)

    def check_wait(self, name: str, waited_s: float) -> None:
        if waited_s > WAIT_S + SLACK_S:
            self.problems.append(f"a request for {name} waited {waited_s:.1f} s")

    async def hold(self, name: str, place: Place) -> None:
        key = (place.instance, place.generation)
        self.held[key] += 1
        child = self.host.find(place.url)
        self.works[child] += 1
        if self.rng.random() < 0.2:
            keep_s = self.rng.choice((0.0, 0.3, 3.0, 60.0, math.inf))
            wish = KeepWish(RequestId("r"), KeyId("x"), keep_s, by_operator=self.rng.random() < 0.3)
            self.scheduler.keep(place.instance, place.generation, wish)
        if self.held[key] > 4:
            self.problems.append(f"{place.instance} got {self.held[key]} requests")
        await asyncio.sleep(self.rng.choice((0.0, 0.1, 1.0, 2.5, 8.0)))
        self.held[key] -= 1
        self.works[child] -= 1
        self.scheduler.release(place.instance, place.generation, suspect=self.rng.random() < 0.1)
        self.served += 1

    async def operate(self, kind: str, name: str) -> None:
        scheduler, rng = self.scheduler, self.rng
        touched = [name]
        port = FIRST_PORT + rng.randrange(self.slots)
        if kind in ("load", "unload", "drain", "change"):
            touched = list(self.names)
        self.operated.update(touched)
        model = ModelId(name)
        with contextlib.suppress(Refused):
            if kind == "start":
                await scheduler.start(model, rng.randint(1, 2))
            elif kind == "stop":
                await scheduler.stop(model)
            elif kind == "load":
                await scheduler.load(model, slot=rng.choice((None, port)))
            elif kind == "unload":
                await scheduler.unload(port)
            elif kind == "drain":
                await scheduler.drain(port)
            elif rng.random() < 0.3:
                await scheduler.change_models([], [model])
                await asyncio.sleep(rng.choice((0.0, 2.0)))
                await scheduler.change_models([self.spec(name)])
            else:
                await scheduler.change_models([self.spec(name)])
        self.operated.subtract(touched)

    def note_stop(self, child: VirtualChild) -> None:
        """An engine is ended: it may run nothing, unless an operator or its own fault ends it."""
        loop = asyncio.get_running_loop()
        if self.operated[child.model] or child.fate != "well" or loop.time() < child.up_at_s:
            return
        if self.works[child] and not self.doubted(child.model):
            self.problems.append(f"{child.model} was ended with {self.works[child]} requests running")

    def doubted(self, model: str) -> bool:
        return any(each.process.checking for each in self.scheduler._instances.values() if each.model == model)

    # -- what must hold in the end

    async def settle(self) -> None:
        for _ in range(60):
            await asyncio.sleep(10)
            if all(task.done() for task in self.tasks):
                break
        for task in self.tasks:
            if not task.done():
                self.problems.append(f"never over: {task.get_coro()}")
                task.cancel()
            elif task.exception() is not None:
                self.problems.append(f"{task.exception()!r}")
        if self.scheduler.count_running() or self.scheduler.count_waiting():
            self.problems.append(f"{self.scheduler.count_running()} running, {self.scheduler.count_waiting()} waiting")

    async def check_everything_serves(self) -> None:
        self.host.trouble = 0.0
        plain = [self.plain(name) for name in self.names]
        await self.scheduler.change_models(plain)
        await asyncio.sleep(1_000)  # breakers close
        for name in self.names:
            with contextlib.suppress(Refused):
                await self.scheduler.start(ModelId(name))
        for name in [*self.names, *self.names]:
            before = self.served
            await self.request(name, patient=True)
            if self.served == before:
                self.problems.append(f"{name} doesn't serve in the end: {await self.scheduler.find_model(name)}")


def run_day(seed: int, folder: Path) -> Day:
    loop = VirtualLoop()
    try:

        async def main() -> Day:
            day = Day(seed, folder)
            await day.live()
            return day

        return loop.run_until_complete(main())
    finally:
        loop.close()


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_thousand_random_days_go_well(shard: int, tmp_path: Path) -> None:
    asked = served = 0
    memory = Path("/dev/shm")  # what a thousand days write is worth no disk's time
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        for seed in range(shard, DAYS, SHARDS):
            day = run_day(seed, Path(folder))
            assert not day.problems, f"seed {seed}: " + "\n".join(day.problems[:5])
            asked, served = asked + day.asked, served + day.served
    assert served > asked / 3
