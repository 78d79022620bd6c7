"""Who makes room for whom, decided over a snapshot."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stentor.core.ids import InstanceId, ModelId
from stentor.runtime.eviction import (
    Reach,
    Resident,
    Space,
    Step,
    SwapPolicy,
    Wish,
    choose_evictions,
    choose_idle,
    choose_swap,
    find_stay_s,
    reserve_space,
)

POLICY = SwapPolicy()


def resident(name: str, size_bytes: int = 100, **fields: Any) -> Resident:
    """An idle one that may leave at any time, unless ``fields`` say otherwise."""
    given_fields = {"idle_s": 60.0, "resident_s": 600.0, "load_s": 2.0, **fields}
    return Resident(instance=InstanceId(f"{name}#1"), model=ModelId(name), size_bytes=size_bytes, **given_fields)


def busy(name: str, size_bytes: int = 100, **fields: Any) -> Resident:
    return resident(name, size_bytes, **{"running": 1, "idle_s": 0.0, **fields})


def wish(*sizes_bytes: int, waited_s: float = 0.0, reach: Reach = "swap", load_s: float = 0.0) -> Wish:
    return Wish(
        instance=InstanceId("new#1"),
        model=ModelId("new"),
        sizes_bytes=sizes_bytes or (100,),
        waited_s=waited_s,
        reach=reach,
        load_s=load_s,
    )


def decide(asked: Wish, *residents: Resident, slots: int = 0, free: int = 0, policy: SwapPolicy = POLICY) -> Step:
    return choose_swap(asked, residents, Space(slots, free), policy)


# -- choose_evictions


@pytest.mark.parametrize(
    ("sizes", "need", "free", "expected"),
    [
        ((), (1, 10), (1, 10), ()),
        ((), (1, 10), (0, 10), None),
        ((5, 5), (1, 0), (0, 0), (0,)),
        ((5, 5), (1, 10), (1, 2), (0, 1)),
        ((2, 50), (1, 40), (0, 0), (1,)),  # the first alone wouldn't do, the second does
        ((5, 5), (1, 11), (0, 0), None),
    ],
)
def test_as_few_leave_as_are_needed_and_the_first_ones_first(
    sizes: tuple[int, ...], need: tuple[int, int], free: tuple[int, int], expected: tuple[int, ...] | None
) -> None:
    candidates = [resident(str(number), size) for number, size in enumerate(sizes)]
    names = None if expected is None else tuple(f"{number}#1" for number in expected)
    assert choose_evictions(Space(*need), Space(*free), candidates) == names


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(0, 3), st.integers(0, 100), st.integers(0, 100))
def test_evictions_suffice_and_none_is_in_vain(sizes: list[int], slots: int, need: int, free: int) -> None:
    candidates = [resident(str(number), size) for number, size in enumerate(sizes)]
    wanted, space = Space(1, need), Space(slots, free)
    chosen = choose_evictions(wanted, space, candidates)
    everything = Space(slots + len(sizes), free + sum(sizes))
    assert (chosen is None) == (not everything.holds(wanted))
    leaving = [each for each in candidates if chosen and each.instance in chosen]
    for spared in [None, *leaving]:
        after = space
        for each in leaving:
            after = after if each is spared else after.plus(each.space)
        assert chosen is None or after.holds(wanted) == (spared is None)


# -- choose_swap


def test_free_room_is_taken_in_the_best_size() -> None:
    assert decide(wish(100, 50), slots=1, free=100) == Step(size=0)
    assert decide(wish(100, 50), busy("a"), slots=1, free=60) == Step(size=1)


def test_fewer_places_beside_others_are_better_than_turns() -> None:
    assert decide(wish(100, 50), resident("a"), slots=1, free=60) == Step(size=1)


def test_what_nobody_used_for_long_leaves_for_the_best_size() -> None:
    old = resident("a", idle_s=POLICY.stale_s)
    assert decide(wish(100, 50), old, slots=1, free=60) == Step(victims=(old.instance,), target=0)


def test_idle_models_leave_the_longest_idle_first() -> None:
    a, b = resident("a", idle_s=10), resident("b", idle_s=20)
    assert decide(wish(), a, b).victims == (b.instance,)


def test_an_idle_model_stays_until_its_idleness_cost_a_load_or_its_time_is_over() -> None:
    fresh = resident("a", load_s=8.0, idle_s=3.0, resident_s=10.0)
    assert find_stay_s(fresh, POLICY) == 5.0
    assert decide(wish(), fresh) == Step(look_s=5.0)
    assert find_stay_s(msgspec.structs.replace(fresh, resident_s=29.0), POLICY) == 1.0
    assert find_stay_s(msgspec.structs.replace(fresh, idle_s=8.0), POLICY) == 0.0


def test_the_minimum_residency_is_bounded() -> None:
    assert find_stay_s(busy("a", load_s=100.0, resident_s=10.0), POLICY) == POLICY.residency_max_s - 10.0


def test_a_busy_model_is_drained_once_the_wait_is_longer_than_the_patience() -> None:
    assert decide(wish(waited_s=4.0), busy("a")) == Step(look_s=1.0)
    assert decide(wish(waited_s=5.0), busy("a")).victims == ("a#1",)
    assert decide(wish(waited_s=5.0, load_s=4.0), busy("a")) == Step(look_s=3.0)


def test_a_busy_model_is_not_drained_before_its_minimum_residency() -> None:
    assert decide(wish(waited_s=50.0), busy("a", resident_s=6.0)) == Step(look_s=2.0)


def test_a_model_that_others_wait_for_is_busy() -> None:
    assert decide(wish(), resident("a", waiting=1)) == Step(look_s=5.0)


def test_nobody_is_drained_for_an_additional_instance() -> None:
    assert decide(wish(waited_s=99.0, reach="idle"), busy("a")) == Step()
    assert decide(wish(waited_s=99.0, reach="idle"), resident("a")).victims == ("a#1",)


def test_nothing_is_sent_away_for_what_may_only_take_free_room() -> None:
    assert decide(wish(waited_s=99.0, reach="free"), resident("a", idle_s=9_999)) == Step()


def test_what_leaves_already_is_waited_for() -> None:
    leaving = busy("a", leaving=True, settled=False)
    assert decide(wish(reach="free"), leaving, resident("b")).victims == ("a#1",)


@pytest.mark.parametrize("fields", [{"pinned": True}, {"settled": False}])
def test_pinned_and_loading_models_never_leave(fields: dict[str, bool]) -> None:
    step = decide(wish(waited_s=9_999.0), resident("a", idle_s=9_999.0, **fields))
    assert step.victims == ()
    assert step.hopeless == ("pinned" in fields)


def test_what_would_not_fit_even_alone_is_hopeless() -> None:
    assert decide(wish(500), busy("a", 100), slots=1, free=399).hopeless
    assert not decide(wish(500), busy("a", 100), slots=1, free=400).hopeless


def test_idle_models_are_spared_while_room_of_the_leaving_suffices() -> None:
    leaving, idle = busy("a", leaving=True), resident("b")
    assert decide(wish(), idle, leaving).victims == ("a#1",)


RESIDENTS = st.lists(
    st.builds(
        Resident,
        instance=st.uuids().map(lambda each: InstanceId(str(each))),
        model=st.sampled_from([ModelId("a"), ModelId("b"), ModelId("c")]),
        size_bytes=st.integers(0, 100),
        pinned=st.booleans(),
        settled=st.booleans(),
        leaving=st.booleans(),
        running=st.integers(0, 2),
        waiting=st.integers(0, 2),
        idle_s=st.floats(0, 1_000),
        resident_s=st.floats(0, 1_000),
        load_s=st.floats(0, 60),
    ),
    max_size=6,
)
WISHES = st.builds(
    wish,
    st.integers(1, 200),
    waited_s=st.floats(0, 120),
    reach=st.sampled_from(["free", "idle", "swap"]),
    load_s=st.floats(0, 60),
)


@given(RESIDENTS, WISHES, st.integers(0, 2), st.integers(0, 200))
def test_whatever_is_decided_is_allowed(residents: list[Resident], asked: Wish, slots: int, free: int) -> None:
    space = Space(slots, free)
    step = choose_swap(asked, residents, space, POLICY)
    by_name = {each.instance: each for each in residents}
    if step.size >= 0:
        assert space.holds(Space(1, asked.sizes_bytes[step.size]))
    after = space
    for name in step.victims:
        victim = by_name[name]
        after = after.plus(victim.space)
        if not victim.leaving:
            assert victim.settled
            assert not victim.pinned
            assert asked.reach != "free"
            assert victim.is_idle or (asked.reach == "swap" and asked.waited_s >= POLICY.patience_min_s)
            assert find_stay_s(victim, POLICY) == 0.0
    if step.victims:
        assert after.holds(Space(1, asked.sizes_bytes[step.target]))
    if step.look_s is not None:
        assert step.look_s > 0


@given(RESIDENTS, WISHES, st.integers(0, 2), st.integers(0, 200))
def test_a_later_wish_never_takes_what_an_earlier_one_waits_for(
    residents: list[Resident], asked: Wish, slots: int, free: int
) -> None:
    space = Space(slots, free)
    step = choose_swap(asked, residents, space, POLICY)
    if step.size >= 0 or not step.victims:
        return
    left = reserve_space(asked, step, residents, space)
    coming = space.less(left)
    assert 0 <= left.slots <= slots
    assert 0 <= left.size_bytes <= free
    for each in residents:
        if each.instance in step.victims:
            coming = coming.plus(each.space)
    assert coming.holds(Space(1, asked.sizes_bytes[step.target]))


# -- choose_idle


def test_who_was_idle_for_its_time_is_due_and_the_next_one_is_looked_at_in_time() -> None:
    due, next_s = choose_idle([resident("a", keep_s=10.0), resident("b", keep_s=100.0), resident("never")])
    assert due == ["a#1"]
    assert next_s == 40.0


@pytest.mark.parametrize("fields", [{"pinned": True}, {"running": 1, "idle_s": 0.0}, {"settled": False}])
def test_pinned_busy_and_loading_models_are_never_idle_too_long(fields: dict[str, Any]) -> None:
    assert choose_idle([resident("a", keep_s=10.0, **fields)])[0] == []


def test_whoever_is_not_kept_at_all_is_due_when_idle_and_not_waited_for_before() -> None:
    assert choose_idle([resident("a", keep_s=0.0, idle_s=0.0)]) == (["a#1"], None)
    assert choose_idle([busy("a", keep_s=0.0)]) == ([], None)
    assert choose_idle([resident("a", keep_s=0.0, settled=False)]) == ([], 0.01)
