"""The second interface to the node authority: models, instances, and the places on them.

Two implementations stand behind :class:`Scheduler`, as behind :class:`~stentor.core.books.Books`.
"""

from typing import Literal, Protocol

import msgspec

from stentor.core.ids import InstanceId, ModelId

InstanceState = Literal["starting", "ready", "draining", "stopping", "stopped", "failed"]
ModelState = Literal["cold", "starting", "ready", "failed"]


class ModelCard(msgspec.Struct, frozen=True):
    """What a client may know of a model. ``context_size`` is tokens per request, after division among places."""

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


class InstanceCard(msgspec.Struct, frozen=True):
    """One engine process as operators see it. ``log_tail`` holds its last lines and is for admins only."""

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


class Scheduler(Protocol):
    """Models and the engine processes that serve them. Every method is safe to call at any time."""

    async def list_models(self) -> list[ModelCard]:
        """All models of the catalogue, by id."""
        ...

    async def find_model(self, name: str) -> ModelCard | None:
        """The model that ``name`` resolves to (id, alias, ``repo:quant``, unique substring), or None."""
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
