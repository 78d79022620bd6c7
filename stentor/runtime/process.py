"""The life of one engine instance: a state machine that owns its child.

``stopped → starting → ready → draining → stopping → stopped``, and ``failed`` between two tries. Ready means that
the health page said so *and* a one-token canary request was answered. Nobody looks at the state to decide what to do:
callers say what they want (:meth:`EngineProcess.want`, :meth:`~EngineProcess.ensure_ready`,
:meth:`~EngineProcess.stop`) and one task per instance makes it so.
"""

import asyncio
import contextlib
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from stentor.core.clock import Clock
from stentor.core.errors import StentorError
from stentor.core.ids import InstanceId
from stentor.core.scheduler import InstanceState
from stentor.runtime.breaker import Breaker, choose_policy
from stentor.runtime.child import LOG_LINES, describe_exit
from stentor.runtime.downloads import FetchCancelled
from stentor.runtime.failure import NoRoom, StartFailed, is_out_of_memory
from stentor.runtime.host import EngineChild, Host
from stentor.runtime.launchers.base import LOOPBACK, Launch, LaunchRefused
from stentor.runtime.log_tail import LogTail
from stentor.runtime.memory import ContextPlan
from stentor.runtime.probe import EngineAddress, Props
from stentor.runtime.room import Berth, Room
from stentor.runtime.roster import TAG_VARIABLE, Roster
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.spec import ModelSpec
from stentor.runtime.startup import HealthPage, StartLimit, await_health, finish

# Exit statuses of the embedded engine that trying again can't change: usage, bad model, no program.
_EXIT_BAD_MODEL = 65
# Whoever makes it fail over and over (an odd request is enough for some) can't keep it from the others by that.
_TRUSTED_S = 5.0
_PERMANENT_EXITS = frozenset({64, _EXIT_BAD_MODEL, 127})


class ProcessParts(msgspec.Struct, frozen=True):
    """What all instances of one server share."""

    settings: RuntimeSettings
    host: Host
    room: Room
    roster: Roster
    clock: Clock


TakeRoom = Callable[[Sequence[ContextPlan], str], Awaitable[Berth]]


