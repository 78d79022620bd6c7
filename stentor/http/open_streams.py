"""Answers that may go on for ever: each ends when its client leaves or stops reading, and all when the server ends.

They also end with what their caller was let in by: with a key at once, with a session within half a minute.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any

from stentor.core.ids import KeyId
from stentor.core.principal import Principal
from stentor.http.connection import Connection

SESSION_LONGEST_S = 30.0  # a page begins its stream again by itself, and then the session is looked at once more


class OpenStream:
    """One endless answer. Made by :meth:`OpenStreams.begin`."""

    def __init__(self, principal: Principal, *, over: bool) -> None:
        self.key_id = principal.key_id
        self._longest_s = SESSION_LONGEST_S if principal.session_id else None
        self._over = over
        self._working: asyncio.Task[None] | None = None

    async def run(self, connection: Connection, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` until it is done, the client is gone, or :meth:`end`."""
        if self._over:
            work.close()
            return
        self._working = working = asyncio.create_task(work)
        leaving = asyncio.create_task(connection.wait_left())
        try:
            await asyncio.wait({working, leaving}, timeout=self._longest_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            done = working.done()
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(working, leaving, return_exceptions=True)
        if done and not working.cancelled():
            working.result()

    def end(self) -> None:
        """End it, now or before it has begun."""
        self._over = True
        if self._working is not None:
            self._working.cancel()


class OpenStreams:
    """The endless answers of this process."""

    def __init__(self) -> None:
        self._open: set[OpenStream] = set()
        self._closed = False

    @contextlib.contextmanager
    def begin(self, principal: Principal) -> Iterator[OpenStream]:
        """An answer that is about to be given, or was: in between it ends with its caller's key."""
        stream = OpenStream(principal, over=self._closed)
        self._open.add(stream)
        try:
            yield stream
        finally:
            self._open.discard(stream)

    def end_of(self, key_id: KeyId) -> None:
        """End those of a key."""
        for stream in [stream for stream in self._open if stream.key_id == key_id]:
            stream.end()

    def close(self) -> None:
        """End them all, now and from now on."""
        self._closed = True
        for stream in list(self._open):
            stream.end()
