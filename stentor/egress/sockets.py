"""The way from a worker to an engine that talks while it listens: a WebSocket over loopback.

Rare beside requests (one for each utterance, or each conversation), so it takes the general client, and loads it when
it is first used. An engine that hangs is found out by pings that it doesn't answer.
"""

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stentor.core.lazy import load
from stentor.egress.engines import EngineUnreachable

if TYPE_CHECKING:
    import aiohttp

CONNECT_TIMEOUT_S = 10.0
HEARTBEAT_S = 20.0
_LOOPBACK = "127.0.0.1"
_MESSAGE_MAX_BYTES = 1 << 20
_CLOSE_S = 1.0


class SocketRefused(EngineUnreachable):
    """The engine answered with a ``status`` instead of talking."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it answered status {status}", answered=True)
        self.status = status


class EngineSocket:
    """One conversation with an engine. Close it, whatever happened."""

    def __init__(self, socket: "aiohttp.ClientWebSocketResponse", send_s: float) -> None:
        self._socket = socket
        self._send_s = send_s

    async def send(self, message: bytes | str) -> None:
        """Sound, or words. Raises EngineUnreachable where the engine is gone or doesn't take it."""
        try:
            async with asyncio.timeout(self._send_s):
                if isinstance(message, bytes):
                    await self._socket.send_bytes(message)
                else:
                    await self._socket.send_str(message)
        except TimeoutError:
            raise EngineUnreachable(f"it took nothing for {self._send_s:g} s", answered=True) from None
        except (ConnectionError, RuntimeError):
            raise EngineUnreachable("it hung up", answered=True) from None

    async def receive(self) -> str:
        """What it says next. Raises EngineUnreachable when it is gone, or says what isn't words."""
        http = load("aiohttp")
        message = await self._socket.receive()
        if message.type is http.WSMsgType.TEXT:
            return str(message.data)
        if message.type is http.WSMsgType.BINARY:
            raise EngineUnreachable("it sent bytes that aren't words", answered=True)
        raise EngineUnreachable(self._say_why(), answered=True)

    def _say_why(self) -> str:
        problem = self._socket.exception()
        if problem is not None:
            return f"it broke off ({problem or type(problem).__name__})"
        return f"it hung up (code {self._socket.close_code})"

    async def close(self) -> None:
        """Hang up."""
        await self._socket.close()


class EngineSockets:
    """Opens conversations with engines. ``send_s`` is how long an engine may take nothing, ``heartbeat_s`` how often it
    is asked whether it is there. Close it at the end."""

    def __init__(self, send_s: float = 30.0, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._send_s = send_s
        self._heartbeat_s = heartbeat_s
        self._session: aiohttp.ClientSession | None = None

    async def connect(self, url: str, token: str) -> EngineSocket:
        """A conversation at ``url`` (``http://127.0.0.1:…``). Raises EngineUnreachable, SocketRefused for a status."""
        if urlsplit(url).hostname != _LOOPBACK:
            raise ValueError("engines are on loopback")
        http = load("aiohttp")
        session = self._open(http)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                socket = await session.ws_connect(
                    url,
                    headers={"Authorization": f"Bearer {token}"},
                    heartbeat=self._heartbeat_s,
                    max_msg_size=_MESSAGE_MAX_BYTES,
                    timeout=http.ClientWSTimeout(ws_close=_CLOSE_S),
                )
        except TimeoutError:
            raise EngineUnreachable(f"no connection within {CONNECT_TIMEOUT_S:.0f} s", answered=False) from None
        except http.WSServerHandshakeError as error:
            raise SocketRefused(error.status) from None
        except (http.ClientError, OSError) as error:
            raise EngineUnreachable(f"it can't be reached ({error})", answered=False) from None
        return EngineSocket(socket, self._send_s)

    def _open(self, http: Any) -> "aiohttp.ClientSession":
        if self._session is None:
            self._session = http.ClientSession(
                timeout=http.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                connector=http.TCPConnector(limit=0, force_close=True),
                cookie_jar=http.DummyCookieJar(),
                trust_env=False,
            )
        return self._session

    async def close(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()