class EngineProcess:
    """One instance. Attributes are for reading: ``generation`` counts children, ``restarts`` those after a failure."""

    def __init__(
        self,
        instance: InstanceId,
        spec: ModelSpec,
        parts: ProcessParts,
        prepare: Callable[[TakeRoom], Awaitable[Launch]],
        on_change: Callable[["EngineProcess"], None],
    ) -> None:
        self.instance = instance
        self.spec = spec
        self.state: InstanceState = "stopped"
        self.generation = 0
        self.restarts = 0
        self.checking = False
        self.address = EngineAddress("", "")
        self.places = spec.parallel
        self.context_size: int | None = None
        self.port = 0
        self.pid: int | None = None
        self.started_us: int | None = None
        self.failure: StartFailed | None = None
        self.failed_starting = False
        self.pause_s = self.retry_at_s = self.load_s = self.trusted_until_s = 0.0
        self.log_tail = LogTail(LOG_LINES)
        self.breaker = Breaker(choose_policy(parts.settings), random.random)
        self.has_room = False
        self.reported_bytes = 0
        self.props: Props | None = None
        self.doubt = ""  # what its engine says otherwise than its files
        self.planned = asyncio.Event()
        self._found = spec
        self._parts = parts
        self._now = parts.clock.monotonic_s
        self._host = parts.host
        self._prepare = prepare
        self._on_change = on_change
        self._wanted = asyncio.Event()
        self._stopping = asyncio.Event()
        self._nudged = asyncio.Event()
        self._suspected = asyncio.Event()
        self._over = asyncio.Event()
        self._over.set()
        self._outcome: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether the instance shall live; it is restarted while it shall."""
        return self._wanted.is_set()

    @property
    def is_ending(self) -> bool:
        """Whether its end was asked for, and no new start has begun."""
        return self._stopping.is_set()

    def want(self) -> None:
        """Ask for the instance to live from now on; does nothing where that is already so."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._supervise(), name=f"engine {self.instance}")
            self._task.add_done_callback(self._note_end)
        self._wanted.set()

    async def ensure_ready(self, deadline_s: float | None = None) -> None:
        """Have the instance up and answering; returns when it is, at most ``deadline_s`` seconds from now.

        An open breaker is closed for one more try. Raises StartFailed, or TimeoutError at the deadline (the start
        goes on).
        """
        if self.state == "failed":
            self.breaker.reset()
            self._nudged.set()
        self.want()
        if self.state != "ready":
            async with asyncio.timeout(deadline_s):
                await asyncio.shield(self._find_outcome())

    async def await_outcome(self, deadline_s: float | None = None) -> None:
        """As :meth:`ensure_ready` without asking for anything: how the start that was asked for before went."""
        if self.state in ("failed", "stopped") and self.failure is not None:
            raise self.failure
        if self.state != "ready":
            async with asyncio.timeout(deadline_s):
                await asyncio.shield(self._find_outcome())

    def drain(self) -> None:
        """Take no new work from now on and don't restart; running work goes on. Followed by :meth:`stop`."""
        self._wanted.clear()
        if self.state == "ready":
            self._enter("draining")

    def keep(self) -> None:
        """Take back :meth:`drain`, unless the end has begun."""
        if self.state == "draining" and not self._stopping.is_set():
            self._wanted.set()
            self._enter("ready")

    def begin_stop(self) -> None:
        """End the child and stay stopped, unless somebody wants it again meanwhile; returns at once."""
        self._wanted.clear()
        self._stopping.set()
        self._nudged.set()

    async def stop(self) -> None:
        """As :meth:`begin_stop`; returns when the child is gone."""
        self.begin_stop()
        await self._over.wait()

    async def close(self) -> None:
        """Stop for good."""
        await self.stop()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._enter("stopped")

    def suspect(self) -> None:
        """Doubt a ready instance: no new work until it answers a canary again, else it is replaced."""
        if self.state in ("ready", "draining") and not self.checking and self._now() >= self.trusted_until_s:
            self.checking = True
            self._suspected.set()
            self._on_change(self)

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            return
        # Only a fault of ours gets here. Whoever waits is told, and the next wish starts afresh.
        self._task = None
        self.failure = StartFailed("of a fault in the server", repr(task.exception()))
        self._enter("failed")
        self._tell(self.failure)

    # -- the owner of the state ------------------------------------------------------------------------------------

    def _enter(self, state: InstanceState) -> None:
        self.state = state
        if state in ("failed", "stopped"):
            self.planned.set()
        if state != "ready":
            self.checking = False if state != "draining" else self.checking
        self._on_change(self)

    def _find_outcome(self) -> asyncio.Future[None]:
        if self._outcome is None or self._outcome.done():
            self._outcome = asyncio.get_running_loop().create_future()
            # Nobody may be waiting; a failure is kept in ``failure`` in any case.
            self._outcome.add_done_callback(lambda future: future.cancelled() or future.exception())
        return self._outcome

    def _tell(self, failure: StartFailed | None) -> None:
        outcome = self._find_outcome()
        if failure is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(failure)

    async def _supervise(self) -> None:
        while True:
            await self._wanted.wait()
            if not self._wanted.is_set():
                continue
            failure = await self._live()
            if isinstance(failure, NoRoom):
                self._wanted.clear()
                self.failure = failure
            if not self._wanted.is_set():
                self._enter("stopped")
                self._tell(failure or StartFailed("it was stopped"))
                continue
            if failure is None:
                continue
            pause_s = self.breaker.note_failure(self._now(), failure.permanent)
            self.failure, self.pause_s = failure, pause_s
            self.retry_at_s = self._now() + pause_s
            self._nudged.clear()
            self._enter("failed")
            self._tell(failure)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._nudged.wait()
            if self._wanted.is_set():
                self.restarts += 1
            else:
                self._enter("stopped")

    async def _live(self) -> StartFailed | None:
        """One child from spawn to end; None if it was asked to stop, else why it ended."""
        self.generation += 1
        self._stopping.clear()
        self._suspected.clear()
        self._over.clear()
        self.planned.clear()
        self.failed_starting = True
        self._enter("starting")
        try:
            return await self._unless_stopped(self._run())
        except StartFailed as failure:
            return failure
        finally:
            self.pid = None
            self.started_us = None
            self._over.set()

    async def _unless_stopped(self, work: Awaitable[None]) -> StartFailed | None:
        """Run ``work`` until it raises or a stop is asked for; its cleanup is awaited in both cases."""
        running = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() or self._stopping.is_set():
                self._enter("stopping")
                return None
            await running
            return None
        finally:
            await finish(running)
            await finish(stopping)

    async def _run(self) -> None:
        tag = secrets.token_hex(16)
        try:
            launch = await self._prepare(self._take_room)
            self._found = launch.spec or self.spec
            began_s = self._now()
            self.log_tail.append(self._mark())
            child = await self._host.spawn(launch, {TAG_VARIABLE: tag}, self.log_tail)
            try:
                self._parts.roster.add(self.instance, child.pid, tag, self.port)
                self.pid = child.pid
                self.started_us = self._parts.clock.now_us()
                await self._watch(child, launch, began_s)
            finally:
                grace_s = self._parts.settings.stop_grace_s if self._stopping.is_set() else 0.0
                if await child.end(grace_s):
                    self._parts.roster.remove(child.pid)
        except StartFailed:
            raise
        except LaunchRefused as problem:
            raise StartFailed(problem.public, str(problem), permanent=True) from problem
        except FetchCancelled as problem:
            raise StartFailed("the download of its file was cancelled", str(problem), permanent=True) from problem
        except StentorError as problem:
            raise StartFailed("its model file could not be fetched", str(problem)) from problem
        except OSError as problem:
            raise StartFailed("its engine could not be started", str(problem)) from problem
        finally:
            self.has_room = False
            self._parts.room.release(self.instance)

    async def _take_room(self, plans: Sequence[ContextPlan], way: str) -> Berth:
        berth = await self._parts.room.claim(self.instance, plans, way)
        self.port, self.has_room = berth.port, True
        self.planned.set()
        return berth

    async def _watch(self, child: EngineChild, launch: Launch, began_s: float) -> None:
        """Serve until the child dies or stops answering. Raises StartFailed."""
        death = asyncio.ensure_future(child.wait())
        serving = asyncio.ensure_future(self._serve(child, launch, began_s))
        try:
            await asyncio.wait({death, serving}, return_when=asyncio.FIRST_COMPLETED)
            if child.returncode is not None:
                # The end of the child explains whatever the questions to it met.
                raise await self._explain_death(child, await death)
            await serving
        finally:
            await finish(serving)
            await finish(death)

    async def _serve(self, child: EngineChild, launch: Launch, began_s: float) -> None:
        address = EngineAddress(f"http://{LOOPBACK}:{self.port}", launch.token)
        settings = self._parts.settings
        async with StartLimit(settings.start_max_s):
            stalled = await await_health(self._host, child, HealthPage(address, self.spec.health_path), settings)
            if stalled is not None:
                raise StartFailed(stalled.public, f"{stalled}{self._last_words()}")
        # The first answer of a large model may have to read all of it from disk.
        await self._await_canary(address, max(settings.canary_timeout_s, settings.start_stall_s))
        await self._learn(address, launch)
        self.address = address
        self.load_s, self.reported_bytes = self._now() - began_s, child.reported_bytes
        self.breaker.note_ready()
        self.failure = None
        self.failed_starting = False
        self._enter("ready" if self.is_wanted else "draining")
        self._tell(None)
        while True:
            await self._suspected.wait()
            self._suspected.clear()
            await self._await_canary(address, settings.canary_timeout_s)
            self.checking, self.trusted_until_s = False, self._now() + _TRUSTED_S
            self._on_change(self)

    async def _learn(self, address: EngineAddress, launch: Launch) -> None:
        self.places, self.context_size = launch.places, launch.context_size
        # Of an operator's own program nothing is known but what they say of it, unless they leave it open.
        asks = self.spec.engine != "command" or self.spec.type is None
        self.props = props = await self._host.probe.find_props(address) if asks else None
        if props is not None and self.spec.engine != "command":
            self.places = max(1, min(self.places, props.places))
            self.context_size = props.context_size

    async def _await_canary(self, address: EngineAddress, timeout_s: float) -> None:
        if not self.spec.canary:
            return
        problem = await self._host.probe.ask_canary(address, self._found, timeout_s)
        if problem is not None:
            public = "its engine is up but does not answer a one-token request"
            raise StartFailed(public, f"{public}: {problem}{self._last_words()}")

    async def _explain_death(self, child: EngineChild, status: int) -> StartFailed:
        starting = self.failed_starting
        # From here on nobody is sent to it; its last lines may take a moment.
        self._enter("stopping")
        await child.finish_log()
        public = f"its engine ended while {'starting' if starting else 'running'} ({describe_exit(status)})"
        if starting and status == _EXIT_BAD_MODEL:
            public = f"its engine can't load the model file ({describe_exit(status)})"
        memory = starting and is_out_of_memory(self._list_words())
        permanent = starting and status in _PERMANENT_EXITS and not memory
        public = f"{public}: memory did not suffice" if memory else public
        return StartFailed(public, f"{public}{self._last_words()}", permanent=permanent, out_of_memory=memory)

    def _mark(self) -> str:
        return f"--- start {self.generation} ---"

    def _list_words(self) -> list[str]:
        """What this child wrote, the latest first."""
        lines: list[str] = []
        for line in reversed(self.log_tail):
            if line == self._mark():
                break
            lines.append(line)
        return lines

    def _last_words(self) -> str:
        """The line of this child that says most: its last ``error:``, else its last."""
        lines = self._list_words()
        last = next((line for line in lines if line.startswith("error:")), lines[0] if lines else None)
        return ". It wrote nothing." if last is None else f". Its last line: {last}"
