"""An engine's answer: worked out piece by piece in its threads, as it is read."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple


class Answer(NamedTuple):
    """What a handler answers: a media type, and the pieces of the body, each worked out when it is asked for."""

    media_type: str
    pieces: Iterator[bytes]


Handler = Callable[[bytes, threading.Event], Answer]
"""Serves one request with this body. Called in a worker thread, as each step of ``pieces`` is; the event says that
nobody waits any more, for work that can look between two pieces. Raises Problem, from ``pieces``, too: before the
first of them it becomes an error answer, after it the connection breaks off (or the handler says it in its own words).
"""


class Pieces:
    """The pieces of one answer, each made in a worker thread."""

    def __init__(self, handler: Handler, body: bytes, left: threading.Event, threads: ThreadPoolExecutor) -> None:
        self.media_type = ""
        self.begun = False
        self._handler = handler
        self._body = body
        self._left = left
        self._threads = threads
        self._iterator: Iterator[bytes] | None = None

    async def next(self) -> bytes | None:
        """The next piece, None at the end. Raises Problem."""
        piece = await asyncio.get_running_loop().run_in_executor(self._threads, self._make)
        self.begun = True
        return piece

    def _make(self) -> bytes | None:
        if self._left.is_set():
            return None
        if self._iterator is None:
            answer = self._handler(self._body, self._left)
            self.media_type, self._iterator = answer
        return next(self._iterator, None)
