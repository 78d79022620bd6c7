"""Who waits for a place of one model: first come first served within a key, turn by turn among keys."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sized

from stentor.core.errors import Refused
from stentor.core.ids import KeyId
from stentor.runtime.place import Place
from stentor.runtime.spec import ServedModel

_RETRY_AFTER_S = 2.0


class Waiter:
    """One waiting request; ``place`` is answered with a place or a refusal."""

    __slots__ = ("key_id", "place", "prefix_key", "queued_at_s")

    def __init__(self, key_id: KeyId, prefix_key: int, queued_at_s: float, place: "asyncio.Future[Place]") -> None:
        self.key_id = key_id
        self.prefix_key = prefix_key
        self.queued_at_s = queued_at_s
        self.place = place


def choose_next_waiter(waiting: Mapping[KeyId, Sized]) -> KeyId | None:
    """The key whose turn it is. ``waiting`` is in order of turns, as served keys go to its end."""
    return next(iter(waiting), None)


def choose_displaced(waiting: Mapping[KeyId, Sized], newcomer: KeyId) -> KeyId | None:
    """In a full queue: the key that must give up its latest waiter for ``newcomer``, or None to refuse the newcomer.

    The key with most waiters, if that is at least two more than the newcomer's: nobody can fill the queue alone.
    """
    if not waiting:
        return None
    longest = max(waiting, key=lambda key: len(waiting[key]))
    own = len(waiting[newcomer]) if newcomer in waiting else 0
    return longest if len(waiting[longest]) >= own + 2 else None


class WaitQueue:
    """The queue of one model; bounded, and never without an answer for those inside."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[KeyId, deque[Waiter]] = OrderedDict()
        self.length = 0

    def add(self, waiter: Waiter, model: ServedModel) -> None:
        """Put in line. Raises Refused ``overloaded`` when the queue is full."""
        if self.length >= self._limit:
            displaced = choose_displaced(self._waiting, waiter.key_id)
            if displaced is None:
                raise refuse_full(model, self._limit)
            self._drop_latest(displaced, refuse_full(model, self._limit))
        self._waiting.setdefault(waiter.key_id, deque()).append(waiter)
        self.length += 1

    def pop(self) -> Waiter | None:
        """The next waiter that is still waiting."""
        while (key := choose_next_waiter(self._waiting)) is not None:
            line = self._waiting[key]
            waiter = line.popleft()
            self.length -= 1
            if line:
                self._waiting.move_to_end(key)
            else:
                del self._waiting[key]
            if not waiter.place.done():
                return waiter
        return None

    def remove(self, waiter: Waiter) -> None:
        """Take out one who left; one who is already out is ignored."""
        line = self._waiting.get(waiter.key_id)
        if line is None or waiter not in line:
            return
        line.remove(waiter)
        self.length -= 1
        if not line:
            del self._waiting[waiter.key_id]

    def find_oldest_s(self) -> float | None:
        """Since when the one who came first waits, on the clock that waiters were put in line by; None: nobody does."""
        return min((line[0].queued_at_s for line in self._waiting.values()), default=None)

    def refuse_all(self, make_refusal: Callable[[], Refused]) -> None:
        """Answer everybody with a refusal of their own."""
        while (waiter := self.pop()) is not None:
            waiter.place.set_exception(make_refusal())

    def _drop_latest(self, key: KeyId, refusal: Refused) -> None:
        line = self._waiting[key]
        waiter = line.pop()
        self.length -= 1
        if not waiter.place.done():
            waiter.place.set_exception(refusal)


def refuse_full(model: ServedModel, limit: int) -> Refused:
    """The refusal of a newcomer to a full queue."""
    return Refused(
        "overloaded",
        f"The model '{model.id}' is busy and its queue is full ({limit} waiting). Try again shortly.",
        retry_after_s=_RETRY_AFTER_S,
        details={"queue_limit": limit},
    )


def refuse_late(model: ServedModel, timeout_s: float, loading: bool, why: str = "") -> Refused:
    """The refusal of one who waited as long as was allowed; ``why`` (a verb phrase) says more than ``loading``."""
    why = why or ("is still being loaded" if loading else "is busy")
    return Refused(
        "overloaded",
        f"The model '{model.id}' {why}; no place became free within {timeout_s:g} s. Try again shortly.",
        retry_after_s=_RETRY_AFTER_S,
        details={"queue_timeout_s": timeout_s},
    )
