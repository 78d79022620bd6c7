"""What the authority's side of the line needs of the books beyond ``Books``: owners, and steps that need no task."""

import asyncio
from typing import NamedTuple, Protocol

from stentor.core.books import Books, Close, Grant, Open, Settled


class Closing(NamedTuple):
    """A settlement on its way to the store: it holds if ``written`` says True (it is durable, and it was new)."""

    settled: Settled
    written: "asyncio.Future[bool]"


class OwnedBooks(Books, Protocol):
    """Books that know which worker opened a request."""

    async def open(self, ask: Open, owner: str = "") -> Grant:
        """See ``Books.open``."""
        ...

    def try_open(self, ask: Open, owner: str = "") -> Grant | None:
        """As ``open`` where nothing has to be waited for; None, and nothing is taken, where something has."""
        ...

    def begin_close(self, end: Close) -> Closing | None:
        """Start what ``close`` does where nothing has to be counted or looked up first; None where something has."""
        ...

    def abandon(self, owner: str) -> None:
        """Close every open request of a lost worker: failed, ``worker_lost``, cost 0."""
        ...
