"""What is learned and wanted over restarts, and what follows when memory runs out."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stentor.core.ids import ModelId
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.desired import Desired, DesiredModel
from stentor.runtime.failure import is_out_of_memory
from stentor.runtime.launchers.base import Launch, LaunchOrder, LaunchRefused
from stentor.runtime.memory import ContextPlan
from stentor.runtime.preparation import Preparation, Rung, list_rungs
from stentor.runtime.room import Berth
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.sizes import Seen, Sizes, choose_bytes
from stentor.runtime.spec import ModelSpec
from tests.engine.tiny_gguf import write_tiny_gguf

MIB = 1 << 20
A = ModelId("a")


def test_experience_corrects_the_formula_upwards_and_a_report_both_ways() -> None:
    assert choose_bytes(100 * MIB, Seen(resident_bytes=50 * MIB)) == 100 * MIB
    assert choose_bytes(100 * MIB, Seen(resident_bytes=200 * MIB)) == 210 * MIB
    assert choose_bytes(1000 * MIB, Seen(resident_bytes=50 * MIB, reported_bytes=100 * MIB)) == 164 * MIB


def test_what_was_learned_outlives_the_server_and_counts_for_the_same_way_alone(tmp_path: Path) -> None:
    sizes = Sizes(tmp_path / "run" / "sizes.json")
    sizes.note(A, "8192/4", 300 * MIB, 0)
    sizes.note(A, "8192/4", 200 * MIB, 0)
    sizes.note_load(A, 1.25)
    sizes.save()
    again = Sizes(tmp_path / "run" / "sizes.json")
    assert again.load_s(A) == 1.25
    assert again.correct(A, "8192/4", 100 * MIB) == 315 * MIB
    assert again.correct(A, "4096/4", 100 * MIB) == 100 * MIB
    assert again.load_s(ModelId("b")) == 0.0


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 3}', b"\xff\x00"])
def test_damaged_notes_are_no_obstacle(tmp_path: Path, content: bytes) -> None:
    for name in ("sizes.json", "desired.json"):
        (tmp_path / name).write_bytes(content)
    assert Sizes(tmp_path / "sizes.json").load_s(A) == 0.0
    assert Desired(tmp_path / "desired.json").list_models() == []


async def test_what_is_wanted_is_on_disk_in_order(tmp_path: Path) -> None:
    desired = Desired(tmp_path / "run" / "desired.json")
    await asyncio.gather(*(desired.put(ModelId(name), 1) for name in "cab"))
    await desired.put(ModelId("a"), 3)
    await desired.drop(ModelId("b"))
    assert Desired(tmp_path / "run" / "desired.json").list_models() == [
        DesiredModel(ModelId("c"), 1),
        DesiredModel(ModelId("a"), 3),
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 900.00 MiB: cudaMalloc failed: out of memory", True),
        ("llama_kv_cache_init: failed to allocate buffer for kv cache", True),
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("error: unknown model architecture", False),
    ],
)
def test_an_engine_that_ran_out_of_memory_says_so(line: str, expected: bool) -> None:
    assert is_out_of_memory(["loading", line, "ended"]) == expected


def spec(**fields: Any) -> ModelSpec:
    return ModelSpec(**{"id": "a", "source": "file:/m.gguf", **fields})


def test_the_ladder_has_only_rungs_that_change_something() -> None:
    assert list_rungs(spec(ctx=4096)) == (Rung(), Rung(margin=1.5))
    assert list_rungs(spec()) == (Rung(), Rung(ctx_share=0.5), Rung(ctx_share=0.5, margin=1.5))
    seeing = list_rungs(spec(mmproj=Path("/p.gguf")))
    assert seeing[1] == Rung(projector_on_cpu=True)
    assert all(rung.projector_on_cpu for rung in seeing[1:])
    assert seeing[-1].margin == 1.5


class Shelf:
    async def fetch(self, source: str, progress: object = None) -> Path:
        return Path(source.removeprefix("file:"))


class Orders:
    """A launcher that keeps what it was asked for."""

    def __init__(self) -> None:
        self.seen: list[LaunchOrder] = []

    async def prepare(self, order: LaunchOrder) -> Launch:
        self.seen.append(order)
        return Launch(argv=("true",), environment={}, places=order.places)


async def test_each_start_that_runs_out_of_memory_is_followed_by_a_more_modest_one(tmp_path: Path) -> None:
    model = spec(source=f"file:{write_tiny_gguf(tmp_path / 'm.gguf', trained_ctx=32_768)}")
    settings = RuntimeSettings(data_dir=tmp_path, models=(model,), default_ctx=16_384)
    orders, claimed = Orders(), []
    launchers: Any = {"llama": orders}
    preparation = Preparation(settings, Catalogue([model]), Shelf(), launchers, Sizes(tmp_path / "sizes.json"))

    async def take(plans: Sequence[ContextPlan], _way: str) -> Berth:
        claimed.append(plans[0].needed_bytes)
        return Berth(4801, plans[0])

    def budget() -> int:
        return 10_000 * MIB

    for _ in range(3):
        await preparation.prepare(model, budget, take)
        preparation.note_out_of_memory(A)
    assert [order.ctx for order in orders.seen] == [16_384, 8_192, 8_192]
    assert claimed[1] < claimed[0]
    assert claimed[2] == pytest.approx(1.5 * claimed[1], rel=0.01)
    with pytest.raises(LaunchRefused, match="ran out of memory 3 times while loading"):
        await preparation.prepare(model, budget, take)
    # The next trial, after a pause, is the most modest one.
    await preparation.prepare(model, budget, take)
    assert orders.seen[-1].ctx == 8_192
