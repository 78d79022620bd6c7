"""Who makes room for whom: pure choices over a snapshot of what holds a slot and who would like one.

A model that runs nothing and is waited for by nobody is *idle*. It may be sent away once keeping it has cost as much
as loading it again would (it has been idle for its load time), or once it has had its minimum residency. A *busy* one
is only ever drained, for a request that has waited longer than the patience, and not before its minimum residency.
Pinned ones stay, and so does what loads, is doubted, or is on its way out already.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from stentor.core.ids import InstanceId, ModelId

Reach = Literal["free", "idle", "swap"]
HASTE_S = 1.0  # who is kept for less is looked at as soon as it is idle
_AGAIN_S = 0.01


class SwapPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When models make room for each other; seconds, or multiples of the time that a load takes.

    ``residency_max_s`` bounds the minimum residency, so that nobody's wait for a slow model ends before it may leave.
    After ``stale_s`` of idleness a model is sent away rather than a newcomer being given fewer places than it wants.
    """

    residency_loads: float = 4.0
    residency_max_s: float = 30.0
    patience_loads: float = 2.0
    patience_min_s: float = 5.0
    stale_s: float = 300.0


class Space(msgspec.Struct, frozen=True):
    """Slots, and bytes of memory: free ones, needed ones, or those that somebody holds."""

    slots: int = 0
    size_bytes: int = 0

    def holds(self, need: "Space") -> bool:
        """Whether ``need`` fits in."""
        return need.slots <= self.slots and need.size_bytes <= self.size_bytes

    def plus(self, other: "Space") -> "Space":
        """Both together."""
        return Space(self.slots + other.slots, self.size_bytes + other.size_bytes)

    def less(self, other: "Space") -> "Space":
        """What is left without ``other``; negative where it doesn't fit."""
        return Space(self.slots - other.slots, self.size_bytes - other.size_bytes)


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that holds a slot and ``size_bytes`` of memory.

    ``settled``: it is up and neither loading, doubted nor stopping. ``leaving``: it was told to go, so what it holds
    comes free by itself. ``waiting`` counts requests that wait for its model, ``idle_s`` is 0 while it is busy,
    ``resident_s`` counts from its getting ready, ``load_s`` is how long loading it took. ``keep_s`` is how long it is
    kept while it is idle.
    """

    instance: InstanceId
    model: ModelId
    size_bytes: int = 0
    pinned: bool = False
    settled: bool = True
    leaving: bool = False
    running: int = 0
    waiting: int = 0
    idle_s: float = 0.0
    resident_s: float = 0.0
    load_s: float = 0.0
    keep_s: float = math.inf

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses it and nobody waits for it."""
        return self.running == 0 and self.waiting == 0

    @property
    def space(self) -> Space:
        """What its leaving brings."""
        return Space(1, self.size_bytes)


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that wants room: any of ``sizes_bytes``, the best first.

    ``waited_s`` is how long its oldest request has waited. ``reach`` is what it may do for its room: take what is
    free, have idle models leave, or have busy ones drained as well. ``load_s`` is how long its load takes (0: unknown).
    """

    instance: InstanceId
    model: ModelId
    sizes_bytes: tuple[int, ...] = (0,)
    waited_s: float = 0.0
    reach: Reach = "swap"
    load_s: float = 0.0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What to do for a wish now: grant size number ``size``, or have ``victims`` leave, or look again in ``look_s``.

    ``size`` -1 means not yet. ``target`` is the size that room is being made for. ``hopeless``: it can't come to fit.
    """

    size: int = -1
    victims: tuple[InstanceId, ...] = ()
    target: int = -1
    look_s: float | None = None
    hopeless: bool = False


def choose_evictions(need: Space, space: Space, candidates: Sequence[Resident]) -> tuple[InstanceId, ...] | None:
    """The candidates that must leave so that ``need`` fits: the first ones that do, and none that isn't needed.

    ``space`` is free now; ``candidates`` come in the order in which they are given up. None if all aren't enough.
    """
    chosen: list[Resident] = []
    for candidate in candidates:
        if space.holds(need):
            break
        chosen.append(candidate)
        space = space.plus(candidate.space)
    if not space.holds(need):
        return None
    for candidate in reversed(chosen.copy()):
        without = space.less(candidate.space)
        if without.holds(need):
            chosen.remove(candidate)
            space = without
    return tuple(candidate.instance for candidate in chosen)


