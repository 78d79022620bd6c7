"""The owner of models, instances and places on one machine.

Lives on one event loop and holds no lock: every change happens in one step between two awaits. Decisions are pure
functions in ``routing``, ``queue``, ``eviction``, ``memory`` and ``breaker``; here, in ``pool`` and in ``room`` they
take effect.
"""

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Mapping, Sequence

from stentor.core.clock import Clock
from stentor.core.errors import Refused
from stentor.core.ids import InstanceId, KeyId, ModelId
from stentor.core.scheduler import InstanceCard
from stentor.core.units import MIB
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.desired import Desired, DesiredModel
from stentor.runtime.host import Host, LocalHost
from stentor.runtime.instance import Instance
from stentor.runtime.journal import Journal
from stentor.runtime.keeping import KeepWish
from stentor.runtime.launchers.base import Launcher
from stentor.runtime.launchers.command import CommandLauncher
from stentor.runtime.launchers.llama import LlamaLauncher
from stentor.runtime.launchers.llama_server import LlamaServerLauncher
from stentor.runtime.launchers.speech import SpeechLauncher
from stentor.runtime.place import Place
from stentor.runtime.pool import Pool, PoolParts
from stentor.runtime.preparation import ModelSource, Preparation
from stentor.runtime.process import EngineProcess, ProcessParts
from stentor.runtime.refusals import refuse_shutdown, told
from stentor.runtime.remotes import Remotes
from stentor.runtime.room import Room, RoomLimits
from stentor.runtime.roster import Roster, RosterEntry
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.sizes import Sizes
from stentor.runtime.slots import Slots
from stentor.runtime.spec import SPEECH_TYPES, EngineKind, ModelSpec, ServedModel
from stentor.runtime.views import SchedulerViews
from stentor.telemetry.background import keep_going
from stentor.telemetry.logs import Log

__all__ = ["LocalScheduler", "Place", "ServedModel"]

_RESUME_STEP_S = 10.0


