"""The owner of slots and memory: gives room to engines that are to start, and has others make it.

An engine that is about to start *claims* room and waits until it is granted, refused, or not needed any more. Every
change that may matter calls :meth:`Room.look`; in the next round of the loop one step looks at everything there is,
asks the pure choices in ``eviction``, and has them take effect. Nothing is decided anywhere else.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

from stentor.core.clock import Clock
from stentor.core.ids import InstanceId, ModelId
from stentor.runtime.eviction import (
    HASTE_S,
    Reach,
    Resident,
    Space,
    Step,
    SwapPolicy,
    Wish,
    choose_idle,
    choose_swap,
    reserve_space,
)
from stentor.runtime.failure import NoRoom
from stentor.runtime.host import Host
from stentor.runtime.keeping import Keeping
from stentor.runtime.memory import ContextPlan, Held, choose_free_bytes, describe_bytes, describe_s
from stentor.runtime.procfs import MemoryUse
from stentor.runtime.sizes import Sizes
from stentor.runtime.slots import NoSlot, Slots

_SAMPLE_S = 10.0
Cause = Literal["idle", "room", "swap"]
Tell = Callable[[ModelId, InstanceId, Cause, str], None]


class Berth(msgspec.Struct, frozen=True):
    """Room that was granted: a port, and how the model is run there."""

    port: int
    plan: ContextPlan


class Demand(msgspec.Struct, frozen=True):
    """How much an instance is wanted. ``is_wanted``: somebody waits for it, or it shall be there whatever happens."""

    is_wanted: bool
    waited_s: float = 0.0
    reach: Reach = "free"
    is_late: bool = False


class Tenant(Protocol):
    """An engine instance as the room sees it."""

    id: InstanceId
    model: ModelId
    running: int
    idle_since_s: float
    keeping: Keeping

    @property
    def reported_bytes(self) -> int:
        """Memory that it said it took; 0 where it doesn't say."""
        ...

    def find_pid(self) -> int | None:
        """Its process."""
        ...

    def is_leaving(self) -> bool:
        """Whether it was told to go."""
        ...

    def find_demand(self, now_s: float) -> Demand:
        """How much it is wanted now."""
        ...

    def describe(self, now_s: float, size_bytes: int) -> Resident:
        """What it is now."""
        ...

    def leave(self, reason: str) -> None:
        """Take no new work; running work goes on."""
        ...

    def stay(self) -> None:
        """Go on as if :meth:`leave` had not been called by the room, unless it ends already."""
        ...

    def end(self) -> None:
        """Stop now; called when nothing runs."""
        ...

    def say(self, reason: str) -> None:
        """Show why it is as it is."""
        ...


class _Claim:
    __slots__ = ("granted", "plans", "tenant")

    def __init__(self, tenant: Tenant, plans: Sequence[ContextPlan], granted: "asyncio.Future[Berth]") -> None:
        self.tenant = tenant
        self.plans = plans
        self.granted = granted


class RoomLimits(msgspec.Struct, frozen=True, kw_only=True):
    """``memory_bytes`` None: what the machine has."""

    memory_bytes: int | None = None
    policy: SwapPolicy = SwapPolicy()


