"""Which instance gets the next request: pure choices over what is known now."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

_AFFINITY_ENTRIES = 4_096


class Candidate(Protocol):
    """An instance as the choice sees it: how many requests it runs, and how many it has places for."""

    running: int
    places: int


def choose_instance(candidates: Sequence[Candidate], preferred: int = -1) -> int:
    """Index of the instance to use, or -1 when every place is taken.

    The one with the fewest running requests; ``preferred`` (where the conversation's start is still cached) wins
    while it has a place and runs at most one request more than the least busy.
    """
    best, least = -1, 0
    for index, candidate in enumerate(candidates):
        running = candidate.running
        if running < candidate.places and (best < 0 or running < least):
            best, least = index, running
    if 0 <= preferred < len(candidates):
        wanted = candidates[preferred]
        if wanted.running < wanted.places and wanted.running <= least + 1:
            return preferred
    return best


class Affinity:
    """Where conversations were last served: the 4,096 latest prefixes of one model."""

    def __init__(self, entries: int = _AFFINITY_ENTRIES) -> None:
        self._entries = entries
        self._last: OrderedDict[int, str] = OrderedDict()

    def find(self, prefix_key: int) -> str | None:
        """The instance that served this prefix last."""
        return self._last.get(prefix_key)

    def note(self, prefix_key: int, instance: str) -> None:
        """Remember the instance; key 0 means no prefix."""
        if prefix_key == 0:
            return
        self._last[prefix_key] = instance
        self._last.move_to_end(prefix_key)
        if len(self._last) > self._entries:
            self._last.popitem(last=False)
