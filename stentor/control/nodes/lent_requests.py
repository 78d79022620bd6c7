"""Requests per minute that a node has borrowed: each is counted in one second of a bucket that all nodes share.

It may be made in that second alone, or the bucket would forget it too early. One that comes too late, because the
second turned while it was on its way or because the request was refused for something else, is taken out of the bucket
with the next that is borrowed of it.
"""

from stentor.accounting.lending import BucketKey, Want
from stentor.accounting.meters import Minute


class LentRequests:
    """Which second of the shared bucket each lent request is counted in, and those that were too late to be made."""

    def __init__(self) -> None:
        self._counted: dict[BucketKey, int] = {}
        self._unused: dict[BucketKey, list[tuple[int, int]]] = {}

    def __contains__(self, key: BucketKey) -> bool:
        """Whether some of this bucket were too late: who asks it next gives them back."""
        return key in self._unused

    def lend(self, limit: Minute, key: BucketKey, amount: int, seconds: tuple[int, int, int]) -> None:
        """``seconds``: UTC in which they were counted, UTC now, and now on the steady clock."""
        counted_s, now_s, steady_s = seconds
        if (steady_s, counted_s) != (limit.leased_s, self._counted.get(key)):
            self._set_aside(limit, key)
            limit.leased_s = steady_s
            self._counted[key] = counted_s
        limit.lease = (limit.lease or 0) + amount
        if counted_s != now_s:
            self._set_aside(limit, key)

    def _set_aside(self, limit: Minute, key: BucketKey) -> None:
        if limit.lease is not None and limit.lease > 0:
            self._unused.setdefault(key, []).append((self._counted.get(key, 0), limit.lease))
            limit.lease = 0

    def take_unused(self, wants: list[Want]) -> tuple[tuple[BucketKey, int, int], ...]:
        """What to take out of the buckets that are asked again; one that nobody asks forgets it after a minute."""
        for want in wants:
            if isinstance(want.limit, Minute) and want.limit.unit == "requests":
                self._set_aside(want.limit, want.key)  # were it of this second, nobody would ask
        return tuple((want.key, *each) for want in wants for each in self._unused.pop(want.key, ()))

    def forget(self, before_s: int) -> None:
        """What was counted before that second UTC isn't counted any more."""
        self._counted = {key: second for key, second in self._counted.items() if second >= before_s}
        for key, lent in list(self._unused.items()):
            if all(second < before_s for second, _ in lent):
                del self._unused[key]
