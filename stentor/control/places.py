"""What the books need of the scheduler: a name resolved, and a place taken and given back."""

from collections.abc import Callable
from typing import Protocol

from stentor.accounting.prices import PriceList
from stentor.core.books import Open
from stentor.core.errors import Refused
from stentor.core.ids import InstanceId, KeyId, ModelId
from stentor.runtime.catalogue import AUTOMATIC_NAMES
from stentor.runtime.keeping import KeepWish
from stentor.runtime.place import Place
from stentor.runtime.spec import ServedModel


class Places(Protocol):
    """The part of the scheduler that a request passes through."""

    def resolve(self, name: str, allowed: frozenset[str]) -> ServedModel:
        """The model that ``name`` means among ``allowed`` (empty: all). Raises Refused ``model_not_found``."""
        ...

    def find_able(
        self, name: str, needs: tuple[str, ...], allowed: frozenset[str], cost_of: Callable[[ModelId], int]
    ) -> ServedModel | None:
        """The model of that name among ``allowed``; else, where ``name`` leaves the choice to us, the local one that
        can do what is needed.

        ``cost_of`` says what models cost; of several a dearer one is never chosen.
        """
        ...

    def try_acquire(self, model: ModelId, prefix_key: int) -> Place | None:
        """A free place if nobody waits for one; never waits."""
        ...

    async def acquire(self, model: ModelId, *, key_id: KeyId, prefix_key: int, timeout_s: float | None) -> Place:
        """A place after waiting in the queue. Raises Refused; a cancelled wait leaves nothing taken."""
        ...

    def release(self, place_instance: InstanceId, generation: int, *, suspect: bool) -> None:
        """Give a place back."""
        ...

    def keep(self, place_instance: InstanceId, generation: int, wish: KeepWish) -> None:
        """What the request that has a place asks for the time after it."""
        ...

    def is_available(self, model: ModelId) -> bool:
        """Whether asking a remote model is worth it now; True for a local one."""
        ...

    def report(self, model: ModelId, *, ok: bool | None, retry_after_s: float) -> None:
        """How a request to a remote model went, before its place is given back; ``ok`` None says nothing of it."""
        ...


def resolve_model(places: Places, prices: PriceList, ask: Open, allowed: frozenset[str], now_us: int) -> ServedModel:
    """The model that a request means; by what it needs alone only where its name leaves that open. Raises Refused."""
    unknown: Refused | None = None
    if ask.model not in AUTOMATIC_NAMES:
        try:
            return places.resolve(ask.model, allowed)
        except Refused as refusal:
            unknown = refusal

    def cost_of(model: ModelId) -> int:
        price = prices.get_price(model, now_us)
        return price.input_nano + price.output_nano + price.request_nano

    able = places.find_able(ask.model, ask.needs, allowed, cost_of)
    if able is not None:
        return able
    if unknown is not None:
        raise unknown
    return places.resolve(ask.model, allowed)
