"""From a model's definition to a child that can be spawned: fetch the weights, look at them, fit them in, launch."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from stentor.core.ids import ModelId
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.gguf import GgufHeader, InvalidGguf, read_header
from stentor.runtime.launchers.base import Launch, Launcher, LaunchOrder, LaunchRefused
from stentor.runtime.memory import choose_pooling, choose_threads, find_free_bytes, plan_context
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.spec import EngineKind, ModelSpec


class ModelSource(Protocol):
    """Where weights come from."""

    async def fetch(self, source: str) -> Path:
        """The local GGUF file of ``source``, downloaded if need be. Raises StentorError."""
        ...


class Preparation:
    """Makes launches for the models of one catalogue."""

    def __init__(
        self,
        settings: RuntimeSettings,
        catalogue: Catalogue,
        source: ModelSource,
        launchers: Mapping[EngineKind, Launcher],
        find_planned: Callable[[], int],
    ) -> None:
        """``find_planned`` says how many bytes were planned for all engines that are there."""
        self._settings = settings
        self._catalogue = catalogue
        self._source = source
        self._launchers = launchers
        self._find_planned = find_planned
        self._fetching: dict[str, asyncio.Lock] = {}

    async def prepare(self, spec: ModelSpec, take_port: Callable[[int], int]) -> Launch:
        """The child that serves ``spec``. Raises StentorError, LaunchRefused where a retry can't help.

        ``take_port`` is told how many bytes of memory were planned. A port is taken only once the weights are there: a
        download must not keep a slot from other models.
        """
        threads = spec.threads or choose_threads(self._settings.default_threads)
        ctx, places, weights = spec.ctx or self._settings.default_ctx, spec.parallel, None
        pooling, planned_bytes = spec.pooling, 0
        if spec.engine != "command":
            weights = await self._fetch(spec)
            header = await asyncio.to_thread(_read_weights, spec, weights)
            free_bytes = self._free_bytes(spec)
            plan = plan_context(header, spec, ctx, free_bytes)
            planned_bytes = 0 if free_bytes is None else plan.needed_bytes
            ctx, places, pooling = plan.ctx, plan.places, choose_pooling(header, spec)
        # No await between the plan and this: nobody else plans with the same memory.
        port = take_port(planned_bytes)
        order = LaunchOrder(
            spec=spec, port=port, weights=weights, ctx=ctx, places=places, threads=threads, pooling=pooling
        )
        return await self._launchers[spec.engine].prepare(order)

    def note_context(self, model: ModelId, context_size: int | None) -> None:
        """Say in the catalogue what a running engine really holds per request."""
        if context_size is not None:
            self._catalogue.correct_context(model, context_size)

    def _free_bytes(self, spec: ModelSpec) -> int | None:
        # An external server and an explicit number of GPU layers put the weights where this machine's RAM says nothing.
        if spec.engine != "llama" or spec.gpu_layers > 0:
            return None
        return find_free_bytes(self._settings.memory_limit_mb, self._find_planned())

    async def _fetch(self, spec: ModelSpec) -> Path:
        # Two instances of one model must not download it twice.
        async with self._fetching.setdefault(spec.source, asyncio.Lock()):
            return await self._source.fetch(spec.source)


def _read_weights(spec: ModelSpec, weights: Path) -> GgufHeader:
    try:
        return read_header(weights)
    except OSError as problem:
        raise LaunchRefused(
            f"Model '{spec.id}': its file {weights} can't be read ({problem.strerror}). Fetch it again or correct "
            f"its source '{spec.source}'.",
            public="its model file is missing",
        ) from problem
    except InvalidGguf as problem:
        raise LaunchRefused(
            f"Model '{spec.id}': {weights} is not a usable GGUF file: {problem} Fetch it again.",
            public="its model file is damaged",
        ) from problem