def find_stay_s(resident: Resident, policy: SwapPolicy) -> float:
    """Seconds that a resident may still stay although room is wanted: until its minimum residency is over, or,
    if it is idle, until its idleness has cost as much as loading it again.
    """
    stay_s = min(policy.residency_loads * resident.load_s, policy.residency_max_s) - resident.resident_s
    if resident.is_idle:
        stay_s = min(stay_s, resident.load_s - resident.idle_s)
    return max(0.0, stay_s)


def choose_swap(wish: Wish, residents: Sequence[Resident], space: Space, policy: SwapPolicy) -> Step:
    """What to do for ``wish`` when ``space`` is free.

    In this order: its best size, if it is free or comes free by itself or by sending away what nobody used for long;
    a smaller size that is free; idle models leave; busy ones are drained. So a model runs beside others with fewer
    places rather than in turns with them.
    """
    needs = [Space(1, size_bytes) for size_bytes in wish.sizes_bytes]
    if space.holds(needs[0]):
        return Step(size=0)
    leaving = [each for each in residents if each.leaving]
    movable = [each for each in residents if each.settled and not each.pinned and not each.leaving]
    idle = sorted((each for each in movable if each.is_idle), key=lambda each: -each.idle_s)
    ripe = [each for each in idle if find_stay_s(each, policy) == 0.0] if wish.reach != "free" else []
    stale = [each for each in ripe if each.idle_s >= policy.stale_s]
    for given_up in (leaving, [*leaving, *stale]):
        victims = choose_evictions(needs[0], space, given_up)
        if victims is not None:
            return Step(victims=victims, target=0)
    for size, need in enumerate(needs):
        if space.holds(need):
            return Step(size=size)
    if not _could_fit(needs[-1], residents, space):
        return Step(hopeless=True)
    for size, need in enumerate(needs):
        victims = choose_evictions(need, space, [*leaving, *ripe])
        if victims is not None:
            return Step(victims=victims, target=size)
    return _drain_or_wait(wish, (leaving, movable), space, policy)


def _could_fit(least: Space, residents: Sequence[Resident], space: Space) -> bool:
    """Whether ``least`` fits once everything left that isn't pinned."""
    for each in residents:
        if not each.pinned:
            space = space.plus(each.space)
    return space.holds(least)


def _drain_or_wait(
    wish: Wish, others: tuple[Sequence[Resident], Sequence[Resident]], space: Space, policy: SwapPolicy
) -> Step:
    """Have busy models drained if the wish has waited long enough; else say when to look again."""
    leaving, movable = others
    target = len(wish.sizes_bytes) - 1
    impatience_s = max(policy.patience_loads * wish.load_s, policy.patience_min_s) - wish.waited_s
    delays_s = []
    ready = []
    for each in movable:
        if wish.reach == "free" or (not each.is_idle and wish.reach != "swap"):
            continue
        delay_s = find_stay_s(each, policy)
        if not each.is_idle:
            delay_s = max(delay_s, impatience_s)
        if delay_s > 0:
            delays_s.append(delay_s)
        else:
            ready.append(each)
    # Idle ones first, then those that have had their turn for longest.
    ready.sort(key=lambda each: (not each.is_idle, -each.idle_s, -each.resident_s))
    victims = choose_evictions(Space(1, wish.sizes_bytes[target]), space, [*leaving, *ready])
    if victims is not None:
        return Step(victims=victims, target=target)
    return Step(look_s=min(delays_s, default=None))


def reserve_space(wish: Wish, step: Step, residents: Sequence[Resident], space: Space) -> Space:
    """What later wishes may take of ``space`` now without keeping ``wish`` from its room: nobody overtakes for long."""
    going = [each for each in residents if (each.instance in step.victims if step.victims else not each.pinned)]
    coming = space
    for each in going:
        coming = coming.plus(each.space)
    left = coming.less(Space(1, wish.sizes_bytes[step.target]))
    return Space(max(0, min(space.slots, left.slots)), max(0, min(space.size_bytes, left.size_bytes)))


def choose_idle(residents: Sequence[Resident]) -> tuple[list[InstanceId], float | None]:
    """Who was idle for as long as it is kept, and in how many seconds the next one can be (None: nobody).

    One that is kept for less than ``HASTE_S`` isn't waited for: whoever notes its getting idle has it looked at.
    """
    due: list[InstanceId] = []
    next_s: float | None = None
    for each in residents:
        if each.keep_s == math.inf or each.pinned or each.leaving:
            continue
        left_s = each.keep_s - each.idle_s
        if each.is_idle and each.settled and left_s <= 0:
            due.append(each.instance)
        elif each.is_idle or each.keep_s >= HASTE_S:
            again_s = left_s if left_s > 0 else max(each.keep_s / 20, _AGAIN_S)
            next_s = again_s if next_s is None else min(next_s, again_s)
    return due, next_s
