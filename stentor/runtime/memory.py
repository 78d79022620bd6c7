"""What fits: context and places of a model in the memory there is, and how many threads to give it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from stentor.core.units import MIB
from stentor.runtime.gguf import GgufHeader
from stentor.runtime.launchers.base import LaunchRefused
from stentor.runtime.spec import ModelSpec, Pooling

_CGROUP = Path("/sys/fs/cgroup")


_CTX_LEAST = 2048


class ContextPlan(msgspec.Struct, frozen=True):
    """``ctx`` tokens on each of ``places``, which need ``needed_bytes`` in all."""

    ctx: int
    places: int
    needed_bytes: int


def plan_memory(
    spec: ModelSpec, ctx: int, budget_bytes: int | None, estimate: Callable[[int, int], int]
) -> tuple[ContextPlan, ...]:
    """The ways in which a model can be run, the best first: ``ctx`` tokens a request on fewer and fewer places.

    ``estimate(ctx, places)`` is the bytes that an instance needs, ``budget_bytes`` what could be had if everything
    else left (None: memory is not looked at). ``ctx`` is a promise to each request, so places are given up before
    tokens are; only a context that nobody asked for (``spec.ctx`` None) shrinks, down to 2,048, where it would not fit
    otherwise. Raises LaunchRefused with the numbers when nothing fits.
    """
    if budget_bytes is None:
        return (ContextPlan(ctx, spec.parallel, 0),)
    for tokens in _list_contexts(spec, ctx):
        plans = [ContextPlan(tokens, places, estimate(tokens, places)) for places in _list_places(spec.parallel)]
        fitting = tuple(plan for plan in plans if plan.needed_bytes <= budget_bytes)
        if fitting:
            return fitting
    raise _refuse(spec, ctx, budget_bytes, estimate)


def _list_contexts(spec: ModelSpec, ctx: int) -> list[int]:
    contexts = [ctx]
    while spec.ctx is None and contexts[-1] > _CTX_LEAST:
        contexts.append(max(_CTX_LEAST, contexts[-1] // 2))
    return contexts


def _list_places(parallel: int) -> list[int]:
    """Every number up to 16, then in steps: a plan more or less doesn't matter there."""
    step = max(1, parallel // 16)
    return sorted({1, *range(parallel, 0, -step)}, reverse=True)


def _refuse(spec: ModelSpec, ctx: int, budget_bytes: int, estimate: Callable[[int, int], int]) -> LaunchRefused:
    needed, fixed = estimate(ctx, 1), estimate(0, 1)
    room_tokens = (budget_bytes - fixed) * ctx // (needed - fixed) if needed > fixed else 0
    advice = f"set ctx to at most {room_tokens}" if room_tokens >= 512 else "take a smaller model or quantization"
    return LaunchRefused(
        f"Model '{spec.id}' needs {needed // MIB} MiB for one request of {ctx} tokens; {budget_bytes // MIB} MiB can "
        f"be had. Raise MEMORY_LIMIT_MB, or {advice}.",
        public="there is not enough memory for it",
    )


def describe_bytes(size_bytes: int) -> str:
    """``3.1 GB`` or ``350 MB`` (decimal)."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def describe_s(seconds: float) -> str:
    """``40 s`` or ``12 min``."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def choose_pooling(header: GgufHeader, spec: ModelSpec) -> Pooling:
    """How token vectors become one: as the operator says, as the model says (empty), else their mean."""
    if spec.kind == "reranker":
        return "rank"
    if spec.pooling or header.has_pooling or spec.kind not in ("embedding", "vision-embedding"):
        return spec.pooling
    return "mean"


def find_available_bytes() -> int:
    """Memory that could be had now without swapping: the machine's, at most what its control group (v2) leaves."""
    available: int = psutil.virtual_memory().available
    try:
        limit = _CGROUP.joinpath("memory.max").read_text("ascii").strip()
        used = int(_CGROUP.joinpath("memory.current").read_text("ascii"))
        stat = dict(line.split() for line in _CGROUP.joinpath("memory.stat").read_text("ascii").splitlines())
    except (OSError, ValueError):
        return available
    if not limit.isdigit():
        return available
    # Cached files count as used and are given up first: a model file just fetched must not look like a full machine.
    cached = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    return max(0, min(available, int(limit) - used + cached))


class Held(NamedTuple):
    """Bytes of one engine: planned, in use, and in use other than for mapped files."""

    planned: int
    resident: int = 0
    private: int = 0


def choose_free_bytes(limit_bytes: int | None, available_bytes: int, held: Sequence[Held]) -> int:
    """Memory that a new engine may use beside those that hold some.

    What was planned and isn't in use yet is spoken for, and so are weights mapped from files, although the system
    counts them as available. Of a limit everything planned is taken.
    """
    free_bytes = available_bytes - sum(max(0, each.planned - each.private) for each in held)
    if limit_bytes is not None:
        free_bytes = min(free_bytes, limit_bytes - sum(max(each.planned, each.resident) for each in held))
    return max(0, free_bytes)


def choose_threads(configured: int | None) -> int:
    """CPU threads of one engine: as configured, else one less than the physical cores we may use, at least one."""
    if configured is not None:
        return configured
    usable = len(os.sched_getaffinity(0))
    physical: int = psutil.cpu_count(logical=False) or usable
    return max(1, min(physical, usable) - 1)
