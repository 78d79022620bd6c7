"""One engine process as its pool and the room see it: what it runs, since when it is idle, and whether it must go."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Literal, Protocol

from stentor.core.ids import ModelId
from stentor.runtime.eviction import Resident
from stentor.runtime.keeping import FOR_EVER, Keeping, KeepWish
from stentor.runtime.place import Place
from stentor.runtime.process import EngineProcess
from stentor.runtime.queue import WaitQueue
from stentor.runtime.room import Demand, Room
from stentor.runtime.spec import ModelSpec

Leaving = Literal["", "room", "stop", "drain"]


class Owner(Protocol):
    """What an instance needs of its pool."""

    spec: ModelSpec
    model: ModelId
    queue: WaitQueue
    room: Room
    note: str
    now: Callable[[], float]

    def explain_fetch(self) -> str:
        """How far the download of its file is."""
        ...

    def find_demand(self, instance: "Instance", now_s: float) -> Demand:
        """How much room for ``instance`` is wanted."""
        ...

    def give_back(self, instance: "Instance", suspect: bool) -> None:
        """A request is over."""
        ...

    async def stop_one(self, instance: "Instance", drain_s: float) -> None:
        """Drain and stop one instance."""
        ...


class Instance:
    """An engine process and what it runs. ``generation`` is -1 while nothing given out can be valid.

    ``leaving`` says why it takes no new work: the ``room`` sent it away, or an operator wants it to ``stop`` or to
    ``drain``. ``reason`` is the latest decision about it.
    """

    __slots__ = (
        "generation", "id", "idle", "idle_since_s", "keeping", "leaving", "model", "place", "places", "pool",
        "process", "ready_at_s", "reason", "running",
    )  # fmt: skip

    def __init__(self, pool: Owner, process: EngineProcess, keeping: Keeping) -> None:
        self.id = process.instance
        self.model = pool.model
        self.pool = pool
        self.process = process
        self.keeping = keeping
        self.generation = -1
        self.running = 0
        self.places = process.places
        self.place = Place(process.instance, -1, "", "", 0)
        self.idle = asyncio.Event()
        self.idle.set()
        self.idle_since_s = self.ready_at_s = pool.now()
        self.leaving: Leaving = ""
        self.reason = ""
        pool.room.admit(self)

    # -- for the pool ----------------------------------------------------------------------------------------------

    @property
    def is_claiming(self) -> bool:
        """Whether it is to start and has no room yet."""
        return self.process.state == "starting" and not self.process.has_room

    def note_state(self) -> None:
        """Follow the process into its new state."""
        process = self.process
        if process.state == "ready":
            if self.generation != process.generation:
                self._adopt()
            return
        if process.state == "draining":
            return
        if self.generation >= 0:
            self._forget()
        if process.state in ("stopped", "failed"):
            self.leaving = ""

    def _adopt(self) -> None:
        """Take over what a process that just became ready says of itself."""
        process = self.process
        self.generation = process.generation
        self.keeping.forget()
        self.running = 0
        self.idle.set()
        self.places = process.places
        self.place = Place(self.id, self.generation, process.address.url, process.address.token, 0)
        self.idle_since_s = self.ready_at_s = self.pool.now()
        self.say(process.doubt)

    def _forget(self) -> None:
        """Nothing runs here any more."""
        self.generation = -1
        self.running = 0
        self.idle.set()

    def note_wish(self, wish: KeepWish) -> None:
        """A request that runs here asks how long the model shall be kept afterwards."""
        self.keeping.note(wish)
        self.pool.room.look()

    def drain(self, leaving: Leaving) -> None:
        """Take no new work from now on, as an operator asks."""
        self.leaving = leaving if self.process.state in ("ready", "draining") else ""
        self.process.drain()

    def come_back(self) -> None:
        """Take work again, unless the end has begun."""
        self.leaving = ""
        self.process.keep()

    async def drained(self, drain_s: float) -> None:
        """Wait until nothing runs, at most ``drain_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while self.running > 0:
                    self.idle.clear()
                    await self.idle.wait()

    # -- for the room ----------------------------------------------------------------------------------------------

    @property
    def reported_bytes(self) -> int:
        """Memory that the engine said it took."""
        return self.process.reported_bytes

    def find_left_s(self) -> float | None:
        """For how long it is kept yet if nobody asks it again; None: for ever, or it isn't up."""
        seen = self.describe(self.pool.now(), 0)
        if seen.pinned or seen.leaving or self.process.state != "ready" or seen.keep_s == FOR_EVER:
            return None
        return max(0.0, seen.keep_s - seen.idle_s)

    def find_pid(self) -> int | None:
        """The process's id while it lives."""
        return self.process.pid

    def is_leaving(self) -> bool:
        """Whether the room sent it away."""
        return self.leaving == "room"

    def find_demand(self, now_s: float) -> Demand:
        """See :class:`stentor.runtime.room.Tenant`."""
        return self.pool.find_demand(self, now_s)

    def describe(self, now_s: float, size_bytes: int) -> Resident:
        """What the room needs to know to decide."""
        process = self.process
        waiting = self.pool.queue.length
        return Resident(
            instance=self.id,
            model=self.model,
            size_bytes=size_bytes,
            pinned=self.pool.spec.pinned,
            settled=process.state == "ready" and not process.checking,
            leaving=bool(self.leaving) or process.state in ("draining", "stopping"),
            running=self.running,
            waiting=waiting,
            idle_s=0.0 if self.running or waiting else max(0.0, now_s - self.idle_since_s),
            resident_s=max(0.0, now_s - self.ready_at_s),
            load_s=process.load_s,
            keep_s=self.keeping.keep.keep_s,
        )

    def leave(self, reason: str) -> None:
        """Take no new work; running work goes on."""
        self.leaving = "room"
        self.say(reason)
        self.process.drain()

    def stay(self) -> None:
        """Go on working, unless the end has begun."""
        if self.leaving == "room" and not self.process.is_ending:
            self.leaving = ""
            self.say(self.process.doubt)
            self.process.keep()

    def end(self) -> None:
        """Stop now; nothing runs."""
        self.process.begin_stop()

    def say(self, reason: str) -> None:
        """Show why it is as it is."""
        self.reason = self.pool.note = reason
