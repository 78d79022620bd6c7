"""How long idle models are kept: the operator's limit, what requests ask of it, and what they may; in virtual time."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from engine_harness import LocalFiles
from virtual import VirtualClock, VirtualHost, VirtualLoop

from stentor.core.ids import KeyId, ModelId, RequestId
from stentor.core.scheduler import InstanceCard
from stentor.runtime.keeping import WISHES_MAX, Keep, KeepBounds, Keeping, KeepWish, bound_keep
from stentor.runtime.place import Place
from stentor.runtime.scheduler import LocalScheduler
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.spec import ModelSpec

ONE = ModelId("one")


class House:
    """A scheduler with one model, in memory."""

    def __init__(self, folder: Path, settings: dict[str, Any], spec: dict[str, Any]) -> None:
        host = VirtualHost(random.Random(1), 10_000, {"one": 50})
        model = ModelSpec(id="one", engine="command", command=("/bin/sh", "${PORT}", "one"), memory_mib=50, **spec)
        runtime = RuntimeSettings(data_dir=folder, slot_first_port=5000, slot_count=3, models=(model,), **settings)
        self.scheduler = LocalScheduler(runtime, LocalFiles(), {}, VirtualClock(), None, host)  # type: ignore[arg-type]

    async def take(self, keep_s: float | None = None, key: str = "k", **fields: Any) -> Place:
        """A place for a request ``r-…`` that asks to keep the model for ``keep_s``."""
        request = RequestId(f"r-{key}")
        place = self.scheduler.try_acquire(ONE, 0) or await self.scheduler.acquire(
            ONE, key_id=KeyId(key), prefix_key=0, timeout_s=60
        )
        if keep_s is not None:
            wish = KeepWish(request, KeyId(key), keep_s, **fields)
            self.scheduler.keep(place.instance, place.generation, wish)
        return place

    def give(self, place: Place) -> None:
        self.scheduler.release(place.instance, place.generation, suspect=False)

    async def ask(self, keep_s: float | None = None, key: str = "k", **fields: Any) -> None:
        """A whole request, of a second."""
        place = await self.take(keep_s, key, **fields)
        await asyncio.sleep(1)
        self.give(place)

    async def look(self) -> InstanceCard:
        return (await self.scheduler.list_instances())[0]

    async def is_there(self, after_s: float) -> bool:
        await asyncio.sleep(after_s)
        return (await self.look()).state == "ready"


def live(folder: Path, story: Callable[[House], Awaitable[None]], spec: Any = None, **settings: Any) -> None:
    async def main() -> None:
        house = House(folder, settings, spec or {})
        await story(house)
        await house.scheduler.shutdown(0.0)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_asked_for_nothing_it_leaves_as_soon_as_it_is_idle_and_says_why(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        place = await house.take(0, "k")
        other = await house.take(None, "o")
        await asyncio.sleep(5)
        house.give(place)
        assert await house.is_there(100)  # somebody else is served yet
        house.give(other)
        assert not await house.is_there(1)
        assert (await house.look()).reason == "unloaded: keep_alive 0 of request r-k"
        card = await house.scheduler.find_model("one")
        assert card is not None
        assert (card.state, card.reason) == ("cold", "unloaded: keep_alive 0 of request r-k")
        assert house.scheduler.departures() == {(ONE, "idle"): 1}
        # What was asked held for that load.
        await house.ask()
        assert await house.is_there(1000)

    live(tmp_path, story)


def test_who_waits_for_a_place_is_served_before_it_leaves(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        place = await house.take(0)
        waiting = asyncio.create_task(house.take())
        await asyncio.sleep(2)
        house.give(place)
        second = await waiting
        assert second.generation == place.generation
        house.give(second)
        assert not await house.is_there(1)

    live(tmp_path, story, {"parallel": 1})


@pytest.mark.parametrize(("keep_s", "stays_s", "left_s"), [(30, 29, 31), (600, 599, 601), (0.2, 0.1, 0.4)])
def test_it_is_kept_for_as_long_as_was_asked(tmp_path: Path, keep_s: float, stays_s: float, left_s: float) -> None:
    async def story(house: House) -> None:
        await house.ask(keep_s)
        now_us = VirtualClock().now_us()
        assert (await house.look()).leaves_us == pytest.approx(now_us + keep_s * 1e6, abs=2e4)
        assert await house.is_there(stays_s)
        assert not await house.is_there(left_s - stays_s)
        assert f"keep_alive {keep_s:g} s of request r-k" in (await house.look()).reason

    live(tmp_path, story, idle_unload_s=100.0)


def test_each_question_begins_the_time_anew_and_those_that_say_nothing_keep_it(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await house.ask(30)
        assert await house.is_there(25)
        await house.ask()
        assert await house.is_there(25)
        await house.ask(10)
        assert not await house.is_there(11)

    live(tmp_path, story)


def test_for_ever_is_until_asked_otherwise(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await house.ask(math.inf)
        assert (await house.look()).leaves_us is None
        assert await house.is_there(100_000)
        await house.ask(5, "another")
        assert await house.is_there(100)  # nobody sends away what somebody else asked to keep
        await house.ask(5)
        assert not await house.is_there(6)

    live(tmp_path, story, idle_unload_s=60.0, keep_alive=KeepBounds(max_s=math.inf))
    live(tmp_path, story)


def test_an_ordinary_key_is_bound_by_the_operators_settings(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await house.ask(math.inf)
        assert await house.is_there(899)
        assert not await house.is_there(2)
        assert "keep_alive for ever of request r-k, which may have 15 min" in (await house.look()).reason
        await house.ask(0)
        assert await house.is_there(19)
        assert not await house.is_there(2)
        await house.ask(math.inf, by_operator=True)
        assert await house.is_there(100_000)
        await house.ask(0, by_operator=True)
        assert not await house.is_there(1)

    live(tmp_path, story, idle_unload_s=60.0, keep_alive=KeepBounds(min_s=20, max_s=900))


def test_a_longer_limit_of_the_operators_counts(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await house.ask(500)
        assert await house.is_there(499)
        assert not await house.is_there(2)

    live(tmp_path, story, {"idle_unload_s": 1000.0}, keep_alive=KeepBounds(max_s=10))


def test_a_pinned_model_stays_whatever_is_asked(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await house.ask(0)
        assert await house.is_there(1000)
        assert (await house.look()).leaves_us is None

    live(tmp_path, story, {"pinned": True})


def test_a_place_that_is_long_gone_asks_for_nothing(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        place = await house.take()
        house.give(place)
        await house.scheduler.stop(ONE)
        await house.ask()
        house.scheduler.keep(place.instance, place.generation, KeepWish(RequestId("r"), KeyId("k"), 0))
        assert await house.is_there(100)

    live(tmp_path, story)


def test_waiting_for_a_busy_model_to_leave_takes_no_looking_again(tmp_path: Path) -> None:
    """A model that is to leave at once is noticed when it gets idle: nobody looks a thousand times a second."""

    async def story(house: House) -> None:
        place = await house.take(0)
        decided = 0
        decide = house.scheduler._room._decide

        def count() -> None:
            nonlocal decided
            decided += 1
            decide()

        house.scheduler._room._decide = count  # type: ignore[method-assign]
        await asyncio.sleep(1000)
        house.give(place)
        assert not await house.is_there(1)
        assert decided < 200

    live(tmp_path, story)


def test_wishes_are_few_and_the_longest_of_the_latest_counts() -> None:
    keeping = Keeping(60, KeepBounds())
    for number in range(2 * WISHES_MAX):
        keeping.note(KeepWish(RequestId("r"), KeyId(f"k{number}"), 100 + number))
    assert keeping.keep.keep_s == 100 + 2 * WISHES_MAX - 1
    assert len(keeping._wishes) == WISHES_MAX
    keeping.note(KeepWish(RequestId("r"), KeyId("an operator's"), 5, by_operator=True))
    assert keeping.keep.keep_s == 5
    keeping.forget()
    assert keeping.keep == Keep(60)


@pytest.mark.parametrize(
    ("asked_s", "own_s", "got_s"),
    [(0, 60, 10), (5, 60, 10), (50, 60, 50), (90, 60, 90), (101, 60, 100), (math.inf, 60, 100),
     (math.inf, math.inf, math.inf), (500, 200, 200)],
)  # fmt: skip
def test_between_the_bounds(asked_s: float, own_s: float, got_s: float) -> None:
    bounds = KeepBounds(min_s=10, max_s=100)
    wish = KeepWish(RequestId("r"), KeyId("k"), asked_s)
    assert bound_keep(wish, own_s, bounds).keep_s == got_s
    assert bound_keep(KeepWish(RequestId("r"), KeyId("k"), asked_s, by_operator=True), own_s, bounds).keep_s == asked_s
