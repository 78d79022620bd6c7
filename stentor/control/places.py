"""What the books need of the scheduler: a name resolved, and a place taken and given back."""

from typing import Protocol

from stentor.core.ids import InstanceId, KeyId, ModelId, RequestId
from stentor.runtime.place import Place
from stentor.runtime.spec import ServedModel


class Places(Protocol):
    """The part of the scheduler that a request passes through."""

    def resolve(self, name: str, allowed: frozenset[str]) -> ServedModel:
        """The model that ``name`` means among ``allowed`` (empty: all). Raises Refused ``model_not_found``."""
        ...

    def try_acquire(self, model: ModelId, prefix_key: int) -> Place | None:
        """A free place if nobody waits for one; never waits."""
        ...

    async def acquire(
        self, model: ModelId, *, request_id: RequestId, key_id: KeyId, prefix_key: int, timeout_s: float | None
    ) -> Place:
        """A place after waiting in the queue. Raises Refused; a cancelled wait leaves nothing taken."""
        ...

    def release(self, place_instance: InstanceId, generation: int, *, suspect: bool) -> None:
        """Give a place back."""
        ...

    def is_available(self, model: ModelId) -> bool:
        """Whether asking a remote model is worth it now; True for a local one."""
        ...

    def report(self, model: ModelId, *, ok: bool | None, retry_after_s: float) -> None:
        """How a request to a remote model went, before its place is given back; ``ok`` None says nothing of it."""
        ...
