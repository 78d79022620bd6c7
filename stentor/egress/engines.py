"""The way from a worker to an engine: HTTP over loopback, without a second guess.

One session per worker, no redirects, no cookies, no proxy from the environment, no total deadline: an answer may take
an hour as long as it goes on. Closing an answer that hasn't ended closes its connection, and that is what makes an
engine stop.
"""

import aiohttp
import msgspec

from stentor.core.errors import StentorError

CONNECT_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 3.0
ERROR_BODY_BYTES = 64 * 1024


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``stall_s``: how long an engine may stay silent within an answer before it counts as hung."""

    stall_s: float = 300.0


class EngineUnreachable(StentorError):
    """The engine could not be reached, or broke off: ``answered`` says whether any byte had come back."""

    def __init__(self, problem: str, *, answered: bool) -> None:
        super().__init__(problem)
        self.answered = answered


class EngineAnswer:
    """An engine's answer whose body hasn't been read yet."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._content = response.content
        self.status = response.status
        self.content_type = response.content_type

    async def read(self) -> bytes:
        """The next bytes of the body, empty at its end. Raises EngineUnreachable when the engine breaks off or stalls."""
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise EngineUnreachable(f"the engine broke off its answer: {error!r}", answered=True) from error
        except TimeoutError as error:
            raise EngineUnreachable("the engine fell silent in the middle of its answer", answered=True) from error

    async def error_body(self) -> bytes:
        """The first 64 KiB of the body; empty if it can't be read."""
        try:
            return await self._content.read(ERROR_BODY_BYTES)
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return b""

    def release(self) -> None:
        """Give the connection back if the body was read to its end, else close it: the engine stops working on it."""
        if self._content.at_eof():
            self._response.release()
        else:
            self._response.close()


class EngineClient:
    """Posts requests to engines. Make it inside the running loop; close it at the end."""

    def __init__(self, settings: EngineSettings) -> None:
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=settings.stall_s)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
        )

    async def post_json(self, url: str, token: str, body: bytes) -> EngineAnswer:
        """POST ``body`` and return as soon as the answer's headers are there.

        A connection that the engine had closed while it lay idle is replaced once, as long as no byte came back.
        Raises EngineUnreachable.
        """
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        for last_try in (False, True):
            try:
                response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
            except aiohttp.ServerDisconnectedError as error:
                if last_try:
                    raise EngineUnreachable(f"the engine closed the connection: {error!r}", answered=False) from error
            except (aiohttp.ClientConnectorError, TimeoutError) as error:
                raise EngineUnreachable(f"the engine can't be reached: {error!r}", answered=False) from error
            except (aiohttp.ClientError, ConnectionError) as error:
                if last_try:
                    raise EngineUnreachable(f"the engine broke off: {error!r}", answered=False) from error
            else:
                return EngineAnswer(response)
        raise AssertionError("unreachable")

    async def close(self) -> None:
        await self._session.close()
