"""The pure decisions: which instance, who is next, which port, when again, what fits."""

import asyncio
import contextlib
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stentor.core.errors import Refused
from stentor.core.ids import InstanceId, KeyId, ModelId
from stentor.runtime.breaker import Breaker, BreakerPolicy
from stentor.runtime.estimate import CACHE_BYTES
from stentor.runtime.gguf import CacheShape, GgufHeader, InvalidGguf, describe_cache, read_header
from stentor.runtime.launchers.base import LaunchRefused, choose_environment
from stentor.runtime.memory import (
    MIB,
    ContextPlan,
    Held,
    choose_free_bytes,
    choose_pooling,
    choose_threads,
    plan_memory,
)
from stentor.runtime.queue import Waiter, WaitQueue, choose_displaced, choose_next_waiter
from stentor.runtime.routing import Affinity, choose_instance
from stentor.runtime.slots import NoSlot, Slots, choose_port
from stentor.runtime.spec import ModelSpec, ServedModel
from tests.serving import free_port

SERVED = ServedModel(ModelId("m"), (), ("text",), 8192, "llama", "m", 0)


class Load:
    def __init__(self, running: int, places: int = 4) -> None:
        self.running = running
        self.places = places


@pytest.mark.parametrize(
    ("running", "preferred", "expected"),
    [
        ([], -1, -1),
        ([4, 4], -1, -1),
        ([4, 4], 1, -1),
        ([2, 1, 3], -1, 1),
        ([1, 1], -1, 0),
        ([1, 2], 1, 1),
        ([1, 3], 1, 0),
        ([4, 3], 0, 1),
        ([0, 0], 7, 0),
    ],
)
def test_the_least_busy_instance_unless_the_conversation_lives_elsewhere(
    running: list[int], preferred: int, expected: int
) -> None:
    assert choose_instance([Load(count) for count in running], preferred) == expected


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), max_size=6), st.integers(-1, 6))
def test_a_full_instance_is_never_chosen(loads: list[tuple[int, int]], preferred: int) -> None:
    candidates = [Load(*load) for load in loads]
    chosen = choose_instance(candidates, preferred)
    free = [index for index, each in enumerate(candidates) if each.running < each.places]
    assert (chosen in free) if free else chosen == -1


def test_affinity_forgets_the_oldest_and_ignores_no_prefix() -> None:
    affinity = Affinity(entries=2)
    for key in (0, 1, 2, 1, 3):
        affinity.note(key, f"i{key}")
    assert [affinity.find(key) for key in (0, 1, 2, 3)] == [None, "i1", None, "i3"]


def test_turns_go_round_among_keys() -> None:
    assert choose_next_waiter({}) is None
    assert choose_next_waiter({KeyId("b"): [1], KeyId("a"): [1, 2]}) == "b"


@pytest.mark.parametrize(
    ("waiting", "newcomer", "expected"),
    [
        ({}, "a", None),
        ({"a": 3}, "a", None),
        ({"a": 3}, "b", "a"),
        ({"a": 2, "b": 1}, "b", None),
        ({"a": 1}, "b", None),
    ],
)
def test_only_a_key_with_far_more_waiters_gives_one_up(
    waiting: dict[str, int], newcomer: str, expected: str | None
) -> None:
    lines = {KeyId(key): range(count) for key, count in waiting.items()}
    assert choose_displaced(lines, KeyId(newcomer)) == expected


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "pop", "leave"])), max_size=60))
async def test_the_queue_never_loses_or_repeats_anyone(steps: list[tuple[str, str]]) -> None:
    queue, inside, out = WaitQueue(5), [], []
    for key, step in steps:
        if step == "add":
            waiter = Waiter(KeyId(key), 0, 0.0, asyncio.get_running_loop().create_future())
            try:
                queue.add(waiter, SERVED)
            except Refused:
                continue
            inside.append(waiter)
        elif step == "pop" and (next_one := queue.pop()) is not None:
            out.append(next_one)
        elif step == "leave" and inside:
            queue.remove(inside[-1])
            out.append(inside[-1])
        for refused in [each for each in inside if each.place.done()]:
            assert isinstance(refused.place.exception(), Refused)
            out.append(refused)
        inside = [each for each in inside if each not in out]
        assert queue.length == len(inside) <= 5
    assert len({id(each) for each in out}) == len({id(each) for each in out if each not in inside})


