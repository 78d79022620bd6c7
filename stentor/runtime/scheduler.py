"""The owner of models, instances and places on one machine.

Lives on one event loop and holds no lock: every change happens in one step between two awaits. Decisions are pure
functions in ``routing``, ``queue``, ``slots``, ``memory`` and ``breaker``; here and in ``pool`` they take effect.
"""

import asyncio
import functools
from collections.abc import Mapping, Sequence

from stentor.core.clock import Clock
from stentor.core.errors import Refused
from stentor.core.ids import InstanceId, KeyId, ModelId, RequestId
from stentor.core.scheduler import EngineDoor, InstanceCard, InstanceState, LogPage, ModelCard, ModelState
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.failure import StartFailed
from stentor.runtime.journal import Journal
from stentor.runtime.launchers.base import Launcher
from stentor.runtime.launchers.command import CommandLauncher
from stentor.runtime.launchers.llama import LlamaLauncher
from stentor.runtime.launchers.llama_server import LlamaServerLauncher
from stentor.runtime.place import Place
from stentor.runtime.pool import Instance, Pool
from stentor.runtime.preparation import ModelSource, Preparation
from stentor.runtime.probe import Probe
from stentor.runtime.process import EngineProcess, ProcessParts
from stentor.runtime.remotes import Remotes
from stentor.runtime.roster import Roster, RosterEntry
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.slots import Slots
from stentor.runtime.spec import EngineKind, ModelSpec, ServedModel
from stentor.telemetry.logs import Log

__all__ = ["LocalScheduler", "Place", "ServedModel"]