class Room:
    """All slots and all memory of one machine."""

    def __init__(self, limits: RoomLimits, slots: Slots, host: Host, sizes: Sizes, clock: Clock, tell: Tell) -> None:
        self._limits = limits
        self._slots = slots
        self._host = host
        self._sizes = sizes
        self._now = clock.monotonic_s
        self._tell = tell
        self._known: dict[InstanceId, Tenant] = {}
        self._tenants: dict[InstanceId, Tenant] = {}
        self._ways: dict[InstanceId, str] = {}
        self._claims: dict[InstanceId, _Claim] = {}
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.departures: dict[tuple[ModelId, Cause], int] = {}

    # -- those who want room ---------------------------------------------------------------------------------------

    def admit(self, tenant: Tenant) -> None:
        """Get to know an instance, which may claim room from now on."""
        self._known[tenant.id] = tenant

    def forget(self, instance: InstanceId) -> None:
        """Know an instance no more; it holds nothing."""
        self._known.pop(instance, None)

    async def claim(self, instance: InstanceId, plans: Sequence[ContextPlan], way: str = "") -> Berth:
        """Room for one of ``plans`` (best first), after waiting for it. Raises NoRoom; give it back with `release`.

        ``way`` names how the model is run, for what is learned of it.
        """
        tenant = self._known[instance]
        if self._closed:
            raise NoRoom("the server is shutting down")
        claim = _Claim(tenant, plans, asyncio.get_running_loop().create_future())
        self._claims[tenant.id] = claim
        self.look()
        try:
            berth = await claim.granted
        finally:
            self._claims.pop(tenant.id, None)
        self._ways[tenant.id] = f"{way}/{berth.plan.ctx}/{berth.plan.places}"
        return berth

    def release(self, instance: InstanceId) -> None:
        """Give back what ``instance`` holds, if anything."""
        self._slots.free(instance)
        self._slots.unreserve(instance)
        self._tenants.pop(instance, None)
        self._ways.pop(instance, None)
        self.look()

    def note_idle(self, tenant: Tenant) -> None:
        """The last request of an instance is over. Called often: does next to nothing while nobody wants room."""
        tenant.idle_since_s = self._now()
        if self._claims or tenant.keeping.keep.keep_s < HASTE_S:
            self.look()

    def note_ready(self, instance: InstanceId, load_s: float) -> None:
        """An instance came up after so long."""
        tenant = self._tenants.get(instance)
        if tenant is not None:
            is_new = self._sizes.load_s(tenant.model) == 0.0
            self._sizes.note_load(tenant.model, load_s)
            self.note_use(tenant)
            if is_new:
                self._sizes.save()

    def note_use(self, tenant: Tenant) -> None:
        """Look how much memory an instance has in use, and remember it."""
        resident_bytes = self.find_resident_bytes(tenant)
        if resident_bytes == 0:
            return
        self._slots.plan_more(tenant.id, resident_bytes)
        way = self._ways.get(tenant.id)
        if way is not None:
            self._sizes.note(tenant.model, way, resident_bytes, tenant.reported_bytes)

    def find_budget_bytes(self) -> int:
        """The most that one engine could have if every other one left."""
        budget = self._host.find_available_bytes() + sum(each.private for each in self._list_held())
        limit = self._limits.memory_bytes
        return budget if limit is None else min(budget, limit)

    def look(self) -> None:
        """Something changed: decide in the next round of the loop."""
        if self._soon is None and not self._closed:
            self._soon = asyncio.get_running_loop().call_soon(self._decide)

    def close(self) -> None:
        """Decide nothing any more; whoever waits is refused."""
        self._closed = True
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()
        for claim in self._claims.values():
            if not claim.granted.done():
                claim.granted.set_exception(NoRoom("the server is shutting down"))
        self._sizes.save()

    @property
    def waiting(self) -> int:
        """Instances that wait for room."""
        return len(self._claims)

    def find_resident_bytes(self, tenant: Tenant) -> int:
        """Memory that an instance has in use now; 0 where it has no process."""
        return self._find_use(tenant).resident_bytes

    def planned_by_model(self) -> dict[ModelId, int]:
        """Bytes that are set aside, by model."""
        planned: dict[ModelId, int] = {}
        for tenant in self._tenants.values():
            planned[tenant.model] = planned.get(tenant.model, 0) + self._slots.planned_for(tenant.id)
        return planned

    # -- the decision ----------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        self._soon = None
        if self._closed:
            return
        now_s = self._now()
        next_s = self._unload_idle(self._describe(now_s))
        kept, look_s = self._serve(self._describe(now_s), now_s)
        for tenant in list(self._tenants.values()):
            if tenant.is_leaving() and tenant.id not in kept:
                tenant.stay()
            elif tenant.is_leaving() and tenant.running == 0:
                tenant.end()
        self._arm([next_s, look_s, _SAMPLE_S if self._tenants else None])

    def _describe(self, now_s: float) -> list[Resident]:
        return [tenant.describe(now_s, self._slots.planned_for(tenant.id)) for tenant in self._tenants.values()]

    def _unload_idle(self, residents: Sequence[Resident]) -> float | None:
        due, next_s = choose_idle(residents)
        for resident in residents:
            if resident.instance in due:
                keep = self._tenants[resident.instance].keeping.keep
                self._send_away(resident, "idle", keep.explain(resident.idle_s))
        return next_s

    def _serve(self, residents: Sequence[Resident], now_s: float) -> tuple[set[InstanceId], float | None]:
        """Grant, refuse or withdraw claims, oldest need first; whoever must go on leaving, and when to look again."""
        kept = {each.instance for each in residents if each.is_idle and each.leaving}
        delays_s: list[float] = []
        if not self._claims:
            return kept, None
        demands = {key: claim.tenant.find_demand(now_s) for key, claim in self._claims.items()}
        spent = Space()
        others, gone = list(residents), set[InstanceId]()
        for key in sorted(self._claims, key=lambda key: -demands[key].waited_s):
            claim, demand = self._claims[key], demands[key]
            space = self._find_space(key, spent)
            if claim.granted.done() or (space.slots < 1 and self._slots.has_reserved(key)):
                continue
            wish = self._describe_wish(claim, demand)
            step = choose_swap(wish, others, space, self._limits.policy)
            if step.size >= 0:
                self._grant(claim, step.size)
                # Who has just got room holds it like the others: whoever comes next can wait for it.
                others = [each for each in self._describe(now_s) if each.instance not in gone]
            elif step.hopeless or demand.is_late or not (demand.is_wanted or self._comes_free(step)):
                self._refuse(claim, demand, space)
            else:
                kept.update(step.victims)
                self._make_room(claim, step, others, space)
                left = reserve_space(wish, step, others, space)
                spent = spent.plus(space.less(left))
                gone.update(step.victims)
                others = [each for each in others if each.instance not in gone]
                if step.look_s is not None:
                    delays_s.append(step.look_s)
        return kept, min(delays_s, default=None)

    def _comes_free(self, step: Step) -> bool:
        """Whether what is needed comes free without anybody being sent away for it."""
        return bool(step.victims) and not any(self._tenants[each].is_leaving() for each in step.victims)

    def _describe_wish(self, claim: _Claim, demand: Demand) -> Wish:
        return Wish(
            instance=claim.tenant.id,
            model=claim.tenant.model,
            sizes_bytes=tuple(plan.needed_bytes for plan in claim.plans),
            waited_s=demand.waited_s,
            reach=demand.reach,
            load_s=self._sizes.load_s(claim.tenant.model),
        )

    def _grant(self, claim: _Claim, size: int) -> None:
        plan = claim.plans[size]
        try:
            port = self._slots.take(claim.tenant.id, plan.needed_bytes)
        except NoSlot as problem:
            claim.granted.set_exception(NoRoom("every engine slot is in use", str(problem)))
            return
        self._tenants[claim.tenant.id] = claim.tenant
        claim.tenant.say("")
        claim.granted.set_result(Berth(port, plan))

    def _refuse(self, claim: _Claim, demand: Demand, space: Space) -> None:
        needed, text = claim.plans[-1].needed_bytes, self._describe_space(space)
        if not demand.is_wanted:
            failure = NoRoom("there was no room for it", f"not started: needs {describe_bytes(needed)}; {text}")
            failure.refuses = False
        elif space.slots < 1:
            failure = NoRoom("every engine slot is in use", self._slots.explain())
        else:
            failure = NoRoom("there is not enough memory for it", f"needs {describe_bytes(needed)}; {text}")
        claim.tenant.say(str(failure))
        claim.granted.set_exception(failure)

    def _make_room(self, claim: _Claim, step: Step, others: Sequence[Resident], space: Space) -> None:
        model = claim.tenant.model
        needed = claim.plans[step.target].needed_bytes
        shown = describe_bytes(needed) if needed > space.size_bytes else "a slot"
        going = [each for each in others if each.instance in step.victims]
        for each in going:
            if each.leaving:
                continue
            if each.is_idle:
                self._send_away(each, "room", f"evicted: idle {describe_s(each.idle_s)}, needed {shown} for {model}")
            else:
                reason = f"swapped out after {describe_s(each.resident_s)}: needed {shown} for {model}, which waited"
                self._send_away(each, "swap", reason)
        names = ", ".join(str(each.instance) for each in going) or "nobody may leave yet"
        claim.tenant.say(f"waits for room: needs {shown}; {self._describe_space(space)}; leaving: {names}")

    def _send_away(self, resident: Resident, cause: Cause, reason: str) -> None:
        tenant = self._tenants[resident.instance]
        self.note_use(tenant)
        tenant.leave(reason)
        key = (resident.model, cause)
        self.departures[key] = self.departures.get(key, 0) + 1
        self._tell(resident.model, resident.instance, cause, reason)
        if resident.running == 0:
            tenant.end()

    def _find_space(self, instance: InstanceId, spent: Space) -> Space:
        """What is free for ``instance``, without what is ``spent`` for others; a port kept for it is its own."""
        limit = self._limits.memory_bytes
        free_bytes = choose_free_bytes(limit, self._host.find_available_bytes(), self._list_held())
        space = Space(self._slots.count_free(instance), free_bytes).less(spent)
        return Space(space.slots + spent.slots, space.size_bytes) if self._slots.has_reserved(instance) else space

    def _list_held(self) -> list[Held]:
        held = []
        for tenant in self._tenants.values():
            use = self._find_use(tenant)
            held.append(Held(self._slots.planned_for(tenant.id), use.resident_bytes, use.private_bytes))
        return held

    def _find_use(self, tenant: Tenant) -> MemoryUse:
        pid = tenant.find_pid()
        return (self._host.find_memory_use(pid) if pid is not None else None) or MemoryUse(0, 0)

    def _describe_space(self, space: Space) -> str:
        holders = ", ".join(
            f"{tenant.id} {describe_bytes(self._slots.planned_for(tenant.id))}" for tenant in self._tenants.values()
        )
        free = f"{describe_bytes(max(0, space.size_bytes))} and {max(0, space.slots)} slots are free"
        return f"{free}, the rest is held by {holders}" if holders else free

    def _arm(self, delays_s: Sequence[float | None]) -> None:
        delay_s = min((each for each in delays_s if each is not None), default=None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay_s is not None:
            self._timer = asyncio.get_running_loop().call_later(max(delay_s, 0.001), self._sample)

    def _sample(self) -> None:
        self._timer = None
        for tenant in self._tenants.values():
            self.note_use(tenant)
        self._decide()
