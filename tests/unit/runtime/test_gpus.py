"""Layers onto graphics cards, by the formula, and the cards' memory as NVIDIA's library tells it."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from stentor.core.units import MIB
from stentor.runtime.estimate import PROCESS_BYTES, MemoryEstimate, estimate_memory
from stentor.runtime.gguf import CacheShape
from stentor.runtime.gpus import CARD_BASE_BYTES, GpuMemory, GpuPlan, GpuProbe, plan_gpu, read_gpu_memory
from stentor.runtime.launchers.base import LaunchOrder
from stentor.runtime.launchers.llama_server import choose_optional_wishes, choose_wishes
from stentor.runtime.spec import ModelSpec
from tests.unit.runtime.test_kinds import header

GIB = 1 << 30
# Of 32 layers and a table of words: 3.9 GiB of weights, as a model of 7 billion numbers in four bits has.
LARGE = header(
    file_bytes=4000 * MIB, blocks=32, width=4096, inner=11008, heads=32, words=32000, numbers=7_000_000_000, tables=2,
    cache=CacheShape(keys=32 * 1024, values=32 * 1024),
)  # fmt: skip
PARTS = estimate_memory(LARGE, ModelSpec(id="m", cache_ram_mib=0), 8192, 1)


def card(free_mib: int, total_mib: int = 24_000, name: str = "A card") -> GpuMemory:
    return GpuMemory(name, total_mib * MIB, free_mib * MIB)


def plan(*cards: GpuMemory, parts: MemoryEstimate = PARTS, **more: Any) -> GpuPlan:
    found = plan_gpu(LARGE, parts, cards, **more)
    assert found is not None
    for place, held in enumerate(found.card_bytes):
        assert held <= cards[place].free_bytes, "a card is asked for more than it has"
        assert bool(held) == bool(found.split[place])
    assert sum(found.split) == found.layers <= LARGE.blocks + 1
    assert found.host_bytes >= PROCESS_BYTES
    return found


def test_everything_goes_on_a_card_that_is_large_enough():
    found = plan(card(23_000))
    assert (found.layers, found.split) == (33, (33,))
    # The table of words stays, and what the process needs for itself.
    assert found.host_bytes < 700 * MIB
    assert found.host_bytes + found.card_bytes[0] >= PARTS.total


def test_what_does_not_fit_stays_in_the_machines_memory():
    half = plan(card(3000))
    assert 8 < half.layers < 28
    assert PARTS.total * 0.3 < half.host_bytes < PARTS.total
    least = plan(card(CARD_BASE_BYTES // MIB))
    assert (least.layers, least.split, least.card_bytes) == (0, (0,), (0,))
    assert least.host_bytes == PROCESS_BYTES + PARTS.total


def test_more_room_never_means_fewer_layers():
    layers = [plan(card(free)).layers for free in range(0, 9000, 100)]
    assert layers == sorted(layers)
    assert (layers[0], layers[-1]) == (0, 33)


def test_of_several_cards_the_fullest_that_will_do_takes_all():
    assert plan(card(23_000), card(9_000), card(1_000)).split == (0, 33, 0)


def test_a_model_larger_than_each_card_is_spread_by_their_room():
    found = plan(card(4000), card(2500))
    assert found.layers == 33
    assert found.split[0] > found.split[1] > 4


def test_cards_without_room_take_nothing():
    found = plan(card(0), card(3000), card(100))
    assert (found.split[0], found.split[2]) == (0, 0)
    assert found.split[1] == found.layers > 0


def test_a_longer_conversation_leaves_room_for_fewer_layers():
    short, long = (estimate_memory(LARGE, ModelSpec(id="m", cache_ram_mib=0), ctx, 4) for ctx in (2048, 16384))
    assert plan(card(4000), parts=short).layers > plan(card(4000), parts=long).layers


def test_after_running_out_of_memory_a_card_is_given_less():
    assert plan(card(4000), margin=1.5).layers < plan(card(4000)).layers


def test_the_projector_takes_its_place_on_the_first_card_or_none():
    seeing = msgspec.structs.replace(PARTS, projector=1500 * MIB)
    assert plan(card(4000), parts=seeing).layers < plan(card(4000), parts=seeing, eyes=False).layers


def test_a_file_that_does_not_say_how_many_layers_it_has_is_left_to_the_engine():
    assert plan_gpu(msgspec.structs.replace(LARGE, blocks=0), PARTS, (card(9000),)) is None


@pytest.mark.parametrize("free", [(0, 0), (700, 700), (1500, 3000, 500), (9000, 9000), (2000, 2000, 2000, 2000)])
def test_no_card_is_ever_asked_for_more_than_it_has(free: tuple[int, ...]):
    plan(*(card(each) for each in free))


class Nvml:
    """NVIDIA's library as ``nvidia-ml-py`` has it: handles, structures, names as bytes in old versions, errors."""

    class NVMLError(Exception):
        pass

    def __init__(self, *cards: tuple[Any, int, int]) -> None:
        self._cards = cards

    def nvmlDeviceGetCount(self) -> int:
        return len(self._cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if self._cards[index][1] < 0:
            raise self.NVMLError("GPU is lost")
        return self._cards[index]

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        _name, total, free = handle
        return SimpleNamespace(total=total, free=free, used=total - free)

    def nvmlDeviceGetName(self, handle: Any) -> Any:
        return handle[0]


def test_the_cards_are_read_as_the_library_tells_them():
    cards = read_gpu_memory(Nvml((b"Tesla T4", 15 * GIB, 14 * GIB), ("NVIDIA H200", 140 * GIB, GIB)))
    assert cards == (GpuMemory("Tesla T4", 15 * GIB, 14 * GIB), GpuMemory("NVIDIA H200", 140 * GIB, GIB))


def test_a_card_that_fell_off_the_bus_keeps_its_number_and_gets_nothing():
    cards = read_gpu_memory(Nvml(("A", -1, 0), ("B", 24 * GIB, 23 * GIB)))
    assert plan(*cards).split == (0, 33)


def test_without_library_or_driver_there_are_no_cards():
    assert GpuProbe().read() == ()


def test_the_plan_is_put_into_the_engines_words(tmp_path):
    spec = ModelSpec(id="m", engine="llama-server")
    order = LaunchOrder(
        spec=spec, port=1, weights=tmp_path, ctx=512, places=1, threads=1, gpu=GpuPlan(33, (20, 13), (1, 1), 1)
    )
    wishes = {names[0]: value for names, value in choose_wishes(order, tmp_path / "key") if names}
    assert (wishes["--n-gpu-layers"], wishes["--tensor-split"]) == ("33", "20,13")
    assert (("--fit",), "off") in choose_optional_wishes(order)
    bare = msgspec.structs.replace(order, gpu=None)
    assert not {"--n-gpu-layers", "--tensor-split"} & {names[0] for names, _ in choose_wishes(bare, tmp_path / "key")}
    assert (("--fit",), "off") not in choose_optional_wishes(bare)
