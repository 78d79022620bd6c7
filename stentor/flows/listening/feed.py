"""Sound on its way to an engine, and what it tells on its way back: both bounded, neither waits for the other."""

import asyncio
from collections import deque

from stentor.core.errors import Refused
from stentor.flows.listening.wire import BYTES_PER_S, Event, Partial

UNSENT_MAX_BYTES = 60 * BYTES_PER_S
_KEPT_MAX_BYTES = 60 * BYTES_PER_S
_UNTOLD_MAX = 1024


class Feed:
    """Sound and orders, in their order. What was taken is kept for another try, up to a minute of it, if ``keep``."""

    def __init__(self, *, keep: bool) -> None:
        self._waiting: deque[bytes | str] = deque()
        self._taken: list[bytes | str] | None = [] if keep else None
        self._unsent = self._gone = self._kept = 0
        self._changed = asyncio.Event()

    @property
    def has_room(self) -> bool:
        """Whether more sound may lie here."""
        return self._unsent < UNSENT_MAX_BYTES

    def put(self, item: bytes | str) -> None:
        """More sound, or an order."""
        self._waiting.append(item)
        if isinstance(item, bytes):
            self._unsent += len(item)
        self._wake()

    async def wait_for_room(self) -> None:
        """Return when there is room."""
        while not self.has_room:
            await self._wait()

    async def take(self) -> bytes | str:
        """The next of it; waits until there is one."""
        while not self._waiting:
            await self._wait()
        item = self._waiting.popleft()
        if isinstance(item, bytes):
            self._unsent -= len(item)
            self._gone += len(item)
        self._keep(item)
        self._wake()
        return item

    def _keep(self, item: bytes | str) -> None:
        if self._taken is None:
            return
        self._taken.append(item)
        self._kept += len(item)
        if self._kept > _KEPT_MAX_BYTES:
            self._taken = None

    @property
    def is_whole(self) -> bool:
        """Whether another try could begin at the beginning."""
        return self._taken is not None

    def rewind(self) -> int:
        """Begin anew with what is kept; how many samples are gone for ever."""
        if self._taken is None:
            return self._gone // 2
        self._waiting.extendleft(reversed(self._taken))
        self._unsent += self._gone
        self._taken, self._gone, self._kept = [], 0, 0
        return 0

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()


class Told:
    """Events for who asked, and the end: nothing more, or why it ended early."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._refusal: Refused | None = None
        self._opened = False
        self.over = False

    def put(self, event: Event) -> bool:
        """Tell this; False where too much lies here unread. A later hypothesis takes the place of an earlier one."""
        if isinstance(event, Partial) and self._events and isinstance(self._events[-1], Partial):
            self._events[-1] = event
        else:
            self._events.append(event)
        self._changed.set()
        return len(self._events) <= _UNTOLD_MAX

    def open(self) -> None:
        """An engine listens."""
        self._opened = True
        self._changed.set()

    async def wait_until_open(self) -> None:
        """Return once an engine listens, or nothing comes any more. Raises Refused where it ended early."""
        while not self._opened:
            if self._refusal is not None:
                raise self._refusal
            if self.over:
                return
            await self._wait()

    def end(self, refusal: Refused | None = None) -> None:
        """Nothing more comes."""
        if not self.over:
            self.over, self._refusal = True, refusal
            self._changed.set()

    async def take(self) -> Event | None:
        """The next event, None at the end. Raises Refused where it ended early."""
        while not self._events:
            if self._refusal is not None:
                raise self._refusal
            if self.over:
                return None
            await self._wait()
        return self._events.popleft()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()
