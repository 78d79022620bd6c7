"""What operators and clients see of the scheduler: cards, counts, doors and logs; nothing is changed here."""

import functools
from collections.abc import Callable

from stentor.core.clock import Clock
from stentor.core.ids import InstanceId, ModelId
from stentor.core.scheduler import (
    CrashLoop,
    EngineDoor,
    InstanceCard,
    InstanceState,
    LogPage,
    ModelCard,
    ModelState,
    SlotCard,
)
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.instance import Instance
from stentor.runtime.neighbours import Neighbours
from stentor.runtime.pool import Pool
from stentor.runtime.remotes import Remotes
from stentor.runtime.room import Cause, Room
from stentor.runtime.slots import Slots
from stentor.runtime.spec import ServedModel


class SchedulerViews:
    """The reading half of the scheduler."""

    def __init__(self, catalogue: Catalogue, slots: Slots, clock: Clock) -> None:
        self._catalogue = catalogue
        self._slots = slots
        self._clock = clock
        self._created_us = clock.now_us()
        self._pools: dict[ModelId, Pool] = {}
        self._instances: dict[InstanceId, Instance] = {}
        self._room: Room
        self.remotes: Remotes

    @functools.cached_property
    def neighbours(self) -> Neighbours:
        """The models of other nodes, which this scheduler serves like remote ones."""
        return Neighbours(self._catalogue, self.remotes)

    def resolve(self, name: str, allowed: frozenset[str]) -> ServedModel:
        """The model that ``name`` means among ``allowed`` ids (empty: all). Raises Refused ``model_not_found``."""
        return self._catalogue.resolve(name, allowed)

    def find_able(
        self, name: str, needs: tuple[str, ...], allowed: frozenset[str], cost_of: Callable[[ModelId], int]
    ) -> ServedModel | None:
        """See :class:`stentor.control.places.Places`."""
        return self._catalogue.find_able(name, needs, allowed, cost_of)

    async def list_models(self) -> list[ModelCard]:
        """All models of the catalogue, by id."""
        return [self._describe_model(model) for model in sorted((*self._pools, *self.remotes.models()))]

    async def find_model(self, name: str, allowed: frozenset[str] = frozenset()) -> ModelCard | None:
        """The model that ``name`` resolves to among ``allowed`` ids (empty: all), or None."""
        served = self._catalogue.find(name, allowed)
        return None if served is None else self._describe_model(served.id)

    async def list_instances(self) -> list[InstanceCard]:
        """All engine processes that were ever wanted, failed ones included, by port."""
        cards = [self._describe_instance(instance) for instance in self._instances.values()]
        return sorted(cards, key=lambda card: (card.port, card.id))

    async def list_slots(self) -> list[SlotCard]:
        """All slots by port, empty ones included."""
        return [
            SlotCard(port, None if holder is None else self._describe_instance(holder))
            for port, holder in ((port, self._find_holder(port)) for port in self._slots.ports)
        ]

    async def find_door(self, name: str) -> EngineDoor | None:
        """The door of a ready engine: by instance id, port, or the id of its model; None where none is ready."""
        for instance in self._instances.values():
            process = instance.process
            if name in (instance.id, str(process.port), process.spec.id) and process.state in ("ready", "draining"):
                return EngineDoor(process.address.url, process.address.token)
        return None

    async def read_log(self, name: str, after: int, wait_s: float) -> LogPage | None:
        """The kept log lines after the first ``after`` ones of an instance (by id, or by port the latest there).

        Waits at most ``wait_s`` for one. None where there is no such instance.
        """
        found = [each for each in self._instances.values() if name in (each.id, str(each.process.port))]
        if not found:
            return None
        process = max(found, key=lambda each: (each.process.pid is not None, each.process.started_us or 0)).process
        await process.log_tail.wait(after, wait_s)
        return LogPage(process.log_tail.since(after), process.log_tail.total)

    def count_idle_places(self) -> int:
        """Free places on ready instances, over all models."""
        return sum(each.places - each.running for pool in self._pools.values() for each in pool.ready)

    def count_running(self) -> int:
        """Requests that hold a place now."""
        return sum(instance.running for instance in self._instances.values())

    def count_waiting(self) -> int:
        """Requests that wait for a place now."""
        return sum(pool.queue.length for pool in self._pools.values())

    def waiting_by_model(self) -> dict[ModelId, int]:
        """Requests that wait for a place, by model."""
        local = {model: pool.queue.length for model, pool in self._pools.items()}
        return {**local, **self.remotes.waiting_by_model()}

    def running_by_model(self) -> dict[ModelId, int]:
        """Requests that hold a place, by model."""
        local = {model: sum(each.running for each in pool.instances) for model, pool in self._pools.items()}
        return {**local, **self.remotes.running_by_model()}

    def restarts_by_model(self) -> dict[ModelId, int]:
        """How often an engine was started again after a failure, by model, since this server started."""
        return {model: sum(each.process.restarts for each in pool.instances) for model, pool in self._pools.items()}

    def instance_states(self) -> list[tuple[ModelId, InstanceState]]:
        """Model and state of every instance that was ever wanted."""
        return [(each.model, each.process.state) for each in self._instances.values()]

    def list_crash_loops(self) -> list[CrashLoop]:
        """Engines that failed too often and haven't been ready since."""
        return [
            CrashLoop(each.model, each.id, each.process.restarts, failure.public)
            for each in self._instances.values()
            if each.process.breaker.is_open and (failure := each.process.failure) is not None
        ]

    def departures(self) -> dict[tuple[ModelId, Cause], int]:
        """How often an instance was sent away, by model and cause, since this server started."""
        return self._room.departures

    def planned_by_model(self) -> dict[ModelId, int]:
        """Bytes of memory that are set aside, by model."""
        return self._room.planned_by_model()

    def count_claims(self) -> int:
        """Instances that wait for a slot or for memory now."""
        return self._room.waiting

    def _find_holder(self, port: int) -> Instance | None:
        holder = self._slots.holders.get(port)
        return None if holder is None else self._instances.get(holder)

    def _describe_model(self, model: ModelId) -> ModelCard:
        served = self._catalogue.served(model)
        if model in self.remotes:
            return self.remotes.describe(served, self._created_us)
        pool = self._pools[model]
        spec = pool.spec
        failure = pool.find_failure()
        return ModelCard(
            id=served.id,
            aliases=served.aliases,
            abilities=served.abilities,
            context_size=served.context_size,
            state=choose_model_state(pool),
            engine=spec.engine,
            created_us=self._created_us,
            source=spec.source,
            places=sum(instance.places for instance in pool.ready) or spec.parallel * spec.instances,
            ready_instances=len(pool.ready),
            reason=failure.public if failure else pool.explain_fetch() or pool.note,
            type=served.type,
            voices=served.voices,
            file=served.file,
        )

    def _describe_instance(self, instance: Instance) -> InstanceCard:
        process = instance.process
        return InstanceCard(
            id=instance.id,
            model=instance.model,
            state=process.state,
            port=process.port,
            pid=process.pid,
            generation=process.generation,
            running=instance.running,
            places=instance.places,
            started_us=process.started_us,
            restarts=process.restarts,
            reason=str(process.failure) if process.failure else instance.pool.explain_fetch() or instance.reason,
            log_tail=tuple(process.log_tail),
            planned_bytes=self._slots.planned_for(instance.id),
            resident_bytes=self._room.find_resident_bytes(instance),
            context_size=process.context_size or 0,
            leaves_us=self._find_leaving_us(instance),
        )

    def _find_leaving_us(self, instance: Instance) -> int | None:
        left_s = instance.find_left_s()
        return None if left_s is None else self._clock.now_us() + int(left_s * 1_000_000)


def choose_model_state(pool: Pool) -> ModelState:
    """One word for all instances of a model: the best of them counts."""
    states = {instance.process.state for instance in pool.instances}
    if "ready" in states:
        return "ready"
    if "starting" in states:
        return "starting"
    return "failed" if "failed" in states else "cold"
