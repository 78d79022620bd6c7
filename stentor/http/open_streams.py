"""Answers that may go on for ever: each ends when its client leaves or stops reading, and all when the server ends."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from stentor.http.connection import Connection


class OpenStreams:
    """The endless answers of this process."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def run(self, connection: Connection, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` until it is done, the client is gone, or :meth:`close`."""
        if self._closed:
            work.close()
            return
        working = asyncio.create_task(work)
        leaving = asyncio.create_task(connection.wait_left())
        self._tasks.add(working)
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._tasks.discard(working)
            leaving.cancel()
            done = working.done()
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(working, leaving, return_exceptions=True)
        if done and not working.cancelled():
            working.result()

    def close(self) -> None:
        """End them all, now and from now on."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