class LocalScheduler:
    """Implements :class:`stentor.core.scheduler.Scheduler` in this process.

    ``environment`` is what children may inherit a few variables from; ``log`` None says nothing. :meth:`run` must be
    running for preloaded models to come up; everything else works from construction on the loop that calls it. End it
    with :meth:`shutdown`.
    """

    def __init__(
        self,
        settings: RuntimeSettings,
        source: ModelSource,
        environment: Mapping[str, str],
        clock: Clock,
        log: Log | None = None,
    ) -> None:
        self._settings = settings
        self._catalogue = Catalogue(settings.models, settings.default_ctx)
        launchers: dict[EngineKind, Launcher] = {
            "llama": LlamaLauncher(environment),
            "llama-server": LlamaServerLauncher(environment, settings.engine_bin, settings.data_dir / "run"),
            "command": CommandLauncher(environment),
        }
        self._roster = Roster(settings.data_dir / "run" / "engines.json")
        self._probe = Probe()
        slots = Slots(settings.slot_first_port, settings.slot_count)
        self._preparation = Preparation(
            settings, self._catalogue, source, launchers, find_planned=lambda: slots.planned_bytes
        )
        self._parts = ProcessParts(settings, self._probe, slots, self._roster)
        self._journal = Journal(log)
        self._instances: dict[InstanceId, Instance] = {}
        self._created_us = clock.now_us()
        self._closing = False
        self._closed = asyncio.Event()
        self._pools = {
            model: self._make_pool(spec) for model, spec in self._catalogue.specs.items() if spec.remote is None
        }
        self.remotes = Remotes(settings.queue_max, log)
        self.remotes.add(self._catalogue.specs.values())

    # -- requests --------------------------------------------------------------------------------------------------

    def resolve(self, name: str, allowed: frozenset[str]) -> ServedModel:
        """The model that ``name`` means among ``allowed`` ids (empty: all). Raises Refused ``model_not_found``."""
        return self._catalogue.resolve(name, allowed)

    def try_acquire(self, model: ModelId, prefix_key: int) -> Place | None:
        """A free place on a ready instance, if nobody waits for one; never waits, never starts anything."""
        pool = self._pools.get(model)
        if pool is None or self._closing:
            return self.remotes.try_acquire(model)
        return pool.try_take(prefix_key)

    async def acquire(
        self, model: ModelId, *, request_id: RequestId, key_id: KeyId, prefix_key: int, timeout_s: float | None
    ) -> Place:
        """A place, after waiting in the model's queue and for its start where needed.

        ``timeout_s`` None means the server's queue timeout. Raises Refused: ``overloaded`` (queue full, waited too
        long), ``model_unavailable`` (its engine doesn't come up), ``server_shutdown``, ``model_not_found``. A
        cancelled wait holds nothing. ``request_id`` names the request in what operators see of it.
        """
        if self._closing:
            raise refuse_shutdown()
        pool = self._pools.get(model)
        wait_s = self._settings.queue_timeout_s if timeout_s is None else timeout_s
        if model in self.remotes:
            return await self.remotes.acquire(self._catalogue.served(model), key_id, wait_s)
        if pool is None:
            # Unknown to resolve(), too, which has the words for it.
            self._catalogue.resolve(model, frozenset())
            raise KeyError(model)
        place = pool.try_take(prefix_key)
        if place is not None:
            return place
        pool.wake()
        refusal = pool.find_refusal()
        if refusal is not None:
            raise refusal
        return await pool.wait(key_id, prefix_key, wait_s)

    def release(self, place_instance: InstanceId, generation: int, *, suspect: bool) -> None:
        """Give a place back. ``suspect`` has the instance answer a canary before it gets more work.

        A place of an engine that is gone is ignored: its count died with it.
        """
        instance = self._instances.get(place_instance)
        if instance is None:
            self.remotes.release(place_instance, generation)
        elif instance.generation == generation:
            instance.pool.give_back(instance, suspect)

    def is_available(self, model: ModelId) -> bool:
        """Whether asking a remote model is worth it now; True for a local one."""
        return self.remotes.is_available(model)

    def report(self, model: ModelId, *, ok: bool | None, retry_after_s: float) -> None:
        """How a request to a remote model went, before its place is given back."""
        self.remotes.report(model, ok, retry_after_s)

    # -- what operators and clients see ----------------------------------------------------------------------------

    async def list_models(self) -> list[ModelCard]:
        """All models of the catalogue, by id."""
        return [self._describe_model(model) for model in sorted((*self._pools, *self.remotes.models()))]

    async def find_model(self, name: str) -> ModelCard | None:
        """The model that ``name`` resolves to, or None."""
        served = self._catalogue.find(name)
        return None if served is None else self._describe_model(served.id)

    async def list_instances(self) -> list[InstanceCard]:
        """All engine processes that were ever wanted, failed ones included, by port."""
        cards = [_describe_instance(instance) for instance in self._instances.values()]
        return sorted(cards, key=lambda card: (card.port, card.id))

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
        return [(ModelId(each.process.spec.id), each.process.state) for each in self._instances.values()]

    # -- life ------------------------------------------------------------------------------------------------------

    def sweep(self) -> list[RosterEntry]:
        """Kill what an earlier server left behind; done once, before the first start at the latest."""
        left = self._roster.sweep()
        self._journal.note_swept(left)
        return left

    async def start(self, model: ModelId, instances: int = 1) -> None:
        """Bring up at least ``instances`` ready instances; returns when they are. Raises Refused with the reason."""
        if self._closing:
            raise refuse_shutdown()
        if model in self.remotes:
            self.remotes.set_enabled(model, True)
            return
        pool = self._pools.get(model)
        if pool is None:
            self._catalogue.resolve(model, frozenset())
            raise KeyError(model)
        self.sweep()
        try:
            await pool.start(instances, self._settings.start_max_s)
        except StartFailed as problem:
            raise Refused(
                "model_unavailable",
                f"The model '{model}' could not be started: {problem.public}. The list of instances has the details.",
                details={"reason": problem.public},
            ) from problem
        except TimeoutError as problem:
            raise Refused("model_unavailable", f"The model '{model}' is still starting; look again later.") from problem

    async def stop(self, model: ModelId) -> None:
        """Let running requests end (at most the drain time), then stop all instances of the model."""
        pool = self._pools.get(model)
        if pool is not None:
            await pool.stop(self._settings.drain_s)
        elif model in self.remotes:
            self.remotes.set_enabled(model, False)

    async def change_models(self, put: Sequence[ModelSpec], drop: Sequence[ModelId] = ()) -> None:
        """Take in new and changed models and let go of others; returns when what ran of them has ended.

        A changed model drains and comes back as it is now; requests for it wait meanwhile. Raises InvalidModel, and
        then nothing has changed.
        """
        self._catalogue.change(put, drop)
        local = {ModelId(spec.id): spec for spec in put if spec.remote is None}
        leaving = [*drop, *(ModelId(spec.id) for spec in put if spec.remote is not None)]
        for model in [*drop, *local]:
            self.remotes.remove(model)
        self.remotes.add(put)
        dropped = [pool for pool in (self._pools.pop(model, None) for model in leaving) if pool is not None]
        for pool in dropped:
            pool.queue.refuse_all(functools.partial(refuse_dropped, pool.spec.id))
        changed = [(self._pools[model], spec) for model, spec in local.items() if model in self._pools]
        for model, spec in local.items():
            if model not in self._pools:
                self._pools[model] = self._make_pool(spec)
                if spec.preload:
                    self._pools[model].wake()
        changes = [self._exchange(pool, spec) for pool, spec in changed]
        await asyncio.gather(*changes, *(self._retire(pool) for pool in dropped))

    async def _exchange(self, pool: Pool, spec: ModelSpec) -> None:
        for instance in await pool.exchange(spec, self._settings.drain_s):
            self._instances.pop(instance.id, None)

    async def _retire(self, pool: Pool) -> None:
        await pool.stop(self._settings.drain_s)
        await pool.close()
        for instance in pool.instances:
            self._instances.pop(instance.id, None)

    async def run(self) -> None:
        """Sweep, bring up the preloaded models (a broken one doesn't hold the others up), and last until shutdown."""
        self.sweep()
        for pool in self._pools.values():
            if pool.spec.preload and not self._closing:
                pool.wake()
        looking = asyncio.create_task(self.remotes.run(), name="remotes")
        try:
            await self._closed.wait()
        finally:
            looking.cancel()

    async def shutdown(self, drain_s: float | None = None) -> None:
        """Refuse new requests, let running ones end for at most ``drain_s``, end every engine; all gone on return."""
        self._closing = True
        for pool in self._pools.values():
            pool.queue.refuse_all(refuse_shutdown)
        self.remotes.close(refuse_shutdown)
        limit_s = self._settings.drain_s if drain_s is None else drain_s
        pools = self._pools.values()
        await asyncio.gather(*(pool.drained(limit_s) for pool in pools), self.remotes.drained(limit_s))
        await asyncio.gather(*(pool.close() for pool in pools))
        await self._probe.close()
        self._closed.set()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _make_pool(self, spec: ModelSpec) -> Pool:
        find_served = functools.partial(self._catalogue.served, ModelId(spec.id))
        return Pool(spec, self._make_process, self._settings.queue_max, find_served)

    def _make_process(self, pool: Pool, number: int) -> EngineProcess:
        self.sweep()
        spec = pool.spec
        return EngineProcess(
            InstanceId(f"{spec.id}#{number}"),
            spec,
            self._parts,
            functools.partial(self._preparation.prepare, spec),
            functools.partial(self._note_change, pool),
        )

    def _note_change(self, pool: Pool, process: EngineProcess) -> None:
        model = ModelId(pool.spec.id)
        if process.state == "ready":
            self._preparation.note_context(model, process.context_size)
        for instance in pool.instances:
            self._instances.setdefault(instance.id, instance)
        pool.note_change(process)
        self._journal.note_change(process)

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
            reason=failure.public if failure else "",
        )


def choose_model_state(pool: Pool) -> ModelState:
    """One word for all instances of a model: the best of them counts."""
    states = {instance.process.state for instance in pool.instances}
    if "ready" in states:
        return "ready"
    if "starting" in states:
        return "starting"
    return "failed" if "failed" in states else "cold"


def refuse_dropped(model: str) -> Refused:
    """The refusal to those who wait for a model that was taken out of the catalogue."""
    return Refused("model_not_found", f"The model '{model}' was removed. Nothing was charged.", param="model")


def refuse_shutdown() -> Refused:
    """The refusal while the server ends."""
    text = "The server is shutting down. Nothing was charged; try again shortly."
    return Refused("server_shutdown", text, retry_after_s=5.0)


def _describe_instance(instance: Instance) -> InstanceCard:
    process = instance.process
    return InstanceCard(
        id=instance.id,
        model=ModelId(process.spec.id),
        state=process.state,
        port=process.port,
        pid=process.pid,
        generation=process.generation,
        running=instance.running,
        places=instance.places,
        started_us=process.started_us,
        restarts=process.restarts,
        reason=str(process.failure) if process.failure else "",
        log_tail=tuple(process.log_tail),
        context_size=process.context_size or 0,
    )
