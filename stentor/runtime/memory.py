"""What fits: context and places of a model in the memory that is free, and how many threads to give it."""

import os

import msgspec
import psutil

from stentor.runtime.gguf import GgufHeader
from stentor.runtime.launchers.base import LaunchRefused
from stentor.runtime.spec import ModelSpec, Pooling

MIB = 1 << 20
# Bytes per number of the cache types: ggml's block sizes (bytes per block / numbers per block).
_CACHE_BYTES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32,
    "q4_0": 18 / 32, "iq4_nl": 18 / 32,
}  # fmt: skip
_RESERVE_BYTES = 256 * MIB


class ContextPlan(msgspec.Struct, frozen=True):
    """``ctx`` tokens on each of ``places``, which need ``needed_bytes`` in all."""

    ctx: int
    places: int
    needed_bytes: int


def plan_context(header: GgufHeader, spec: ModelSpec, ctx: int, free_bytes: int | None) -> ContextPlan:
    """``ctx`` tokens a request, at most what the model was trained for, on as many places as memory allows.

    ``ctx`` is a promise to each request, so places are given up before tokens are. Raises LaunchRefused with the
    numbers when not even one place fits. needed = weights + places × ctx × cache bytes a token + reserve for buffers.
    ``free_bytes`` None: memory is not looked at.
    """
    ctx = min(ctx, header.trained_ctx) if header.trained_ctx else ctx
    token_bytes = header.kv_elements * (_CACHE_BYTES[spec.cache_type_k] + _CACHE_BYTES[spec.cache_type_v]) / 2
    fixed_bytes = header.file_bytes + spec.cache_ram_mib * MIB + _RESERVE_BYTES
    place_bytes = int(ctx * token_bytes)
    for places in range(spec.parallel, 0, -1):
        needed_bytes = fixed_bytes + places * place_bytes
        if free_bytes is None or needed_bytes <= free_bytes:
            return ContextPlan(ctx, places, needed_bytes)
    assert free_bytes is not None
    room_tokens = int((free_bytes - fixed_bytes) / token_bytes) if token_bytes else 0
    advice = f"set ctx to at most {room_tokens}" if room_tokens >= 512 else "take a smaller model or quantization"
    raise LaunchRefused(
        f"Model '{spec.id}' needs {(fixed_bytes + place_bytes) // MIB} MiB for one request of {ctx} tokens; "
        f"{free_bytes // MIB} MiB are free. Stop another model, or {advice}.",
        public="there is not enough free memory for it",
    )


def choose_pooling(header: GgufHeader, spec: ModelSpec) -> Pooling:
    """How token vectors become one: as the operator says, as the model says (empty), else their mean."""
    if spec.type == "reranker":
        return "rank"
    if spec.pooling or header.has_pooling or spec.type not in ("embedding", "vision-embedding"):
        return spec.pooling
    return "mean"


def find_free_bytes(limit_mb: int | None, planned_bytes: int) -> int:
    """Memory that a new engine may use: what the machine has available, at most what others leave of the limit."""
    available: int = psutil.virtual_memory().available
    return available if limit_mb is None else max(0, min(available, limit_mb * MIB - planned_bytes))


def choose_threads(configured: int | None) -> int:
    """CPU threads of one engine: as configured, else one less than the physical cores we may use, at least one."""
    if configured is not None:
        return configured
    usable = len(os.sched_getaffinity(0))
    physical: int = psutil.cpu_count(logical=False) or usable
    return max(1, min(physical, usable) - 1)
