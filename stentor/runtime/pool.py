"""All instances of one model, the requests they run, and the queue in front of them.

The pool alone counts running requests. A process tells it of every change; a request gets a :class:`Place` and gives
it back with the generation it was given for, so that what belonged to a dead engine changes nothing.
"""

import asyncio
from collections.abc import Callable

import msgspec

from stentor.core.clock import Clock
from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ModelId
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.failure import NoRoom, StartFailed
from stentor.runtime.instance import Instance
from stentor.runtime.keeping import Keeping
from stentor.runtime.place import Place
from stentor.runtime.process import EngineProcess
from stentor.runtime.queue import Waiter, WaitQueue, refuse_late
from stentor.runtime.refusals import refuse_gone
from stentor.runtime.room import Demand, Room
from stentor.runtime.routing import Affinity, choose_instance
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.spec import ModelSpec

_UP = ("starting", "ready", "draining", "stopping")


class PoolParts(msgspec.Struct, frozen=True):
    """What all pools of one server share."""

    settings: RuntimeSettings
    room: Room
    catalogue: Catalogue
    clock: Clock
    explain_fetch: Callable[[ModelSpec], str]


class Pool:
    """The instances of one model. ``count`` is how many shall run once the model is wanted at all."""

    def __init__(self, spec: ModelSpec, make_process: Callable[["Pool"], EngineProcess], parts: PoolParts) -> None:
        self.spec = spec
        self.model = ModelId(spec.id)
        self.count = spec.instances
        self.instances: list[Instance] = []
        self.ready: list[Instance] = []
        self.queue = WaitQueue(parts.settings.queue_max)
        self.note = ""
        self.room = parts.room
        self.now = parts.clock.monotonic_s
        self._asked_at_s: list[float] = []
        self._make_process = make_process
        self._catalogue = parts.catalogue
        self._explain_fetch = parts.explain_fetch
        self._settings = parts.settings
        self._affinity = Affinity()
        self._stops = 0

    # -- places ----------------------------------------------------------------------------------------------------

    def try_take(self, prefix_key: int) -> Place | None:
        """A free place, or None where all are taken or somebody waits already."""
        ready = self.ready
        if not ready or self.queue.length:
            return None
        if len(ready) == 1:
            instance = ready[0]
            if instance.running >= instance.places:
                return None
            instance.running += 1
            return instance.place
        return self._take_best(prefix_key)

    def _take_best(self, prefix_key: int) -> Place | None:
        index = choose_instance(self.ready, self._preferred(prefix_key))
        if index < 0:
            return None
        instance = self.ready[index]
        instance.running += 1
        self._affinity.note(prefix_key, instance.id)
        return instance.place

    def _preferred(self, prefix_key: int) -> int:
        last = self._affinity.find(prefix_key) if prefix_key else None
        return next((index for index, instance in enumerate(self.ready) if instance.id == last), -1)

    def give_back(self, instance: Instance, suspect: bool) -> None:
        """A request of the instance's present generation is over."""
        if instance.running > 0:
            instance.running -= 1
        if instance.running == 0:
            instance.idle.set()
            self.room.note_idle(instance)
        if suspect:
            instance.process.suspect()
        if self.queue.length:
            self.serve_waiting()

    def serve_waiting(self) -> None:
        """Give free places to those who wait."""
        while self.queue.length:
            index = choose_instance(self.ready)
            waiter = self.queue.pop() if index >= 0 else None
            if waiter is None:
                return
            instance = self.ready[self._index_for(waiter, index)]
            instance.running += 1
            self._affinity.note(waiter.prefix_key, instance.id)
            place = instance.place
            waited_us = int((self.now() - waiter.queued_at_s) * 1_000_000)
            waiter.place.set_result(Place(place.instance, place.generation, place.url, place.token, waited_us))

    def _index_for(self, waiter: Waiter, index: int) -> int:
        preferred = self._preferred(waiter.prefix_key)
        return index if preferred < 0 else choose_instance(self.ready, preferred)

    async def wait(self, key_id: KeyId, prefix_key: int, timeout_s: float) -> Place:
        """Wait in line for a place. Raises Refused; a cancelled wait holds nothing."""
        future: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        waiter = Waiter(key_id, prefix_key, self.now(), future)
        self.queue.add(waiter, self._catalogue.served(self.model))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            self._leave(waiter)
            raise refuse_late(
                self._catalogue.served(self.model), timeout_s, not self.ready, self._explain_wait()
            ) from None
        except asyncio.CancelledError:
            self._leave(waiter)
            raise

    def explain_fetch(self) -> str:
        """How far the download of its file is; empty where it isn't waited for."""
        return "" if self.ready else self._explain_fetch(self.spec)

    def _explain_wait(self) -> str:
        fetching = self.explain_fetch()
        if fetching:
            return fetching
        claiming = not self.ready and any(each.is_claiming for each in self.instances)
        return "waits for room beside other models" if claiming else ""

    def _leave(self, waiter: Waiter) -> None:
        self.queue.remove(waiter)
        if self.queue.length == 0:
            # Nobody may be left who needs the room that is being made.
            self.room.look()
        future = waiter.place
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None:
            # The place was given in the same moment: it goes to the next in line.
            self.release(future.result())

    def release(self, place: Place) -> None:
        """Give back a place that was never used."""
        for instance in self.instances:
            if instance.id == place.instance and instance.generation == place.generation:
                self.give_back(instance, suspect=False)

    # -- instances -------------------------------------------------------------------------------------------------

    def wake(self, instances: int | None = None) -> None:
        """See to it that the model runs; starting twice is starting once. What was told to leave isn't kept."""
        wanted = max(instances or self.count, 1)
        while len(self.instances) < wanted:
            self.add_instance()
        if self._stops == 0:
            for instance in self._choose_living(wanted):
                if not instance.leaving and not instance.process.is_wanted:
                    instance.process.want()

    def add_instance(self) -> Instance:
        """One more instance, which nobody wants yet."""
        own_s = self.spec.idle_unload_s
        keeping = Keeping(self._settings.idle_unload_s if own_s is None else own_s, self._settings.keep_alive)
        instance = Instance(self, self._make_process(self), keeping)
        self.instances.append(instance)
        return instance

    def _choose_living(self, wanted: int) -> list[Instance]:
        return sorted(self.instances, key=lambda each: not each.process.is_wanted)[:wanted]

    def find_refusal(self) -> Refused | None:
        """Why waiting is hopeless now, or None."""
        if self._stops or not self.instances or any(_is_hopeful(instance) for instance in self.instances):
            return None
        return self.refuse_broken()

    def find_demand(self, instance: Instance, now_s: float) -> Demand:
        """How much room for ``instance`` is wanted: by requests, by an operator, or as the model is pinned."""
        waited_s = now_s - min([*self._asked_at_s, self.queue.find_oldest_s() or now_s])
        if self._asked_at_s:
            late = self.queue.length == 0 and waited_s > self._settings.queue_timeout_s
            return Demand(is_wanted=True, waited_s=waited_s, reach="swap", is_late=late)
        others = (each for each in self.instances if each is instance or each.process.has_room or each.is_claiming)
        first = next(others, instance)
        if self.queue.length:
            # One instance is enough to answer; more of them are no reason to interrupt others.
            return Demand(is_wanted=True, waited_s=waited_s, reach="swap" if first is instance else "idle")
        if self.spec.pinned:
            return Demand(is_wanted=True, reach="idle")
        return Demand(is_wanted=False)

    def refuse_broken(self) -> Refused:
        """The refusal of a model whose engine doesn't come up: what, why, what to do; never the engine's own words."""
        process = max((instance.process for instance in self.instances), key=lambda process: process.retry_at_s)
        public = process.failure.public if process.failure else "an administrator has stopped it"
        retry_s = max(1.0, process.retry_at_s - self.now())
        return Refused(
            "model_unavailable",
            f"The model '{self.spec.id}' could not be started: {public}. "
            "Try again later; an administrator finds the engine's log in the list of instances.",
            retry_after_s=round(retry_s, 1),
            details={"reason": public},
        )

    def note_change(self, process: EngineProcess) -> None:
        """A process changed: rebuild what follows from it, in one step."""
        instance = next((each for each in self.instances if each.process is process), None)
        if instance is None:
            return
        instance.note_state()
        self.ready = [each for each in self.instances if each.process.state == "ready" and not each.process.checking]
        if self.queue.length == 0:
            return
        self.serve_waiting()
        if process.state == "failed" and not self._has_hope(process):
            self.queue.refuse_all(self.refuse_broken)
        elif process.state == "stopped":
            self._go_on(process)

    def _go_on(self, stopped: EngineProcess) -> None:
        """An instance ended while requests wait: they are told that there is no room, or it is needed again."""
        if any(each.process.state in _UP for each in self.instances) or self._stops:
            return
        failure = stopped.failure
        if isinstance(failure, NoRoom) and failure.refuses:
            self.queue.refuse_all(self.refuse_broken)
        else:
            self.wake()

    def _has_hope(self, failed: EngineProcess) -> bool:
        """Whether those who wait may still be served: a failed *start* is told at once, a fallen engine is replaced."""
        if any(each.process.state in _UP for each in self.instances):
            return True
        return not failed.failed_starting and not failed.breaker.is_open

    async def start(self, instances: int, timeout_s: float | None) -> None:
        """Bring up ``instances``, as an operator asks. Raises StartFailed or TimeoutError."""
        self.count = max(self.count, instances)
        for instance in self.instances:
            instance.come_back()
        asked_at_s = self.now()
        self._asked_at_s.append(asked_at_s)
        try:
            self.wake(instances)
            await self.await_ready(instances, timeout_s)
        finally:
            self._asked_at_s.remove(asked_at_s)
            self.room.look()

    async def await_ready(self, instances: int, timeout_s: float | None) -> None:
        """Wait until ``instances`` that are wanted are up. Raises StartFailed or TimeoutError."""
        starts = [each.process.ensure_ready(timeout_s) for each in self._choose_living(instances)]
        for result in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def stop(self, drain_s: float) -> None:
        """No new work, let running requests end for at most ``drain_s``, stop all.

        Whoever asks for the model meanwhile has it started again.
        """
        self._stops += 1
        self.count = self.spec.instances
        try:
            for instance in self.instances:
                instance.drain("stop")
            await self.drained(drain_s)
            await asyncio.gather(*(instance.process.stop() for instance in self.instances))
        finally:
            self._stops -= 1
        if self.queue.length and self._stops == 0:
            self.wake()

    async def stop_one(self, instance: Instance, drain_s: float) -> None:
        """As :meth:`stop`, of one instance; fewer are wanted from now on."""
        self.count = max(1, self.count - 1)
        instance.drain("stop")
        await instance.drained(drain_s)
        await instance.process.stop()

    def retire(self) -> list[Instance]:
        """The model is gone: whoever waits is refused; returns the instances, which must be retired."""
        self._stops += 1
        self.queue.refuse_all(lambda: refuse_gone(self.model))
        for instance in self.instances:
            instance.drain("stop")
        return self.instances

    def change(self, spec: ModelSpec) -> list[Instance]:
        """Go on under another definition, with fresh instances; returns the old ones, which must be retired.

        Requests that wait stay in line.
        """
        wanted = sum(instance.process.is_wanted for instance in self.instances)
        self.spec = spec
        self.count = max(wanted, spec.instances)
        old, self.instances, self.ready = self.instances, [], []
        for instance in old:
            instance.drain("stop")
        if wanted or self.queue.length:
            self.wake()
        return old

    async def drained(self, drain_s: float) -> None:
        """Wait until nothing runs, at most ``drain_s``."""
        await asyncio.gather(*(instance.drained(drain_s) for instance in self.instances))

    async def close(self) -> None:
        """Stop everything for good."""
        await asyncio.gather(*(instance.process.close() for instance in self.instances))

    def find_failure(self) -> StartFailed | None:
        """The latest failure of an instance that isn't up."""
        return next((each.process.failure for each in self.instances if each.process.state == "failed"), None)


def _is_hopeful(instance: Instance) -> bool:
    process = instance.process
    if instance.leaving in ("room", "stop"):
        return True
    return process.is_wanted and not (process.state == "failed" and process.breaker.is_open)
