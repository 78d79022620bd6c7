"""A start that really lacks memory, as its address space is bounded, and what it is tried with next."""

import asyncio
import re
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_harness import give, instance_of, take, until
from tiny_gguf import write_tiny_gguf

from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.runtime.host import EngineChild, LocalHost
from stentor.runtime.launchers.base import Launch
from stentor.runtime.spec import ModelSpec

CONTEXT = 1 << 19
# Half a context is 64 MiB of cache less, and buffers beside; the rest is for what differs from run to run.
LACKING_KIB = 40 * 1024


class TightHost(LocalHost):
    """This machine, where no engine gets more address space than so much."""

    def __init__(self, limit_kib: int) -> None:
        super().__init__()
        self._limit_kib = limit_kib

    async def spawn(self, launch: Launch, tag: dict[str, str], tail: deque[str]) -> EngineChild:
        bounded = ("/bin/sh", "-c", f'ulimit -v {self._limit_kib}; exec "$@"', "sh", *launch.argv)
        return await super().spawn(msgspec.structs.replace(launch, argv=bounded), tag, tail)


def long_model(folder: Path, **fields: Any) -> ModelSpec:
    """A model that needs next to nothing for itself and 256 bytes a token."""
    weights = write_tiny_gguf(folder / "long.gguf", trained_ctx=CONTEXT)
    few = {"parallel": 1, "threads": 1, "batch": 32, "ubatch": 32, "cache_ram_mib": 0, "load_mode": "none"}
    # One arena: the others take address space that nothing uses.
    return ModelSpec(id="long", source=f"file:{weights}", env={"MALLOC_ARENA_MAX": "1"}, **{**few, **fields})


async def measure_kib(scheduler: Any) -> int:
    """The most address space that the model's engine had."""
    give(scheduler, await take(scheduler, "long", timeout_s=60))
    card = await instance_of(scheduler, "long")
    assert card.context_size == CONTEXT
    found = re.search(r"VmPeak:\s+(\d+) kB", Path(f"/proc/{card.pid}/status").read_text())
    await scheduler.stop(ModelId("long"))
    assert found is not None
    return int(found[1])


async def test_what_really_lacks_memory_is_tried_again_with_less(make_scheduler: Any, tmp_path: Path) -> None:
    spec = long_model(tmp_path)
    settings: dict[str, Any] = {"default_ctx": CONTEXT, "start_stall_s": 60.0, "queue_timeout_s": 60.0}
    whole_kib = await measure_kib(make_scheduler(spec, **settings))
    scheduler = make_scheduler(spec, host=TightHost(whole_kib - LACKING_KIB), **settings)
    with pytest.raises(Refused, match="memory did not suffice"):
        await take(scheduler, "long", timeout_s=60)
    await until(lambda: scheduler.count_idle_places() == 1, 60)
    card = await instance_of(scheduler, "long")
    assert (card.context_size, card.restarts) == (CONTEXT // 2, 1)
    assert any("failed to allocate" in line for line in card.log_tail)
    assert scheduler.resolve("long", frozenset()).context_size == CONTEXT // 2
    give(scheduler, await take(scheduler, "long", timeout_s=60))


async def test_a_promised_context_is_not_made_smaller_but_refused_with_advice(
    make_scheduler: Any, tmp_path: Path
) -> None:
    spec = long_model(tmp_path, ctx=CONTEXT)
    settings: dict[str, Any] = {"start_stall_s": 60.0, "queue_timeout_s": 60.0}
    whole_kib = await measure_kib(make_scheduler(spec, **settings))
    scheduler = make_scheduler(spec, host=TightHost(whole_kib - LACKING_KIB), **settings)
    with pytest.raises(Refused, match="memory did not suffice"):
        await take(scheduler, "long", timeout_s=60)
    async with asyncio.timeout(60):
        while "Set ctx, parallel or gpu_layers lower" not in (await instance_of(scheduler, "long")).reason:
            await asyncio.sleep(0.02)
    assert "ran out of memory 2 times" in (await instance_of(scheduler, "long")).reason
