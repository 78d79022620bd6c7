"""The requests under way in this worker, and the one way to cut them short."""

import asyncio
import math
import time
from typing import Literal

from stentor.core.ids import KeyId

LOOK_S = 1.0  # how late a call may learn that its time is over

Interruption = Literal["client_left", "client_stalled", "key_revoked", "server_shutdown", "server_restarting"]


class Call:
    """One request under way. Its own task runs it; anyone may interrupt it, once, and only until it closes."""

    __slots__ = ("_calls", "_expired", "_missed", "_task", "closing", "expires_s", "interrupted", "key_id")

    def __init__(self, key_id: KeyId, task: asyncio.Task[object], calls: "Calls") -> None:
        self.key_id = key_id
        self.interrupted: Interruption | None = None
        self.expires_s = math.inf
        self._calls = calls
        self._expired = False
        self._missed: Interruption | None = None
        # Set when the answer is being settled: from then on it goes out whole.
        self.closing = False
        self._task = task

    def interrupt(self, reason: Interruption) -> None:
        """Cancel the request's task with a reason; too late and a second time it does nothing."""
        if self.interrupted is not None:
            return
        if self.closing:
            self._missed = self._missed or reason
            return
        self.interrupted = reason
        self._task.cancel()

    def reopen(self) -> Interruption | None:
        """What was settled was not the end: another attempt may be interrupted again.

        Returns the reason if somebody tried to meanwhile; then there must be no other attempt.
        """
        self.interrupted = self._missed
        self.closing = self._missed is not None
        return self._missed

    def expire_in(self, timeout_s: float) -> None:
        """Cancel the task after ``timeout_s`` or up to a second later, unless :meth:`stay` is called in time.

        All calls share one timer: one of its own for each cost more than the whole settlement's bookkeeping.
        """
        self.expires_s = time.monotonic() + timeout_s
        self._calls.look_in(timeout_s)

    def stay(self) -> None:
        """What was to happen in time has happened."""
        self.expires_s = math.inf

    def expire(self) -> None:
        """Its time is over."""
        self.expires_s = math.inf
        self._expired = True
        self._task.cancel()

    def take_expiry(self) -> bool:
        """Called where CancelledError was caught: whether it was for :meth:`expire_in`, now dealt with."""
        expired, self._expired = self._expired, False
        if expired:
            self._task.uncancel()
        return expired

    def take_interruption(self) -> Interruption:
        """Called where CancelledError was caught: the reason, the cancellation now being dealt with.

        Raises CancelledError again if the task was cancelled by someone else.
        """
        if self.interrupted is None:
            raise asyncio.CancelledError
        self.closing = True
        self._task.uncancel()
        return self.interrupted


class Calls:
    """All calls of a worker by key. Make it inside the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._by_key: dict[KeyId, set[Call]] = {}
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._count

    def enter(self, key_id: KeyId) -> Call:
        """Register the running task's request."""
        task = asyncio.current_task(self._loop)
        assert task is not None
        call = Call(key_id, task, self)
        calls = self._by_key.get(key_id)
        if calls is None:
            calls = self._by_key[key_id] = set()
        calls.add(call)
        self._count += 1
        self._idle.clear()
        return call

    def leave(self, call: Call) -> None:
        """The request is over."""
        calls = self._by_key[call.key_id]
        calls.discard(call)
        if not calls:
            del self._by_key[call.key_id]
        self._count -= 1
        if not self._count:
            self._idle.set()

    def look_in(self, timeout_s: float) -> None:
        """Some call's time will be over then."""
        if self._timer is None:
            self._timer = self._loop.call_later(min(timeout_s, LOOK_S), self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        timed = [call for calls in self._by_key.values() for call in calls if call.expires_s < math.inf]
        for call in timed:
            if call.expires_s <= now_s:
                call.expire()
            else:
                self.look_in(call.expires_s - now_s)

    def interrupt_key(self, key_id: KeyId) -> None:
        """A key was revoked: its running requests end now."""
        for call in list(self._by_key.get(key_id, ())):
            call.interrupt("key_revoked")

    def interrupt_all(self, reason: Interruption) -> None:
        """Every running request ends now."""
        for calls in list(self._by_key.values()):
            for call in list(calls):
                call.interrupt(reason)

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no request runs; False when ``timeout_s`` passed first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
