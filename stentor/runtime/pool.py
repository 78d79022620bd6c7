"""All instances of one model, the requests they run, and the queue in front of them.

The pool alone counts running requests. A process tells it of every change; a request gets a :class:`Place` and gives
it back with the generation it was given for, so that what belonged to a dead engine changes nothing.
"""

import asyncio
import time
from collections.abc import Callable

from stentor.core.errors import Refused
from stentor.core.ids import KeyId
from stentor.runtime.failure import StartFailed
from stentor.runtime.place import Place
from stentor.runtime.process import EngineProcess
from stentor.runtime.queue import Waiter, WaitQueue, refuse_late
from stentor.runtime.routing import Affinity, choose_instance
from stentor.runtime.spec import ModelSpec, ServedModel

_UP = ("starting", "ready", "draining", "stopping")


class Instance:
    """An engine process and what it runs. ``generation`` is -1 while nothing given out can be valid."""

    __slots__ = ("generation", "id", "idle", "place", "places", "pool", "process", "running")

    def __init__(self, pool: "Pool", process: EngineProcess) -> None:
        self.id = process.instance
        self.pool = pool
        self.process = process
        self.generation = -1
        self.running = 0
        self.places = process.places
        self.place = Place(process.instance, -1, "", "", 0)
        self.idle = asyncio.Event()
        self.idle.set()

    def adopt(self) -> None:
        """Take over what a process that just became ready says of itself."""
        process = self.process
        self.generation = process.generation
        self.running = 0
        self.idle.set()
        self.places = process.places
        self.place = Place(self.id, self.generation, process.address.url, process.address.token, 0)

    def forget(self) -> None:
        """Nothing runs here any more."""
        self.generation = -1
        self.running = 0
        self.idle.set()


class Pool:
    """The instances of one model."""

    def __init__(
        self,
        spec: ModelSpec,
        make_process: Callable[["Pool", int], EngineProcess],
        queue_max: int,
        find_served: Callable[[], ServedModel],
    ) -> None:
        self.spec = spec
        self.instances: list[Instance] = []
        self.ready: list[Instance] = []
        self.queue = WaitQueue(queue_max)
        self._make_process = make_process
        self._find_served = find_served
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
            waited_us = int((time.monotonic() - waiter.queued_at_s) * 1_000_000)
            waiter.place.set_result(Place(place.instance, place.generation, place.url, place.token, waited_us))

    def _index_for(self, waiter: Waiter, index: int) -> int:
        preferred = self._preferred(waiter.prefix_key)
        return index if preferred < 0 else choose_instance(self.ready, preferred)

    async def wait(self, key_id: KeyId, prefix_key: int, timeout_s: float) -> Place:
        """Wait in line for a place. Raises Refused; a cancelled wait holds nothing."""
        future: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        waiter = Waiter(key_id, prefix_key, time.monotonic(), future)
        self.queue.add(waiter, self._find_served())
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            self._leave(waiter)
            raise refuse_late(self._find_served(), timeout_s, loading=not self.ready) from None
        except asyncio.CancelledError:
            self._leave(waiter)
            raise

    def _leave(self, waiter: Waiter) -> None:
        self.queue.remove(waiter)
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
        """See to it that the model runs; starting twice is starting once."""
        wanted = max(instances or self.spec.instances, 1)
        while len(self.instances) < wanted:
            self.instances.append(Instance(self, self._make_process(self, len(self.instances) + 1)))
        if self._stops == 0:
            for instance in self.instances[:wanted]:
                if not instance.process.is_wanted:
                    instance.process.want()

    def find_refusal(self) -> Refused | None:
        """Why waiting is hopeless now, or None."""
        if self._stops or not self.instances or any(_is_hopeful(instance.process) for instance in self.instances):
            return None
        return self.refuse_broken()

    def refuse_broken(self) -> Refused:
        """The refusal of a model whose engine doesn't come up: what, why, what to do; never the engine's own words."""
        process = max((instance.process for instance in self.instances), key=lambda process: process.retry_at_s)
        public = process.failure.public if process.failure else "it was stopped"
        retry_s = max(1.0, process.retry_at_s - time.monotonic())
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
        if process.state == "ready":
            if instance.generation != process.generation:
                instance.adopt()
        elif process.state != "draining" and instance.generation >= 0:
            instance.forget()
        self.ready = [each for each in self.instances if each.process.state == "ready" and not each.process.checking]
        if self.queue.length == 0:
            return
        self.serve_waiting()
        if process.state == "failed" and not self._has_hope(process):
            self.queue.refuse_all(self.refuse_broken)

    def _has_hope(self, failed: EngineProcess) -> bool:
        """Whether those who wait may still be served: a failed *start* is told at once, a fallen engine is replaced."""
        if any(each.process.state in _UP for each in self.instances):
            return True
        return not failed.failed_starting and not failed.breaker.is_open

    async def start(self, instances: int, timeout_s: float | None) -> None:
        """Bring up ``instances``. Raises StartFailed or TimeoutError."""
        self.wake(instances)
        starts = [each.process.ensure_ready(timeout_s) for each in self.instances[:instances]]
        for result in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def stop(self, drain_s: float) -> None:
        """No new work, let running requests end for at most ``drain_s``, stop all.

        Whoever asks for the model meanwhile has it started again.
        """
        self._stops += 1
        try:
            for instance in self.instances:
                instance.process.drain()
            await self.drained(drain_s)
            await asyncio.gather(*(instance.process.stop() for instance in self.instances))
        finally:
            self._stops -= 1
        if self.queue.length and self._stops == 0:
            self.wake()

    async def exchange(self, spec: ModelSpec, drain_s: float) -> list[Instance]:
        """Go on as ``spec`` says: what runs is drained and ended, as much is started anew; who asks meanwhile waits.

        Returns the instances that are gone.
        """
        wanted = sum(instance.process.is_wanted for instance in self.instances)
        self._stops += 1
        try:
            await self.stop(drain_s)
            await self.close()
            gone, self.instances, self.ready, self.spec = self.instances, [], [], spec
        finally:
            self._stops -= 1
        if wanted or self.queue.length:
            self.wake(max(wanted, spec.instances))
        return gone

    async def drained(self, drain_s: float) -> bool:
        """Wait until nothing runs, at most ``drain_s``; whether that came true."""
        try:
            async with asyncio.timeout(drain_s):
                for instance in self.instances:
                    await self._until_idle(instance)
        except TimeoutError:
            return False
        return True

    async def _until_idle(self, instance: Instance) -> None:
        while instance.running > 0:
            instance.idle.clear()
            await instance.idle.wait()

    async def close(self) -> None:
        """Stop everything for good."""
        await asyncio.gather(*(instance.process.close() for instance in self.instances))

    def find_failure(self) -> StartFailed | None:
        """The latest failure of an instance that isn't up."""
        return next((each.process.failure for each in self.instances if each.process.state == "failed"), None)


def _is_hopeful(process: EngineProcess) -> bool:
    return process.is_wanted and not (process.state == "failed" and process.breaker.is_open)
