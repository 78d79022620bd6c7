"""What the runtime must be told: where it may write, which ports it owns, which models it serves."""

from pathlib import Path

import msgspec

from stentor.runtime.eviction import SwapPolicy
from stentor.runtime.keeping import KeepBounds
from stentor.runtime.spec import ModelSpec


class RuntimeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the runtime; seconds, tokens and MiB as the names say.

    ``default_threads`` None means one less than the physical cores this process may use, at least one.
    ``memory_limit_mb`` None means what the machine has free. ``engine_bin`` is the external ``llama-server`` for
    models with ``engine = "llama-server"`` that name no binary of their own. ``idle_unload_s`` 0 means that idle
    models stay; ``keep_alive`` bounds what requests may ask instead.
    """

    data_dir: Path = Path("data")
    slot_first_port: int = 4801
    slot_count: int = 7
    queue_max: int = 256
    queue_timeout_s: float = 60.0
    default_ctx: int = 8192
    default_threads: int | None = None
    memory_limit_mb: int | None = None
    idle_unload_s: float = 0.0
    keep_alive: KeepBounds = KeepBounds()
    engine_bin: Path | None = None
    models: tuple[ModelSpec, ...] = ()
    lenient_routing: bool = False
    start_stall_s: float = 60.0
    start_max_s: float = 1800.0
    canary_timeout_s: float = 30.0
    drain_s: float = 30.0
    stop_grace_s: float = 10.0
    backoff_first_s: float = 0.5
    backoff_max_s: float = 30.0
    breaker_failures: int = 5
    breaker_window_s: float = 300.0
    breaker_open_s: float = 60.0
    swap: SwapPolicy = SwapPolicy()
