"""What fits on the graphics cards: how many of a model's layers, on which cards, and what is left for the machine.

The memory that is free is asked of NVIDIA's management library, where that and a driver are there. The plan is pure.
The engine's own words correct it: a start that runs out of a card's memory is planned again with a margin.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from stentor.core.lazy import load
from stentor.core.units import MIB
from stentor.runtime.estimate import PROCESS_BYTES, MemoryEstimate
from stentor.runtime.gguf import GgufHeader

# What a card's driver and libraries take for each process that uses it (CUDA's context, cuBLAS' workspace).
CARD_BASE_BYTES = 512 * MIB


class GpuMemory(msgspec.Struct, frozen=True):
    """One card, in the order that engines count them in."""

    name: str
    total_bytes: int
    free_bytes: int


class GpuPlan(msgspec.Struct, frozen=True):
    """``layers`` on cards, the output counted as one, as ``--n-gpu-layers`` does; ``split`` of them on each card.

    ``card_bytes`` is what each card gives, ``host_bytes`` what the machine's memory does.
    """

    layers: int
    split: tuple[int, ...]
    card_bytes: tuple[int, ...]
    host_bytes: int


def open_nvml() -> Any:
    """NVIDIA's management library, or None where it or a driver is missing."""
    try:
        nvml = load("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def read_gpu_memory(nvml: Any) -> tuple[GpuMemory, ...]:
    """The cards with their memory now; one that doesn't answer counts as full, so that the others keep their places."""
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            card = nvml.nvmlDeviceGetHandleByIndex(index)
            memory, name = nvml.nvmlDeviceGetMemoryInfo(card), nvml.nvmlDeviceGetName(card)
        except nvml.NVMLError:
            found.append(GpuMemory("", 0, 0))
            continue
        text = name.decode() if isinstance(name, bytes) else name
        found.append(GpuMemory(text, memory.total, memory.free))
    return tuple(found)


class GpuProbe:
    """Asks for the cards' memory; the library is opened once, and never where there is none."""

    def __init__(self) -> None:
        self._nvml: Any = None

    def read(self) -> tuple[GpuMemory, ...]:
        """The cards now; empty where nobody can tell. May take seconds where a driver wakes up: call it in a thread."""
        if self._nvml is None:
            self._nvml = open_nvml() or False
        if not self._nvml:
            return ()
        try:
            return read_gpu_memory(self._nvml)
        except self._nvml.NVMLError:
            return ()


def plan_gpu(
    header: GgufHeader, parts: MemoryEstimate, cards: Sequence[GpuMemory], *, margin: float = 1.0, eyes: bool = True
) -> GpuPlan | None:
    """As many layers on the cards as there is room for; None where the file doesn't say how many it has.

    Each layer has its share of weights and cache. A card in use also holds the buffers of the work, the first one the
    projector (``eyes`` False: that stays in the machine's memory), and the output needs a card once all layers have
    one. Everything goes on one card where it fits, the fullest that will do; else on all, by their room. ``margin``:
    so many times the formula.
    """
    if not header.blocks:
        return None
    table = parts.weights * header.words * header.width // header.numbers if header.numbers else 0
    blocks = max(0, parts.weights - header.tables * table)
    layer = max(1, int((blocks + parts.cache) / header.blocks * margin))
    output = -(-int((table + parts.outputs) * margin) // layer)
    fixed = CARD_BASE_BYTES + int(parts.buffers * margin)
    projector = parts.projector if eyes else 0
    room = [max(0, card.free_bytes - fixed - (0 if place else projector)) // layer for place, card in enumerate(cards)]
    needed = header.blocks + output
    alone = [place for place, slots in enumerate(room) if slots >= needed]
    if alone:
        best = min(alone, key=lambda place: room[place])
        split = [header.blocks + 1 if place == best else 0 for place in range(len(cards))]
    else:
        split = _spread(header.blocks + 1 if sum(room) >= needed else min(header.blocks, sum(room)), room)
    layers = sum(split)
    held = [_held(place, count, layer, fixed, projector) for place, count in enumerate(split)]
    moved = int((blocks + parts.cache) * min(layers, header.blocks) / header.blocks) + (projector if split[0] else 0)
    return GpuPlan(layers, tuple(split), tuple(held), max(PROCESS_BYTES, PROCESS_BYTES + parts.total - moved))


def _held(place: int, count: int, layer: int, fixed: int, projector: int) -> int:
    return count * layer + fixed + (0 if place else projector) if count else 0


def _spread(layers: int, room: Sequence[int]) -> list[int]:
    """``layers`` over cards in the proportion of their room, none over its own where that can be."""
    total = sum(room)
    if not total:
        return [0] * len(room)
    split = [layers * slots // total for slots in room]
    for place in sorted(range(len(room)), key=lambda place: split[place] - room[place]):
        more = min(layers - sum(split), max(room[place] - split[place], 0))
        split[place] += more
    split[max(range(len(room)), key=lambda place: room[place])] += layers - sum(split)
    return split
