"""Models that are added, changed and removed while requests run and wait."""

import asyncio
from typing import Any

import pytest
from engine_harness import fake, give, take, until

from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.runtime.spec import InvalidModel

FAKE = ModelId("fake")


async def test_a_model_that_is_added_answers(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake())
    await scheduler.change_models([fake("other", aliases=("second",))])
    place = await take(scheduler, "other")
    assert place.instance == "other#1"
    assert scheduler.resolve("second", frozenset()).id == "other"
    give(scheduler, place)


async def test_a_change_lets_requests_end_and_those_that_wait_get_the_new_model(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(parallel=1))
    place = await take(scheduler, "fake")
    before = (await scheduler.list_instances())[0].pid
    waiting = [asyncio.create_task(take(scheduler, "fake", key=str(number))) for number in range(3)]
    await until(lambda: scheduler.count_waiting() == 3)
    change = asyncio.create_task(scheduler.change_models([fake(parallel=3, aliases=("renamed",))]))
    await asyncio.sleep(0.1)
    assert not change.done(), "a running request was cut off"
    assert scheduler.resolve("renamed", frozenset()).id == "fake"
    late = asyncio.create_task(take(scheduler, "fake", key="late"))
    give(scheduler, place)
    places = await asyncio.wait_for(asyncio.gather(*waiting), 20)
    await change
    cards = await scheduler.list_instances()
    assert [(card.places, card.running) for card in cards] == [(3, 3)]
    assert cards[0].pid != before
    for each in places:
        give(scheduler, each)
    give(scheduler, await late)
    assert scheduler.count_running() == 0


async def test_a_removed_model_drains_and_is_unknown(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(parallel=1), fake("other"))
    place = await take(scheduler, "fake")
    waiting = asyncio.create_task(take(scheduler, "fake"))
    await until(lambda: scheduler.count_waiting() == 1)
    change = asyncio.create_task(scheduler.change_models([], [FAKE]))
    with pytest.raises(Refused, match="was removed"):
        await waiting
    give(scheduler, place)
    await change
    assert await scheduler.list_instances() == []
    assert [card.id for card in await scheduler.list_models()] == ["other"]
    with pytest.raises(Refused) as refusal:
        scheduler.resolve("fake", frozenset())
    assert refusal.value.code == "model_not_found"


async def test_a_change_that_can_not_be_changes_nothing(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake(), fake("other", aliases=("taken",)))
    place = await take(scheduler, "fake")
    with pytest.raises(InvalidModel, match="'taken' is already taken"):
        await scheduler.change_models([fake("third"), fake("fourth", aliases=("taken",))], [FAKE])
    assert [card.id for card in await scheduler.list_models()] == ["fake", "other"]
    give(scheduler, place)


async def test_a_change_of_a_cold_model_starts_nothing(make_scheduler: Any) -> None:
    scheduler = make_scheduler(fake())
    await scheduler.change_models([fake(parallel=2)])
    assert await scheduler.list_instances() == []
    give(scheduler, await take(scheduler, "fake"))
