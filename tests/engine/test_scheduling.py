"""Places, queues and shutdown over scripted engines."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from engine_harness import fake, give, instance_of, list_children, take, until

from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.runtime.slots import is_port_free
from stentor.runtime.spec import ModelSpec
from tests.serving import free_ports

FAKE = ModelId("fake")


async def test_waiters_are_served_in_turns_among_keys(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(parallel=1))
    place = await take(scheduler, "fake")
    order: list[str] = []

    async def wait(name: str, key: str) -> None:
        mine = await take(scheduler, "fake", key=key)
        order.append(name)
        give(scheduler, mine)

    tasks = []
    for name, key in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c")):
        tasks.append(asyncio.create_task(wait(name, key)))
        await asyncio.sleep(0)
    await until(lambda: scheduler.count_waiting() == 5)
    give(scheduler, place)
    await asyncio.gather(*tasks)
    assert order == ["a1", "b1", "c1", "a2", "a3"]


async def test_a_newcomer_does_not_overtake_the_queue(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(parallel=1))
    place = await take(scheduler, "fake")
    waiting = asyncio.create_task(take(scheduler, "fake"))
    await until(lambda: scheduler.count_waiting() == 1)
    give(scheduler, place)
    assert scheduler.try_acquire(FAKE, 0) is None
    assert (await waiting).queued_us > 0


async def test_refuses_when_the_queue_is_full(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(parallel=1), queue_max=2)
    place = await take(scheduler, "fake")
    waiting = [asyncio.create_task(take(scheduler, "fake")) for _ in range(2)]
    await until(lambda: scheduler.count_waiting() == 2)
    with pytest.raises(Refused, match="queue is full") as refusal:
        await take(scheduler, "fake")
    assert refusal.value.code == "overloaded"
    assert refusal.value.retry_after_s
    give(scheduler, place)
    give(scheduler, await waiting[0])
    await waiting[1]


async def test_one_key_cannot_fill_the_queue_for_the_others(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(parallel=1), queue_max=3)
    place = await take(scheduler, "fake")
    greedy = [asyncio.create_task(take(scheduler, "fake", key="greedy")) for _ in range(3)]
    await until(lambda: scheduler.count_waiting() == 3)
    modest = asyncio.create_task(take(scheduler, "fake", key="modest"))
    with pytest.raises(Refused, match="queue is full"):
        await greedy[2]
    give(scheduler, place)
    give(scheduler, await greedy[0])
    give(scheduler, await modest)
    give(scheduler, await greedy[1])


async def test_refuses_after_the_queue_timeout(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(parallel=1), queue_timeout_s=0.3)
    place = await take(scheduler, "fake", timeout_s=20)
    with pytest.raises(Refused, match=r"within 0\.3 s") as refusal:
        await take(scheduler, "fake")
    assert refusal.value.code == "overloaded"
    assert scheduler.count_waiting() == 0
    give(scheduler, place)
    assert scheduler.count_running() == 0


async def test_a_load_slower_than_the_queue_timeout_goes_on(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("fake", "--start-delay", "0.8"))
    with pytest.raises(Refused, match="still being loaded"):
        await take(scheduler, "fake", timeout_s=0.2)
    assert (await take(scheduler, "fake")).generation == 1


async def test_cancelled_waits_leak_nothing(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(parallel=2))
    held = [await take(scheduler, "fake") for _ in range(2)]
    for delay in (None, 0.0, 0.001, 0.002):
        waiting = [asyncio.create_task(take(scheduler, "fake", key=f"k{number}")) for number in range(20)]
        await until(lambda: scheduler.count_waiting() == 20)
        # Give places and cancel in the same step: the wake-up and the cancellation race.
        for place in held:
            give(scheduler, place)
        if delay is not None:
            await asyncio.sleep(delay)
        for task in waiting:
            task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        for result in results:
            if not isinstance(result, BaseException):
                give(scheduler, result)
        assert scheduler.count_waiting() == 0
        assert scheduler.count_running() == 0
        held = [await take(scheduler, "fake") for _ in range(2)]
    assert scheduler.try_acquire(FAKE, 0) is None


async def test_work_spreads_over_instances_and_survives_the_death_of_one(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(parallel=2, instances=2))
    await scheduler.start(FAKE, 2)
    places = [scheduler.try_acquire(FAKE, 0) for _ in range(4)]
    assert sorted(place.instance for place in places if place) == ["fake#1", "fake#1", "fake#2", "fake#2"]
    assert scheduler.try_acquire(FAKE, 0) is None
    victim = await instance_of(scheduler, "fake")
    os.kill(victim.pid, signal.SIGKILL)
    survivors = [place for place in places if place and place.instance != victim.id]
    waiting = asyncio.create_task(take(scheduler, "fake"))
    await asyncio.sleep(0)
    give(scheduler, survivors[0])
    assert (await waiting).generation >= 1
    await until(lambda: scheduler.count_idle_places() >= 1)
    assert {card.state for card in await scheduler.list_instances()} == {"ready"}


async def test_a_conversation_goes_back_to_its_instance(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(parallel=4, instances=2))
    await scheduler.start(FAKE, 2)
    first = scheduler.try_acquire(FAKE, 77)
    other = scheduler.try_acquire(FAKE, 0)
    assert first.instance != other.instance
    give(scheduler, other)
    again = scheduler.try_acquire(FAKE, 77)
    assert again.instance == first.instance


async def test_crash_under_load_serves_everyone_in_the_end(make_scheduler: Any, tmp_path: Path) -> None:
    scheduler = make_scheduler(fake("fake", parallel=4, instances=2), breaker_failures=50)
    done = 0

    async def client() -> None:
        nonlocal done
        for _ in range(20):
            place = await take(scheduler, "fake")
            await asyncio.sleep(0.01)
            give(scheduler, place)
            done += 1

    async def killer() -> None:
        for _ in range(4):
            await asyncio.sleep(0.15)
            for card in await scheduler.list_instances():
                if card.pid is not None and card.state == "ready":
                    os.kill(card.pid, signal.SIGKILL)
                    break

    await asyncio.gather(killer(), *(client() for _ in range(12)))
    assert done == 240
    assert scheduler.count_running() == 0
    await until(lambda: scheduler.count_idle_places() == 8)


async def test_a_taken_port_is_skipped(make_scheduler: Any) -> None:
    first = free_ports(2)
    foreign = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", first)
    scheduler = make_scheduler(fake(), slot_first_port=first, slot_count=2)
    place = await take(scheduler, "fake")
    assert place.url.endswith(str(first + 1))
    foreign.close()
    await foreign.wait_closed()


async def test_a_broken_model_does_not_hold_up_the_others(make_scheduler: Any, tmp_path: Path) -> None:
    missing = ModelSpec(id="missing", source=f"file:{tmp_path}/none.gguf", preload=True)
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"not a model at all")
    damaged = ModelSpec(id="damaged", source=f"file:{garbage}", preload=True)
    scheduler = make_scheduler(missing, damaged, fake(preload=True))
    running = asyncio.create_task(scheduler.run())
    await until(lambda: scheduler.count_idle_places() > 0)
    with pytest.raises(Refused, match="model file is missing"):
        await take(scheduler, "missing")
    with pytest.raises(Refused, match="model file is damaged"):
        await take(scheduler, "damaged")
    states = {card.id: card.state for card in await scheduler.list_models()}
    assert states == {"missing": "failed", "damaged": "failed", "fake": "ready"}
    assert str(garbage) in (await instance_of(scheduler, "damaged")).reason
    await scheduler.shutdown(0.0)
    await asyncio.wait_for(running, 30)


async def test_shutdown_waits_for_running_work_and_refuses_the_rest(make_scheduler: Any) -> None:
    before = {stat.pid for stat in list_children()}
    scheduler = make_scheduler(fake(parallel=1), fake("idle"))
    place = await take(scheduler, "fake")
    give(scheduler, await take(scheduler, "idle"))
    waiting = asyncio.create_task(take(scheduler, "fake"))
    await until(lambda: scheduler.count_waiting() == 1)
    ports = [card.port for card in await scheduler.list_instances()]
    ending = asyncio.create_task(scheduler.shutdown(60.0))
    with pytest.raises(Refused) as refusal:
        await waiting
    assert refusal.value.code == "server_shutdown"
    with pytest.raises(Refused, match="shutting down"):
        await take(scheduler, "fake")
    assert scheduler.try_acquire(ModelId("idle"), 0) is None
    await asyncio.sleep(0.1)
    assert not ending.done()
    give(scheduler, place)
    await asyncio.wait_for(ending, 30)
    assert {stat.pid for stat in list_children()} <= before
    assert all(is_port_free(port) for port in ports)


async def test_shutdown_ends_work_that_outlasts_the_drain_time(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake())
    await take(scheduler, "fake")
    began = time.monotonic()
    await scheduler.shutdown(0.3)
    assert 0.25 < time.monotonic() - began < 20


async def test_a_place_costs_microseconds(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake())
    give(scheduler, await take(scheduler, "fake"))
    rounds, best_us = 2_000, 1e9
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(rounds):
            place = scheduler.try_acquire(FAKE, 0)
            scheduler.release(place.instance, place.generation, suspect=False)
        best_us = min(best_us, (time.perf_counter() - began) / rounds * 1e6)
    assert best_us < 3.0
