"""Who gets slots and memory: eviction, swaps, idle unload, slots by number, resumed models; over scripted engines."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_harness import fake, give, instance_of, take, until

from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.runtime.eviction import SwapPolicy
from stentor.runtime.scheduler import LocalScheduler

ONE, TWO = ModelId("one"), ModelId("two")
EAGER = SwapPolicy(patience_min_s=0.1, patience_loads=0.0, residency_loads=0.0)


async def card(scheduler: LocalScheduler, name: str) -> Any:
    found = await scheduler.find_model(name)
    assert found is not None
    return found


async def test_an_idle_model_leaves_when_slots_are_short_and_says_why(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one"), fake("two"), slot_count=1)
    give(scheduler, await take(scheduler, "one"))
    place = await take(scheduler, "two")
    assert place.instance == "two#1"
    gone = await card(scheduler, "one")
    assert gone.state == "cold"
    assert gone.reason.startswith("evicted: idle ")
    assert gone.reason.endswith("needed a slot for two")
    assert (await instance_of(scheduler, "one")).reason == gone.reason
    assert scheduler.departures() == {(ONE, "room"): 1}


async def test_an_idle_model_leaves_when_memory_is_short(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one", memory_mib=600), fake("two", memory_mib=700), memory_limit_mb=1000)
    give(scheduler, await take(scheduler, "one"))
    assert scheduler.planned_by_model() == {"one": 600 << 20}
    await take(scheduler, "two")
    assert (await card(scheduler, "one")).reason.endswith("needed 734 MB for two")
    assert scheduler.planned_by_model() == {"two": 700 << 20}
    assert (await instance_of(scheduler, "two")).planned_bytes == 700 << 20


async def test_what_fits_beside_others_sends_nobody_away(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one", memory_mib=300), fake("two", memory_mib=300), memory_limit_mb=1000)
    give(scheduler, await take(scheduler, "one"))
    await take(scheduler, "two")
    assert {each.state for each in await scheduler.list_models()} == {"ready"}


async def test_the_longest_idle_model_goes_first(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one"), fake("two"), fake("three"), slot_count=2, swap=EAGER)
    for name in ("one", "two", "one"):
        give(scheduler, await take(scheduler, name))
    await take(scheduler, "three")
    assert {each.id: each.state for each in await scheduler.list_models()} == {
        "one": "ready", "two": "cold", "three": "ready"
    }  # fmt: skip


@pytest.mark.parametrize("limits", [{"memory_limit_mb": 1000}, {"slot_count": 1}])
async def test_of_two_cold_models_asked_at_once_one_waits_for_the_other(make_scheduler: Any, limits: Any) -> None:
    models = fake("one", memory_mib=600), fake("two", memory_mib=700)
    scheduler = make_scheduler(*models, swap=EAGER, **limits)

    async def ask(name: str) -> None:
        give(scheduler, await take(scheduler, name))

    async with asyncio.timeout(20):
        await asyncio.gather(ask("one"), ask("two"))


async def test_pinned_models_stay_and_the_others_are_told_at_once(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one", pinned=True), fake("two"), slot_count=1, idle_unload_s=0.1)
    give(scheduler, await take(scheduler, "one"))
    with pytest.raises(Refused, match="every engine slot is in use") as refusal:
        await take(scheduler, "two")
    assert refusal.value.code == "model_unavailable"
    held = await instance_of(scheduler, "two")
    assert "by one#1" in held.reason
    assert "SLOT_COUNT" in held.reason
    await asyncio.sleep(0.3)
    assert (await card(scheduler, "one")).state == "ready"


async def test_a_model_too_large_beside_pinned_ones_is_refused_with_the_numbers(make_scheduler: Any) -> None:
    pinned, large = fake("one", pinned=True, memory_mib=600), fake("two", memory_mib=700)
    scheduler = make_scheduler(pinned, large, memory_limit_mb=1000)
    give(scheduler, await take(scheduler, "one"))
    with pytest.raises(Refused, match="not enough memory"):
        await take(scheduler, "two")
    reason = (await instance_of(scheduler, "two")).reason
    assert "needs 734 MB" in reason
    assert "one#1 629 MB" in reason


async def test_a_model_larger_than_the_limit_is_refused_with_the_numbers(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one", memory_mib=1700), memory_limit_mb=1000)
    with pytest.raises(Refused, match="not enough memory"):
        await take(scheduler, "one")
    assert "1700 MiB; 1000 MiB can be had" in (await instance_of(scheduler, "one")).reason


async def test_a_busy_model_is_drained_and_never_killed(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one"), fake("two"), slot_count=1, swap=EAGER)
    place = await take(scheduler, "one")
    waiting = asyncio.create_task(take(scheduler, "two"))
    await until(lambda: scheduler.departures() == {(ONE, "swap"): 1})
    draining = await instance_of(scheduler, "one")
    assert (draining.state, draining.running, draining.generation) == ("draining", 1, place.generation)
    assert draining.reason.startswith("swapped out after ")
    # New work for the drained model queues; it is neither refused nor let in.
    again = asyncio.create_task(take(scheduler, "one"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    assert not again.done()
    give(scheduler, place)
    give(scheduler, await waiting)
    give(scheduler, await again)
    assert scheduler.count_running() == 0


async def test_a_drained_model_goes_on_when_nobody_waits_for_its_room_any_more(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one"), fake("two"), slot_count=1, swap=EAGER)
    place = await take(scheduler, "one")
    waiting = asyncio.create_task(take(scheduler, "two"))
    await until(lambda: scheduler.departures() == {(ONE, "swap"): 1})
    again = asyncio.create_task(take(scheduler, "one"))
    await asyncio.sleep(0.05)
    waiting.cancel()
    assert (await asyncio.wait_for(again, 30)).generation == place.generation
    assert (await instance_of(scheduler, "one")).state == "ready"


async def test_a_wait_for_a_busy_model_says_so_in_the_end(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one"), fake("two"), slot_count=1)
    await take(scheduler, "one")
    waiting = asyncio.create_task(take(scheduler, "two"))
    async with asyncio.timeout(15):
        while "waits for room: needs a slot" not in (await card(scheduler, "two")).reason:
            await asyncio.sleep(0.02)
    with pytest.raises(Refused, match="waits for room beside other models") as refusal:
        await take(scheduler, "two", timeout_s=0.1)
    assert refusal.value.code == "overloaded"
    waiting.cancel()
    await until(lambda: scheduler.count_claims() == 0)


async def test_an_idle_model_is_unloaded_after_its_time(make_scheduler: Any) -> None:
    short, never = fake("one", idle_unload_s=0.2), fake("two", idle_unload_s=0)
    scheduler = make_scheduler(short, never, idle_unload_s=0.3)
    held = await take(scheduler, "one")
    give(scheduler, await take(scheduler, "two"))
    await asyncio.sleep(0.6)
    assert (await card(scheduler, "one")).state == "ready"
    give(scheduler, held)
    async with asyncio.timeout(30):
        while (await card(scheduler, "one")).state != "cold":
            await asyncio.sleep(0.02)
    assert (await card(scheduler, "one")).reason.startswith("unloaded: idle ")
    assert (await card(scheduler, "two")).state == "ready"
    assert scheduler.departures() == {(ONE, "idle"): 1}
    give(scheduler, await take(scheduler, "one"))


async def test_an_additional_instance_interrupts_nobody(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one", parallel=1, instances=2), fake("two"), slot_count=2, swap=EAGER)
    other = await take(scheduler, "two")
    first = await take(scheduler, "one")
    waiting = asyncio.create_task(take(scheduler, "one"))
    await asyncio.sleep(0.5)
    assert (await instance_of(scheduler, "two")).state == "ready"
    give(scheduler, first)
    give(scheduler, await waiting)
    give(scheduler, other)


async def test_fifty_cold_requests_start_one_process(make_scheduler: Any, tmp_path: Path) -> None:
    note = tmp_path / "starts"
    scheduler = make_scheduler(fake("one", "--note", str(note), "--start-delay", "0.2", parallel=8))
    served = 0

    async def client(number: int) -> None:
        nonlocal served
        place = await take(scheduler, "one", key=f"k{number % 7}")
        await asyncio.sleep(0.005)
        give(scheduler, place)
        served += 1

    await asyncio.gather(*(client(number) for number in range(50)))
    assert served == 50
    assert len(note.read_text().splitlines()) == 1


# -- slots by number


async def test_loads_into_a_slot_and_unloads_it(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one"), fake("two"), fake("pinned", pinned=True))
    ports = [each.port for each in await scheduler.list_slots()]
    cards = await scheduler.load(ONE, slot=ports[2])
    assert [(each.id, each.port, each.state) for each in cards] == [("one#1", ports[2], "ready")]
    place = await take(scheduler, "one")
    loading = asyncio.create_task(scheduler.load(TWO, slot=ports[2]))
    await asyncio.sleep(0.2)
    assert not loading.done()
    give(scheduler, place)
    assert [(each.id, each.port) for each in await loading] == [("two#1", ports[2])]
    assert (await card(scheduler, "one")).state == "cold"
    await scheduler.unload(ports[2])
    assert [each.instance for each in await scheduler.list_slots()] == [None] * 4
    with pytest.raises(Refused, match=f"Slot {ports[2]} is empty") as refusal:
        await scheduler.unload(ports[2])
    assert refusal.value.code == "not_found"
    with pytest.raises(Refused, match="There is no slot 80"):
        await scheduler.load(ONE, slot=80)
    await scheduler.load(ModelId("pinned"), slot=ports[0])
    with pytest.raises(Refused, match="pinned") as refusal:
        await scheduler.load(ONE, slot=ports[0])
    assert refusal.value.code == "conflict"


async def test_a_drained_slot_takes_no_work_until_it_is_loaded_again(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one"))
    [loaded] = await scheduler.load(ONE)
    place = await take(scheduler, "one")
    draining = asyncio.create_task(scheduler.drain(loaded.port))
    await asyncio.sleep(0.1)
    assert not draining.done()
    with pytest.raises(Refused, match="administrator"):
        await take(scheduler, "one")
    give(scheduler, place)
    await draining
    assert (await instance_of(scheduler, "one")).state == "draining"
    await scheduler.load(ONE)
    assert (await take(scheduler, "one")).generation == place.generation


# -- what is wanted


def desired(folder: Path) -> list[tuple[str, int]]:
    entries = msgspec.json.decode((folder / "data" / "run" / "desired.json").read_bytes())
    return [(entry["model"], entry["instances"]) for entry in entries]


async def test_what_operators_started_comes_back_in_order_as_far_as_it_fits(
    make_scheduler: Any, tmp_path: Path
) -> None:
    models = [
        fake("a", memory_mib=400), fake("broken", "--die", "3"), fake("b", memory_mib=400), fake("c", memory_mib=400),
        fake("d"), fake("small", memory_mib=100), fake("never"),
    ]  # fmt: skip
    first = make_scheduler(*models, memory_limit_mb=10_000)
    for name in ("b", "c", "a", "d", "small"):
        await first.start(ModelId(name))
    with pytest.raises(Refused):
        await first.start(ModelId("broken"))
    await first.stop(ModelId("d"))
    give(first, await take(first, "never"))
    assert desired(tmp_path) == [("b", 1), ("c", 1), ("a", 1), ("small", 1), ("broken", 1)]
    await first.shutdown(0.0)

    second = make_scheduler(*models, memory_limit_mb=1000)
    running = asyncio.create_task(second.run())
    await until(lambda: second.count_idle_places() == 12)
    states = {each.id: each.state for each in await second.list_models()}
    assert {name for name, state in states.items() if state == "ready"} == {"b", "c", "small"}
    left_out = await card(second, "a")
    assert left_out.state == "cold"
    assert "there was no room for it" in left_out.reason or "not started: needs 419 MB" in left_out.reason
    # It still comes up on demand.
    give(second, await take(second, "a"))
    await second.shutdown(0.0)
    await running


async def test_a_fallen_engine_comes_back_though_nobody_waits(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake("one"))
    give(scheduler, await take(scheduler, "one"))
    os.kill((await instance_of(scheduler, "one")).pid, signal.SIGKILL)
    await until(lambda: scheduler.restarts_by_model() == {"one": 1} and scheduler.count_idle_places() == 4)


# -- another catalogue


async def test_a_changed_model_goes_on_with_its_queue(make_scheduler: Any) -> None:
    old, gone, same = fake("one", parallel=1), fake("gone"), fake("same")
    scheduler = make_scheduler(old, gone, same)
    place = await take(scheduler, "one")
    give(scheduler, await take(scheduler, "same"))
    kept = await instance_of(scheduler, "same")
    other = await take(scheduler, "gone")
    waiting = asyncio.create_task(take(scheduler, "one"))
    await until(lambda: scheduler.count_waiting() == 1)
    changing = asyncio.create_task(
        scheduler.change_models([fake("one", parallel=2), same, fake("new")], [ModelId("gone")])
    )
    assert (await waiting).instance == "one#2"
    with pytest.raises(Refused, match="does not exist"):
        await take(scheduler, "gone")
    give(scheduler, place)
    give(scheduler, other)
    await changing
    assert [each.id for each in await scheduler.list_models()] == ["new", "one", "same"]
    assert sorted(each.id for each in await scheduler.list_instances()) == ["one#2", "same#1"]
    assert (await instance_of(scheduler, "same")).pid == kept.pid
    give(scheduler, await take(scheduler, "new"))
