"""How long an idle model is kept: as the operator says, until requests ask otherwise of what is loaded now.

What a request asks (``keep_alive``) is remembered per key for the load that served it, and forgotten when that ends.
Among keys the longest counts, so that nobody sends away what somebody else asked to keep; an administrator's word
counts alone, until somebody asks again.
"""

import math

import msgspec

from stentor.core.ids import KeyId, RequestId
from stentor.runtime.memory import describe_s

FOR_EVER = math.inf
WISHES_MAX = 256


class KeepBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Between what an ordinary key may have an idle model kept; seconds. A longer limit of the operator's counts."""

    min_s: float = 0.0
    max_s: float = 3600.0


class KeepWish(msgspec.Struct, frozen=True):
    """What a request asks: ``keep_s`` seconds of idleness (0: leave at once, inf: for ever).

    ``by_operator``: an administrator's key asks, which no bounds hold.
    """

    request_id: RequestId
    key_id: KeyId
    keep_s: float
    by_operator: bool = False


class Keep(msgspec.Struct, frozen=True):
    """How long an idle model is kept, and on whose word; ``word`` is empty where it is the operator's setting."""

    keep_s: float
    word: str = ""

    def explain(self, idle_s: float) -> str:
        """Why a model is unloaded that was idle for so long."""
        if not self.word:
            return f"unloaded: idle {describe_s(idle_s)}, as long as an idle model is kept"
        return f"unloaded: {self.word}" if self.keep_s <= 0 else f"unloaded: idle {describe_s(idle_s)}, {self.word}"


class Keeping:
    """What holds for one instance. ``keep`` is for reading."""

    __slots__ = ("_bounds", "_own", "_wishes", "keep")

    def __init__(self, limit_s: float, bounds: KeepBounds) -> None:
        """``limit_s`` is the operator's limit, 0: for ever."""
        self._bounds = bounds
        self._wishes: dict[KeyId, Keep] = {}
        self._own = self.keep = Keep(limit_s if limit_s > 0 else FOR_EVER)

    def note(self, wish: KeepWish) -> None:
        """A request that is served by what is loaded asks this."""
        keep = bound_keep(wish, self._own.keep_s, self._bounds)
        if wish.by_operator:
            self._wishes.clear()
        self._wishes.pop(wish.key_id, None)
        self._wishes[wish.key_id] = keep
        while len(self._wishes) > WISHES_MAX:
            del self._wishes[next(iter(self._wishes))]
        self.keep = max(self._wishes.values(), key=lambda keep: keep.keep_s)

    def forget(self) -> None:
        """Another load begins."""
        self._wishes.clear()
        self.keep = self._own


def bound_keep(wish: KeepWish, own_s: float, bounds: KeepBounds) -> Keep:
    """How long the wish has a model kept that the operator would keep for ``own_s``."""
    keep_s = wish.keep_s
    if not wish.by_operator:
        keep_s = min(max(keep_s, bounds.min_s), max(bounds.max_s, own_s))
    said = "for ever" if wish.keep_s == FOR_EVER else f"{wish.keep_s:g} s" if wish.keep_s else "0"
    word = f"keep_alive {said} of request {wish.request_id}"
    return Keep(keep_s, word if keep_s == wish.keep_s else f"{word}, which may have {describe_s(keep_s)}")
