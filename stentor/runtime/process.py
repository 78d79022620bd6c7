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
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from stentor.core.errors import StentorError
from stentor.core.ids import InstanceId
from stentor.core.scheduler import InstanceState
from stentor.runtime import procfs
from stentor.runtime.breaker import Breaker, BreakerPolicy
from stentor.runtime.child import LOG_LINES, Child, describe_exit
from stentor.runtime.failure import StartFailed
from stentor.runtime.launchers.base import LOOPBACK, Launch, LaunchRefused
from stentor.runtime.log_tail import LogTail
from stentor.runtime.probe import EngineAddress, Probe
from stentor.runtime.roster import TAG_VARIABLE, Roster
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.slots import NoSlot, Slots
from stentor.runtime.spec import ModelSpec

_POLL_FIRST_S = 0.02
_POLL_MAX_S = 0.25
_RESIDENT_STEP_BYTES = 1 << 20
# Exit statuses of the embedded engine that trying again can't change: usage, bad model, no program.
_EXIT_BAD_MODEL = 65
_PERMANENT_EXITS = frozenset({64, _EXIT_BAD_MODEL, 127})
T = TypeVar("T")


class ProcessParts(msgspec.Struct, frozen=True):
    """What all instances of one server share."""

    settings: RuntimeSettings
    probe: Probe
    slots: Slots
    roster: Roster


