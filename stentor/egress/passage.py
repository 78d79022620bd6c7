"""An operator's request passed on to an engine of this machine as it is, both bodies streamed.

Rare and never on the way of a client's request, so it takes the general client, and loads it when it is first used.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stentor.core.errors import StentorError
from stentor.core.lazy import load

if TYPE_CHECKING:
    import aiohttp

CONNECT_TIMEOUT_S = 5.0
STALL_S = 300.0
LOOPBACK = "127.0.0.1"


class PassageFailed(StentorError):
    """The engine could not be reached or broke off."""


class EnginePassage:
    """Passes requests on to engines on loopback, without redirects, cookies or proxies. Close it at the end."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: AsyncIterator[bytes] | None
    ) -> AsyncIterator["aiohttp.ClientResponse"]:
        """The engine's answer, its body still to be read. Raises PassageFailed, and ValueError off loopback."""
        if urlsplit(url).hostname != LOOPBACK:
            raise ValueError("engines are on loopback")
        http = load("aiohttp")
        session = self._open(http)
        target = load("yarl").URL(url, encoded=True)
        try:
            async with session.request(method, target, headers=headers, data=body, allow_redirects=False) as answer:
                yield answer
        except (http.ClientError, TimeoutError) as error:
            raise PassageFailed(f"The engine broke off: {str(error) or type(error).__name__}.") from error

    def _open(self, http: Any) -> "aiohttp.ClientSession":
        if self._session is None:
            timeout = http.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=STALL_S)
            self._session = http.ClientSession(
                timeout=timeout,
                connector=http.TCPConnector(limit=0, force_close=True),
                cookie_jar=http.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    async def close(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()
