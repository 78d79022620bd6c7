"""The second interface to the node authority: models, instances, and the places on them.

Two implementations stand behind :class:`Scheduler`, as behind :class:`~stentor.core.books.Books`.
"""

from typing import Literal, Protocol

import msgspec

from stentor.core.ids import InstanceId, ModelId
from stentor.core.voices import VoiceCard

InstanceState = Literal["starting", "ready", "draining", "stopping", "stopped", "failed"]
ModelState = Literal["cold", "starting", "ready", "failed"]


class ModelFile(msgspec.Struct, frozen=True):
    """What a model's file says of itself: empty, or 0, what isn't known (yet).

    ``parameters`` is their number as people say it (``8.0B``), ``quant`` the quantization, ``size_bytes`` all shards
    and the projector, ``vector_size`` the length of the vectors inside.
    """

    architecture: str = ""
    parameters: str = ""
    parameter_count: int = 0
    quant: str = ""
    size_bytes: int = 0
    vector_size: int = 0


NO_FILE = ModelFile()


class ModelCard(msgspec.Struct, frozen=True):
    """What a client may know of a model. ``context_size`` is tokens per request, after division among places;
    ``voices`` are known of one that speaks, once its files are there."""

    id: ModelId
    aliases: tuple[str, ...]
    abilities: tuple[str, ...]
    context_size: int
    state: ModelState
    engine: str
    created_us: int
    source: str = ""
    places: int = 0
    ready_instances: int = 0
    reason: str = ""
    type: str = "text"
    voices: tuple[VoiceCard, ...] = ()
    file: ModelFile = NO_FILE


class InstanceCard(msgspec.Struct, frozen=True):
    """One engine process as operators see it. ``log_tail`` holds its last lines and is for admins only.

    ``reason`` is why it is as it is («evicted: idle 12 min, needed 3.1 GB for X»). ``planned_bytes`` of memory are set
    aside for it, ``resident_bytes`` are in use now; ``context_size`` is tokens per request, 0 where nobody knows yet.
    ``leaves_us`` is when it is unloaded if nobody asks it any more; None: not for being idle.
    """

    id: InstanceId
    model: ModelId
    state: InstanceState
    port: int
    pid: int | None
    generation: int
    running: int
    places: int
    started_us: int | None
    restarts: int
    reason: str = ""
    log_tail: tuple[str, ...] = ()
    planned_bytes: int = 0
    resident_bytes: int = 0
    context_size: int = 0
    leaves_us: int | None = None


class SlotCard(msgspec.Struct, frozen=True):
    """One port of the row that engines serve on, and the instance that holds it, if any."""

    port: int
    instance: InstanceCard | None = None


class EngineDoor(msgspec.Struct, frozen=True, array_like=True):
    """Where a ready engine answers on this machine, and its token; for the server alone, never shown."""

    url: str
    token: str


class CrashLoop(msgspec.Struct, frozen=True):
    """An engine that isn't started again for a while, after it failed too often; ``reason`` is fit for clients."""

    model: ModelId
    instance: InstanceId
    restarts: int
    reason: str


class LogPage(msgspec.Struct, frozen=True):
    """Lines of an engine's log; ``next`` is how many there were in all, the ``after`` of the page that follows."""

    lines: list[str]
    next: int


class Scheduler(Protocol):
    """Models and the engine processes that serve them. Every method is safe to call at any time."""

    async def list_models(self) -> list[ModelCard]:
        """All models of the catalogue, by id."""
        ...

    async def find_model(self, name: str, allowed: frozenset[str] = frozenset()) -> ModelCard | None:
        """The model that ``name`` resolves to (id, alias, ``repo:quant``, unique substring) among ``allowed`` ids, or
        None. Empty: all."""
        ...

    async def list_instances(self) -> list[InstanceCard]:
        """All engine processes, failed ones included, by port."""
        ...

    async def start(self, model: ModelId, instances: int = 1) -> None:
        """Bring up at least ``instances`` ready instances; returns when they are. Raises Refused with the reason."""
        ...

    async def stop(self, model: ModelId) -> None:
        """Let running requests end (at most the drain time), then stop all instances of the model."""
        ...

    async def find_door(self, name: str) -> EngineDoor | None:
        """The door of a ready engine: by instance id, port, or the id of its model; None where none is ready."""
        ...


class EngineControl(Scheduler, Protocol):
    """What only the authority's own side does: engines by slot. Management reaches it by way of operator calls."""

    async def list_slots(self) -> list[SlotCard]:
        """All slots by port, empty ones included."""
        ...

    async def load(self, model: ModelId, instances: int = 1, slot: int | None = None) -> list[InstanceCard]:
        """Bring up at least ``instances`` ready instances and return them; the model is wanted from now on.

        ``slot`` is the port that the first of them must get: an instance of another model there is drained and
        stopped first. Raises Refused: ``not_found`` (no such slot), ``conflict`` (a pinned model holds it),
        ``model_unavailable`` with the reason.
        """
        ...

    async def drain(self, slot: int) -> None:
        """Give the instance at port ``slot`` no new work; returns when it runs nothing, at most after the drain time.

        Raises Refused ``not_found`` where no instance is.
        """
        ...

    async def unload(self, slot: int) -> None:
        """Drain the instance at port ``slot`` (at most the drain time), then end it; gone on return.

        The model isn't wanted any more if this was its last one. Raises Refused ``not_found`` where no instance is.
        """
        ...

    async def read_log(self, name: str, after: int, wait_s: float) -> LogPage | None:
        """The kept log lines after the first ``after`` ones of an instance (by id, or by port the latest there).

        Waits at most ``wait_s`` for one. None where there is no such instance.
        """
        ...
