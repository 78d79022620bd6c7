"""The last lines of an engine's output, numbered, for those who read along."""

import asyncio
from collections import deque


class LogTail(deque[str]):
    """Keeps the last ``most`` lines; ``total`` is how many there ever were. One event loop's own."""

    def __init__(self, most: int) -> None:
        super().__init__(maxlen=most)
        self.total = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def append(self, line: str) -> None:
        super().append(line)
        self.total += 1
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def since(self, number: int) -> list[str]:
        """The kept lines after the first ``number`` ones."""
        skipped = max(0, number - (self.total - len(self)))
        return list(self)[skipped:]

    async def wait(self, number: int, timeout_s: float) -> None:
        """Until there is a line after the first ``number`` ones, at most ``timeout_s``."""
        if self.total > number:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)
            waiter.cancel()