def test_ports_that_others_hold_are_skipped() -> None:
    assert choose_port((1, 2, 3), {1: "x"}, lambda port: port != 2) == (3, [2])
    assert choose_port((1, 2), {1: "x"}, lambda _port: False) == (None, [2])


def test_no_slot_says_who_holds_them() -> None:
    slots = Slots(1, 0)
    with pytest.raises(NoSlot, match="There are no slots"):
        slots.take(InstanceId("m#1"))


def test_memory_is_planned_as_long_as_a_port_is_held() -> None:
    port = free_port()
    slots = Slots(port, 1)
    assert slots.take(InstanceId("m#1"), 700) == port
    assert slots.planned_bytes == 700
    slots.free(InstanceId("m#1"))
    assert slots.planned_bytes == 0


def test_engines_share_the_memory_limit() -> None:
    assert choose_free_bytes(64 * MIB, 1 << 40, []) == 64 * MIB
    assert choose_free_bytes(64 * MIB, 1 << 40, [Held(40 * MIB)]) == 24 * MIB
    assert choose_free_bytes(64 * MIB, 1 << 40, [Held(40 * MIB), Held(25 * MIB)]) == 0
    # More in use than was planned counts as well.
    assert choose_free_bytes(64 * MIB, 1 << 40, [Held(40 * MIB, 50 * MIB)]) == 14 * MIB


def test_memory_that_an_engine_will_still_use_is_not_free() -> None:
    assert choose_free_bytes(None, 100 * MIB, [Held(30 * MIB, 10 * MIB, 10 * MIB)]) == 80 * MIB
    # Weights mapped from a file look available to the system.
    assert choose_free_bytes(None, 100 * MIB, [Held(30 * MIB, 30 * MIB, 5 * MIB)]) == 75 * MIB
    assert choose_free_bytes(None, 100 * MIB, [Held(5 * MIB, 9 * MIB, 9 * MIB)]) == 100 * MIB


def policy(**fields: Any) -> BreakerPolicy:
    return BreakerPolicy(**{"first_s": 1.0, "max_s": 8.0, "failures": 4, "window_s": 100.0, "open_s": 60.0, **fields})


def test_pauses_double_up_to_the_limit_then_the_breaker_opens() -> None:
    breaker = Breaker(policy(failures=6), lambda: 0.5)
    assert [breaker.note_failure(at, permanent=False) for at in range(5)] == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert not breaker.is_open
    assert breaker.note_failure(5, permanent=False) == 60.0
    assert breaker.is_open


@given(st.floats(0, 1, exclude_max=True))
def test_jitter_spreads_the_first_pause_from_half_to_one_and_a_half(random: float) -> None:
    assert 0.5 <= Breaker(policy(), lambda: random).note_failure(0.0, permanent=False) <= 1.5


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker(policy(), lambda: 0.5)
    for at in (0, 200, 400, 600, 800):
        assert breaker.note_failure(at, permanent=False) == 1.0
    assert not breaker.is_open


def test_a_failed_trial_keeps_it_open_twice_as_long() -> None:
    breaker = Breaker(policy(), lambda: 0.5)
    assert [breaker.note_failure(at, permanent=True) for at in (0, 500, 1000)] == [60.0, 120.0, 240.0]
    breaker.note_ready()
    assert not breaker.is_open
    assert breaker.note_failure(2000, permanent=False) == 1.0


def test_engines_that_come_up_and_fall_again_open_it_too() -> None:
    breaker = Breaker(policy(), lambda: 0.5)
    for at in range(4):
        breaker.note_failure(at, permanent=False)
        opened = breaker.is_open
        breaker.note_ready()
    assert opened


def header(**fields: Any) -> GgufHeader:
    base = {"architecture": "llama", "name": "m", "trained_ctx": 4096, "file_bytes": 100 * MIB}
    return GgufHeader(**{**base, **fields})


def spec(**fields: Any) -> ModelSpec:
    return ModelSpec(**{"id": "m", "source": "file:/m.gguf", **fields})