class LocalScheduler(SchedulerViews):
    """Implements :class:`stentor.core.scheduler.EngineControl` in this process.

    ``environment`` is what children may inherit a few variables from; ``log`` None says nothing; ``host`` None is this
    machine. :meth:`run` must be running for preloaded models to come up; everything else works from construction on
    the loop that calls it. End it with :meth:`shutdown`.
    """

    def __init__(
        self,
        settings: RuntimeSettings,
        source: ModelSource,
        environment: Mapping[str, str],
        clock: Clock,
        log: Log | None = None,
        host: Host | None = None,
    ) -> None:
        self._host = host or LocalHost(environment)
        self._settings = settings
        slots = Slots(settings.slot_first_port, settings.slot_count, self._host.is_port_free)
        catalogue = Catalogue(settings.models, settings.default_ctx, lenient=settings.lenient_routing)
        super().__init__(catalogue, slots, clock)
        run_dir = settings.data_dir / "run"
        launchers: dict[EngineKind, Launcher] = {
            "llama": LlamaLauncher(environment),
            "llama-server": LlamaServerLauncher(environment, settings.engine_bin, run_dir),
            "command": CommandLauncher(environment),
            **dict.fromkeys(SPEECH_TYPES, SpeechLauncher(environment)),
        }
        self._log = log
        self._journal = Journal(log)
        self._roster = Roster(run_dir / "engines.json")
        self._sizes = Sizes(run_dir / "sizes.json")
        self._desired = Desired(run_dir / "desired.json")
        self._preparation = Preparation(settings, self._catalogue, source, launchers, self._sizes, self._host.find_gpus)
        self._preparation.look(self._catalogue.specs.values())
        limit_mb = settings.memory_limit_mb
        limits = RoomLimits(memory_bytes=None if limit_mb is None else limit_mb * MIB, policy=settings.swap)
        self._room = Room(limits, slots, self._host, self._sizes, clock, self._journal.note_departure)
        self._parts = ProcessParts(settings, self._host, self._room, self._roster, clock)
        explain = self._preparation.explain_fetch
        self._pool_parts = PoolParts(settings, self._room, self._catalogue, clock, explain)
        self._numbers: dict[ModelId, itertools.count[int]] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._closing = False
        self._resumed = asyncio.Event()
        self._closed = asyncio.Event()
        self.remotes = Remotes(settings.queue_max, log)
        self.remotes.add(self._catalogue.specs.values())
        for spec in self._catalogue.specs.values():
            if spec.remote is None:
                self._add_pool(spec)

    # -- requests --------------------------------------------------------------------------------------------------

    def try_acquire(self, model: ModelId, prefix_key: int) -> Place | None:
        """A free place on a ready instance, if nobody waits for one; never waits, never starts anything."""
        pool = self._pools.get(model)
        if pool is None or self._closing:
            return self.remotes.try_acquire(model)
        return pool.try_take(prefix_key)

    async def acquire(self, model: ModelId, *, key_id: KeyId, prefix_key: int, timeout_s: float | None) -> Place:
        """A place, after waiting in the model's queue and for its start where needed.

        ``timeout_s`` None means the server's queue timeout. Raises Refused: ``overloaded`` (queue full, waited too
        long), ``model_unavailable`` (its engine doesn't come up), ``server_shutdown``, ``model_not_found``. A
        cancelled wait holds nothing. A model's line takes one of each key in turn.
        """
        if self._closing:
            raise refuse_shutdown()
        wait_s = self._settings.queue_timeout_s if timeout_s is None else timeout_s
        if model in self.remotes:
            return await self.remotes.acquire(self._catalogue.served(model), key_id, wait_s)
        pool = self._get_pool(model)
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

    def keep(self, place_instance: InstanceId, generation: int, wish: KeepWish) -> None:
        """What the request that has a place asks for the time after it. A remote model knows no such time."""
        instance = self._instances.get(place_instance)
        if instance is not None and instance.generation == generation:
            instance.note_wish(wish)

    def is_available(self, model: ModelId) -> bool:
        """Whether asking a remote model is worth it now; True for a local one."""
        return self.remotes.is_available(model)

    def report(self, model: ModelId, *, ok: bool | None, retry_after_s: float) -> None:
        """How a request to a remote model went, before its place is given back."""
        self.remotes.report(model, ok, retry_after_s)

    # -- what operators ask for ------------------------------------------------------------------------------------

    async def start(self, model: ModelId, instances: int = 1) -> None:
        """Bring up at least ``instances`` ready instances; returns when they are. The model is wanted from now on.

        Raises Refused with the reason.
        """
        if self._closing:
            raise refuse_shutdown()
        if model in self.remotes:
            self.remotes.set_enabled(model, True)
            return
        pool = self._get_pool(model)
        self.sweep()
        await self._remember(DesiredModel(model, instances))
        with told(model):
            await pool.start(instances, self._settings.start_max_s)

    async def stop(self, model: ModelId) -> None:
        """Let running requests end (at most the drain time), then stop all instances of the model."""
        pool = self._pools.get(model)
        if pool is not None:
            await self._remember(DesiredModel(model, 0))
            await pool.stop(self._settings.drain_s)
        elif model in self.remotes:
            self.remotes.set_enabled(model, False)

    async def load(self, model: ModelId, instances: int = 1, slot: int | None = None) -> list[InstanceCard]:
        """See :class:`stentor.core.scheduler.EngineControl`."""
        pool = self._get_pool(model)
        holder = None if slot is None else self._get_holder(slot, empty=True)
        if slot is not None and (holder is None or holder.model != model):
            await self._make_way(pool, slot, holder)
        await self.start(model, instances)
        return [self._describe_instance(each) for each in pool.instances if each.process.state == "ready"]

    async def _make_way(self, pool: Pool, slot: int, holder: Instance | None) -> None:
        """Free ``slot`` and have an instance of ``pool`` that isn't up get it."""
        if holder is not None and holder.pool.spec.pinned:
            raise Refused("conflict", f"Slot {slot} holds '{holder.model}', which is pinned. Unload it first.")
        down = [each for each in pool.instances if not each.process.is_wanted and not each.process.has_room]
        instance = down[0] if down else pool.add_instance()
        self._slots.reserve(slot, instance.id)
        try:
            if holder is not None:
                await holder.pool.stop_one(holder, self._settings.drain_s)
            instance.process.want()
        except BaseException:
            self._slots.unreserve(instance.id)
            raise

    async def drain(self, slot: int) -> None:
        """See :class:`stentor.core.scheduler.EngineControl`."""
        holder = self._get_holder(slot)
        assert holder is not None
        holder.drain("drain")
        await holder.drained(self._settings.drain_s)

    async def unload(self, slot: int) -> None:
        """See :class:`stentor.core.scheduler.EngineControl`."""
        holder = self._get_holder(slot)
        assert holder is not None
        await holder.pool.stop_one(holder, self._settings.drain_s)
        pool = self._pools.get(holder.model)
        if pool is not None and not any(each.process.is_wanted for each in pool.instances):
            await self._remember(DesiredModel(holder.model, 0))

    async def change_models(
        self, put: Sequence[ModelSpec], drop: Sequence[ModelId] = (), *, anew: bool = False
    ) -> None:
        """Take in new and changed models and let go of others; returns when what ran of them has ended.

        What runs of a changed model is drained (at most the drain time) while those who wait stay in line for fresh
        instances, as many as were wanted before. Whoever waits for a dropped one is refused. ``anew``: what is put has
        changed though its definition hasn't, as its files have. Raises InvalidModel, and then nothing has changed.
        """
        self.neighbours.give_way(put)
        before = dict(self._catalogue.specs)
        self._catalogue.change(put, drop)
        self._preparation.look(put)
        old = [instance for model in drop for instance in self._drop(model)]
        for spec in put:
            if anew or before.get(ModelId(spec.id)) != spec:
                old += self._put(spec)
        tasks = [asyncio.create_task(self._retire(each), name=f"retire {each.id}") for each in old]
        self._retiring.update(tasks)
        for task in tasks:
            task.add_done_callback(self._retiring.discard)
        for model in drop:
            await self._remember(DesiredModel(model, 0))
        if tasks:
            await asyncio.wait(tasks)

    def _put(self, spec: ModelSpec) -> list[Instance]:
        """Take in a new or changed definition; returns the instances that it has no use for."""
        model = ModelId(spec.id)
        if spec.remote is not None:
            old = self._drop(model)
            self.remotes.add([spec])
            return old
        self.remotes.remove(model)
        self._preparation.forget(model)
        pool = self._pools.get(model)
        if pool is not None:
            return pool.change(spec)
        self._add_pool(spec)
        if spec.preload:
            self._pools[model].wake()
        return []

    def _drop(self, model: ModelId) -> list[Instance]:
        self.remotes.remove(model)
        pool = self._pools.pop(model, None)
        return [] if pool is None else pool.retire()

    async def _retire(self, instance: Instance) -> None:
        await instance.drained(self._settings.drain_s)
        await instance.process.close()
        self._instances.pop(instance.id, None)
        self._room.forget(instance.id)

    # -- life ------------------------------------------------------------------------------------------------------

    def sweep(self) -> list[RosterEntry]:
        """Kill what an earlier server left behind; done once, before the first start at the latest."""
        left = self._roster.sweep()
        self._journal.note_swept(left)
        return left

    async def run(self) -> None:
        """Sweep, bring up what is to run, and last until shutdown."""
        self.sweep()
        looking = asyncio.create_task(keep_going("remotes", self.remotes.run, self._log), name="remotes")
        try:
            await self._resume()
            await self._closed.wait()
        finally:
            looking.cancel()

    async def _resume(self) -> None:
        """Bring up preloaded models and those that operators had started, in order, as long as there is room.

        Each gets its room before the next one asks for any; a broken or slow one holds the others up for 10 s at most.
        """
        wanted = {model: pool.spec.instances for model, pool in self._pools.items() if pool.spec.preload}
        for entry in self._desired.list_models():
            wanted[entry.model] = max(entry.instances, wanted.get(entry.model, 0))
        for model, instances in wanted.items():
            pool = self._pools.get(model)
            if pool is None or self._closing:
                continue
            pool.count = max(pool.count, instances)
            pool.wake(instances)
            planned = [each.process.planned.wait() for each in pool.instances]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RESUME_STEP_S):
                    await asyncio.gather(*planned)
        self._resumed.set()

    async def await_resumed(self, model: ModelId) -> None:
        """Wait until a preloaded model is up. Raises Refused with the reason why it isn't."""
        await self._resumed.wait()
        pool = self._get_pool(model)
        with told(model):
            for instance in pool.instances:
                await instance.process.await_outcome(self._settings.start_max_s)

    async def shutdown(self, drain_s: float | None = None) -> None:
        """Refuse new requests, let running ones end for at most ``drain_s``, end every engine; all gone on return."""
        self._closing = True
        for pool in self._pools.values():
            pool.queue.refuse_all(refuse_shutdown)
        self.remotes.close(refuse_shutdown)
        limit_s = self._settings.drain_s if drain_s is None else drain_s
        pools = self._pools.values()
        await asyncio.gather(*(pool.drained(limit_s) for pool in pools), self.remotes.drained(limit_s))
        self._room.close()
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*(instance.process.close() for instance in list(self._instances.values())))
        await asyncio.gather(*(pool.close() for pool in pools))
        await self._host.probe.close()
        self._resumed.set()
        self._closed.set()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _get_pool(self, model: ModelId) -> Pool:
        pool = self._pools.get(model)
        if pool is None:
            # Unknown to resolve(), too, which has the words for it.
            self._catalogue.resolve(model, frozenset())
            raise KeyError(model)
        return pool

    def _get_holder(self, slot: int, *, empty: bool = False) -> Instance | None:
        if slot not in self._slots.ports:
            first, last = self._slots.ports[0], self._slots.ports[-1]
            raise Refused("not_found", f"There is no slot {slot}; slots are {first} to {last}.", param="slot")
        holder = self._find_holder(slot)
        if holder is None and not empty:
            raise Refused("not_found", f"Slot {slot} is empty.", param="slot")
        return holder

    def _add_pool(self, spec: ModelSpec) -> None:
        self._pools[ModelId(spec.id)] = Pool(spec, self._make_process, self._pool_parts)

    def _make_process(self, pool: Pool) -> EngineProcess:
        self.sweep()
        number = next(self._numbers.setdefault(pool.model, itertools.count(1)))
        return EngineProcess(
            InstanceId(f"{pool.model}#{number}"),
            pool.spec,
            self._parts,
            functools.partial(self._preparation.prepare, pool.spec, self._room.find_budget_bytes),
            functools.partial(self._note_change, pool),
        )

    def _note_change(self, pool: Pool, process: EngineProcess) -> None:
        for instance in pool.instances:
            self._instances.setdefault(instance.id, instance)
        if process.state == "ready" and not process.checking:
            self._preparation.note_ready(pool.model, process)
            self._room.note_ready(process.instance, process.load_s)
        elif process.state == "failed" and process.failure is not None and process.failure.out_of_memory:
            self._preparation.note_out_of_memory(pool.model)
        pool.note_change(process)
        self._journal.note_change(process)
        self._room.look()

    async def _remember(self, wish: DesiredModel) -> None:
        try:
            if wish.instances:
                await self._desired.put(wish.model, wish.instances)
            else:
                await self._desired.drop(wish.model)
        except OSError as problem:
            # A full disk must not keep a model from being started; only the next boot won't know of it.
            self._journal.note_forgotten(wish.model, problem)