class EngineProcess:
    """One instance. Attributes are for reading: ``generation`` counts children, ``restarts`` those after a failure."""

    def __init__(
        self,
        instance: InstanceId,
        spec: ModelSpec,
        parts: ProcessParts,
        prepare: Callable[[Callable[[int], int]], Awaitable[Launch]],
        on_change: Callable[["EngineProcess"], None],
    ) -> None:
        settings = parts.settings
        policy = BreakerPolicy(
            first_s=settings.backoff_first_s,
            max_s=settings.backoff_max_s,
            failures=settings.breaker_failures,
            window_s=settings.breaker_window_s,
            open_s=settings.breaker_open_s,
        )
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
        self.pause_s = 0.0
        self.retry_at_s = 0.0
        self.log_tail = LogTail(LOG_LINES)
        self.breaker = Breaker(policy, random.random)
        self._parts = parts
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

    def drain(self) -> None:
        """Take no new work from now on and don't restart; running work goes on. Followed by :meth:`stop`."""
        self._wanted.clear()
        if self.state == "ready":
            self._enter("draining")

    async def stop(self) -> None:
        """End the child and stay stopped, unless somebody wants it again meanwhile; returns when the child is gone."""
        self._wanted.clear()
        self._stopping.set()
        self._nudged.set()
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
        if self.state in ("ready", "draining") and not self.checking:
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
            if not self._wanted.is_set():
                self._enter("stopped")
                self._tell(failure or StartFailed("it was stopped"))
                continue
            if failure is None:
                continue
            pause_s = self.breaker.note_failure(time.monotonic(), failure.permanent)
            self.failure, self.pause_s = failure, pause_s
            self.retry_at_s = time.monotonic() + pause_s
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
            await _cancel(running)
            await _cancel(stopping)

    async def _run(self) -> None:
        tag = secrets.token_hex(16)
        try:
            launch = await self._prepare(self._take_port)
            self.log_tail.append(self._mark())
            child = await Child.spawn(launch, {TAG_VARIABLE: tag}, self.log_tail)
            try:
                self._parts.roster.add(self.instance, child.pid, tag, self.port)
                self.pid = child.pid
                self.started_us = time.time_ns() // 1000
                await self._watch(child, launch)
            finally:
                grace_s = self._parts.settings.stop_grace_s if self._stopping.is_set() else 0.0
                if await child.end(grace_s):
                    self._parts.roster.remove(child.pid)
        except StartFailed:
            raise
        except LaunchRefused as problem:
            raise StartFailed(problem.public, str(problem), permanent=True) from problem
        except NoSlot as problem:
            raise StartFailed("every engine slot is in use", str(problem)) from problem
        except StentorError as problem:
            raise StartFailed("its model file could not be fetched", str(problem)) from problem
        except OSError as problem:
            raise StartFailed("its engine could not be started", str(problem)) from problem
        finally:
            self._parts.slots.free(self.instance)

    def _take_port(self, planned_bytes: int) -> int:
        self.port = self._parts.slots.take(self.instance, planned_bytes)
        return self.port

    async def _watch(self, child: Child, launch: Launch) -> None:
        """Serve until the child dies or stops answering. Raises StartFailed."""
        death = asyncio.ensure_future(child.wait())
        serving = asyncio.ensure_future(self._serve(child, launch))
        try:
            await asyncio.wait({death, serving}, return_when=asyncio.FIRST_COMPLETED)
            if child.returncode is not None:
                # The end of the child explains whatever the questions to it met.
                raise await self._explain_death(child, await death)
            await serving
        finally:
            await _cancel(serving)
            await _cancel(death)

    async def _serve(self, child: Child, launch: Launch) -> None:
        address = EngineAddress(f"http://{LOOPBACK}:{self.port}", launch.token)
        settings = self._parts.settings
        async with _Limit(settings.start_max_s):
            await self._await_health(child, address)
        # The first answer of a large model may have to read all of it from disk.
        await self._await_canary(address, max(settings.canary_timeout_s, settings.start_stall_s))
        await self._learn(address, launch)
        self.address = address
        self.breaker.note_ready()
        self.failure = None
        self.failed_starting = False
        self._enter("ready" if self.is_wanted else "draining")
        self._tell(None)
        while True:
            await self._suspected.wait()
            self._suspected.clear()
            await self._await_canary(address, settings.canary_timeout_s)
            self.checking = False
            self._on_change(self)

    async def _learn(self, address: EngineAddress, launch: Launch) -> None:
        self.places, self.context_size = launch.places, launch.context_size
        if self.spec.engine == "command":
            return
        props = await self._parts.probe.find_props(address)
        if props is not None:
            self.places = max(1, min(self.places, props.places))
            self.context_size = props.context_size

    async def _await_health(self, child: Child, address: EngineAddress) -> None:
        """Poll until healthy; gives up when for the stall time no line, no growth and no new answer was seen."""
        stall_s = self._parts.settings.start_stall_s
        pause_s, moved_at_s = _POLL_FIRST_S, time.monotonic()
        seen: tuple[Any, ...] = ()
        while True:
            health = await self._parts.probe.ask_health(address, self.spec.health_path)
            if health == "ok":
                return
            resident = procfs.find_resident_bytes(child.pid) or 0
            now = (child.log.lines_seen, resident // _RESIDENT_STEP_BYTES, health)
            if now != seen:
                seen, moved_at_s = now, time.monotonic()
            elif time.monotonic() - moved_at_s > stall_s:
                public = f"its engine stalled while starting: no sign of progress for {stall_s:g} s"
                raise StartFailed(public, f"{public}; {self.spec.health_path}: {health}{self._last_words()}")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _POLL_MAX_S)

    async def _await_canary(self, address: EngineAddress, timeout_s: float) -> None:
        if not self.spec.canary:
            return
        problem = await self._parts.probe.ask_canary(address, self.spec, timeout_s)
        if problem is not None:
            public = "its engine is up but does not answer a one-token request"
            raise StartFailed(public, f"{public}: {problem}{self._last_words()}")

    async def _explain_death(self, child: Child, status: int) -> StartFailed:
        starting = self.failed_starting
        # From here on nobody is sent to it; its last lines may take a moment.
        self._enter("stopping")
        await child.finish_log()
        public = f"its engine ended while {'starting' if starting else 'running'} ({describe_exit(status)})"
        if starting and status == _EXIT_BAD_MODEL:
            public = f"its engine can't load the model file ({describe_exit(status)})"
        permanent = starting and status in _PERMANENT_EXITS
        return StartFailed(public, f"{public}{self._last_words()}", permanent=permanent)

    def _mark(self) -> str:
        return f"--- start {self.generation} ---"

    def _last_words(self) -> str:
        """The line of this child that says most: its last ``error:``, else its last."""
        lines: list[str] = []
        for line in reversed(self.log_tail):
            if line == self._mark():
                break
            lines.append(line)
        last = next((line for line in lines if line.startswith("error:")), lines[0] if lines else None)
        return ". It wrote nothing." if last is None else f". Its last line: {last}"


class _Limit:
    """A deadline that turns into StartFailed."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timeout = asyncio.timeout(limit_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *details: Any) -> None:
        try:
            await self._timeout.__aexit__(*details)
        except TimeoutError as late:
            raise StartFailed(f"its engine was not ready within {self._limit_s:g} s") from late


async def _cancel(task: "asyncio.Future[T]") -> None:
    """Cancel and wait until it is over; what it raised was either seen by the caller or doesn't matter any more."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