def plan(size_mib: int | None, *, ctx: int = 4096, **fields: Any) -> tuple[ContextPlan, ...]:
    asked = spec(**fields)
    budget_bytes = None if size_mib is None else size_mib * MIB
    token_bytes = 128 * (CACHE_BYTES[asked.cache_type_k] + CACHE_BYTES[asked.cache_type_v])
    return plan_memory(asked, ctx, budget_bytes, lambda tokens, places: 356 * MIB + places * int(tokens * token_bytes))


def test_places_are_given_up_before_tokens() -> None:
    # One place: 4096 tokens × 256 numbers × 2 bytes = 2 MiB; fixed: 100 + 256 MiB.
    assert [(each.ctx, each.places) for each in plan(1000)] == [(4096, 4), (4096, 3), (4096, 2), (4096, 1)]
    assert plan(361)[0] == ContextPlan(4096, 2, 360 * MIB)
    with pytest.raises(LaunchRefused, match="needs 358 MiB for one request of 4096 tokens; 357 MiB can be had"):
        plan_memory(spec(ctx=4096), 4096, 357 * MIB, lambda _ctx, places: (356 + 2 * places) * MIB)


def test_only_a_context_that_nobody_asked_for_shrinks() -> None:
    assert plan(357)[0].ctx == 2048
    with pytest.raises(LaunchRefused, match="take a smaller model"):
        plan(300)


def test_memory_is_not_looked_at_without_a_budget() -> None:
    assert plan(None, ctx=100_000, parallel=9) == (ContextPlan(100_000, 9, 0),)


def test_a_smaller_cache_type_holds_more_places() -> None:
    assert plan(359)[0].places == 1
    assert plan(359, cache_type_k="q8_0", cache_type_v="q8_0")[0].places == 2


@given(st.integers(1, 1024), st.integers(300, 3000))
def test_plans_fit_and_get_smaller(parallel: int, size_mib: int) -> None:
    with contextlib.suppress(LaunchRefused):
        plans = plan(size_mib, parallel=parallel)
        assert all(each.needed_bytes <= size_mib * MIB for each in plans)
        assert [each.places for each in plans] == sorted({each.places for each in plans}, reverse=True)
        assert plans[-1].places == 1
        assert len(plans) <= 34


def test_pooling_is_the_mean_where_nobody_says() -> None:
    assert choose_pooling(header(), spec(type="embedding")) == "mean"
    assert choose_pooling(header(has_pooling=True), spec(type="embedding")) == ""
    assert choose_pooling(header(), spec(type="embedding", pooling="cls")) == "cls"
    assert choose_pooling(header(), spec(type="reranker")) == "rank"
    assert choose_pooling(header(), spec()) == ""


def test_threads_leave_a_core_free() -> None:
    assert choose_threads(3) == 3
    assert choose_threads(None) >= 1


def test_cache_size_follows_heads_and_lengths() -> None:
    pairs: dict[str, Any] = {
        "llama.block_count": 30,
        "llama.attention.head_count": 9,
        "llama.attention.head_count_kv": 3,
        "llama.embedding_length": 576,
    }
    assert describe_cache("llama", pairs) == CacheShape(keys=30 * 3 * 64, values=30 * 3 * 64)
    pairs["llama.attention.head_count_kv"] = [3, 0, 1]
    assert describe_cache("llama", pairs) == CacheShape(keys=4 * 64, values=4 * 64)
    assert describe_cache("llama", {}) == CacheShape()


@given(st.binary(max_size=400), st.booleans())
def test_a_broken_head_is_an_invalid_file_and_nothing_else(data: bytes, framed: bool) -> None:
    text = b"GGUF" + struct.pack("<IQQ", 3, 1, 5) + data if framed else data
    with tempfile.NamedTemporaryFile() as file, contextlib.suppress(InvalidGguf):
        file.write(text)
        file.flush()
        assert read_header(Path(file.name)).file_bytes == len(text)


def test_children_inherit_an_allow_list() -> None:
    base = {
        "PATH": "/bin",
        "STENTOR_MASTER_KEY": "s",
        "LLAMA_ARG_PORT": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "API_KEY": "s",
    }
    kept = choose_environment(base, {"MINE": "yes", "PATH": "/mine"})
    assert kept == {"PATH": "/mine", "CUDA_VISIBLE_DEVICES": "0", "MINE": "yes"}
