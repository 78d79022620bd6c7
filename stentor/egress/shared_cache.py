"""A Valkey or Redis that several servers use as a cache: never waited for longer than a moment, never missed.

Whatever goes wrong with it (it is slow, away, full, or something else listens there) reads as "not in the cache". After
that it is left alone for a while, so that a request pays for an outage once and not again and again.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from stentor.core.errors import StentorError
from stentor.core.lazy import load
from stentor.telemetry.logs import Log

T = TypeVar("T")
WAIT_S = 0.1
REST_S = 5.0
CLOSE_S = 1.0


class CachedValue(NamedTuple):
    """What was found, and for how many seconds it will still be there."""

    body: bytes
    left_s: float


class SharedCache:
    """Make it where the event loop runs that uses it. ``lookups`` counts by outcome: hit, miss, failed, skipped."""

    def __init__(self, url: str, log: Log, wait_s: float = WAIT_S) -> None:
        """Connects to nothing yet. Raises StentorError for an address that can't be one, and without the library."""
        try:
            self._library: Any = load("valkey.asyncio")
            errors = load("valkey.exceptions")
        except ImportError:
            raise StentorError(
                "STENTOR_CACHE_URL is set, and the optional extra 'valkey' is not installed. "
                'Install it with: pip install "stentor[valkey]"; or leave the setting empty.'
            ) from None
        # What a stranger on that port says breaks the parser in ways of its own.
        self._failures = (errors.ValkeyError, OSError, TimeoutError, ValueError, TypeError, IndexError, RecursionError)
        self._url = url
        self._log = log
        self._wait_s = wait_s
        self._client: Any = None
        self._rest_until_s = 0.0
        self._failing = False
        self._closing: set[asyncio.Task[None]] = set()
        self.lookups: Counter[str] = Counter()
        try:
            self._connect().connection_pool.make_connection()
        except (ValueError, TypeError, KeyError):
            raise StentorError(
                "STENTOR_CACHE_URL can't be used: write valkey://host:6379/0, valkeys:// with TLS, redis://, rediss:// "
                "or unix:///path; special characters in a password are written as %40 and so on."
            ) from None

    async def find(self, name: str, most_bytes: int) -> CachedValue | None:
        """What is kept under ``name``, unless it is longer than ``most_bytes``."""

        async def ask(client: Any) -> CachedValue | None:
            pipe = client.pipeline(transaction=False)
            body, left_ms = await pipe.getrange(name, 0, most_bytes).pttl(name).execute()
            if not isinstance(body, bytes) or not isinstance(left_ms, int):
                raise TypeError("it answers with other things than it was asked for")
            kept = 0 < len(body) <= most_bytes and left_ms > 0
            return CachedValue(body, left_ms / 1000) if kept else None

        before = self.lookups["failed"] + self.lookups["skipped"]
        found = await self._ask(ask)
        if before == self.lookups["failed"] + self.lookups["skipped"]:
            self.lookups["miss" if found is None else "hit"] += 1
        return found

    async def keep(self, name: str, body: bytes, keep_s: float) -> None:
        """Keep it for others, for so long, if that can be done."""

        async def ask(client: Any) -> None:
            await client.set(name, body, px=max(1, int(keep_s * 1000)))

        await self._ask(ask)

    async def close(self) -> None:
        """Let go of its connections."""
        self._drop()
        if self._closing:
            await asyncio.wait(self._closing, timeout=CLOSE_S)

    async def _ask(self, work: Callable[[Any], Awaitable[T]]) -> T | None:
        if time.monotonic() < self._rest_until_s:
            self.lookups["skipped"] += 1
            return None
        try:
            async with asyncio.timeout(self._wait_s):
                found = await work(self._connect())
        except asyncio.CancelledError:
            self._drop()  # whoever asked has left; the answer is still on its way
            raise
        except self._failures as error:
            self._fail(error)
            return None
        if self._failing:
            self._failing = False
            self._log.event("cache_recovered")
        return found

    def _connect(self) -> Any:
        if self._client is None:
            self._client = self._library.Valkey.from_url(
                self._url, socket_timeout=self._wait_s, socket_connect_timeout=self._wait_s, max_connections=4
            )
        return self._client

    def _fail(self, error: Exception) -> None:
        self.lookups["failed"] += 1
        self._rest_until_s = time.monotonic() + REST_S
        # An answer may still be on its way, which the next question must not get.
        self._drop()
        if not self._failing:
            self._failing = True
            said = f"{type(error).__name__}: {error}"[:200] if str(error) else f"no answer within {self._wait_s} s"
            self._log.event("cache_failed", level="warning", message=said)

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            task = asyncio.get_running_loop().create_task(self._close_client(client), name="cache-close")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close_client(self, client: Any) -> None:
        with contextlib.suppress(*self._failures):
            async with asyncio.timeout(CLOSE_S):
                await client.aclose(close_connection_pool=True)
