"""What waits for the writer: lanes of equal small writes, and single jobs.

Queued from an event loop, taken by the writer's thread, answered in the loop again.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Connection

from stentor.core.errors import StoreUnavailable

A = TypeVar("A")
B = TypeVar("B")

GROUP_MAX = 1024  # settlements in one transaction

Delivered = Callable[[list[A], list[B] | BaseException], None]


class Doorbell(Protocol):
    """What a queue needs of the writer."""

    signalled: bool
    closed: bool

    def signal(self) -> None:
        """Wake the writer."""
        ...

    def refuse_late(self) -> None:
        """Refuse what came after the writer's end."""
        ...


class Lane(Generic[A, B]):
    """A stream of equal small writes that are done together: ``submit`` from one event loop, await the future.

    ``work`` turns a list of items into a list of results inside the writer's transaction. ``delivered``, if given, is
    called in the loop once for each group, before the futures resolve, with the items and either their results or the
    error: bookkeeping that must happen even if nobody waits for the future any more.
    """

    __slots__ = ("_loop", "_pending", "_writer", "delivered", "work")

    def __init__(
        self, writer: Doorbell, work: Callable[[Connection, list[A]], list[B]], delivered: Delivered[A, B] | None
    ) -> None:
        self._writer = writer
        self._pending: deque[tuple[A, asyncio.Future[B]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.work = work
        self.delivered = delivered

    def submit(self, item: A) -> "asyncio.Future[B]":
        """Queue ``item`` for the next group. The future holds its result, or raises StoreUnavailable."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[B] = loop.create_future()
        self._pending.append((item, future))
        writer = self._writer
        if not writer.signalled:
            writer.signal()
        if writer.closed:  # checked after queueing: either the last group takes the item or it is refused here
            writer.refuse_late()
        return future

    def take(self) -> list[tuple[A, "asyncio.Future[B]"]]:
        """For the writer: what waits now, at most one group."""
        pending = self._pending
        if len(pending) <= GROUP_MAX:
            batch = []
            try:
                while True:
                    batch.append(pending.popleft())
            except IndexError:
                return batch
        return [pending.popleft() for _ in range(GROUP_MAX)]

    @property
    def depth(self) -> int:
        """How many items are queued."""
        return len(self._pending)

    def resolve(self, batch: list[tuple[A, "asyncio.Future[B]"]], outcome: list[B] | BaseException) -> None:
        """For the writer: hand a group's outcome to the loop."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._resolve_here, batch, outcome)
        except RuntimeError:
            return  # the loop is closed: nobody is left to be told

    def _resolve_here(self, batch: list[tuple[A, "asyncio.Future[B]"]], outcome: list[B] | BaseException) -> None:
        if self.delivered is not None:
            self.delivered([item for item, _ in batch], outcome)
        if isinstance(outcome, BaseException):
            for _, future in batch:
                if not future.done():
                    future.set_exception(_again(outcome))
                    future.exception()  # seen: a caller that left must not make asyncio complain
        else:
            for (_, future), result in zip(batch, outcome, strict=True):
                if not future.done():
                    future.set_result(result)


class Job:
    """One write of its own: a callable, and who waits for it."""

    __slots__ = ("future", "loop", "work")

    def __init__(self, work: Callable[[Connection], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def resolve(self, result: Any, error: BaseException | None) -> None:
        """For the writer: hand the outcome to the loop."""
        try:
            self.loop.call_soon_threadsafe(self._resolve_here, result, error)
        except RuntimeError:
            return

    def _resolve_here(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)
            self.future.exception()


def _again(error: BaseException) -> BaseException:
    """An error for one of many who wait: each raises its own, so that none collects the others' tracebacks."""
    if not isinstance(error, StoreUnavailable):
        return error
    copy = type(error).__new__(type(error))
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    return copy
