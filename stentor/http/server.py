"""HTTP/1.1 for clients, on a socket of ours: who is connected, and how it ends.

One :class:`~stentor.http.protocol.Connected` a client, one :class:`~stentor.http.exchange.Exchange` a request.
"""

import asyncio
import contextlib
import time
from email.utils import formatdate
from functools import partial
from socket import socket
from ssl import PROTOCOL_TLS_SERVER, SSLContext, TLSVersion
from urllib.parse import unquote

import httptools

from stentor.core.errors import StentorError
from stentor.http.protocol import App, Connected

STOP_S = 5.0
TARGETS_MAX = 1000
BACKLOG = 2048


def tls_context(files: tuple[str, str] | None) -> SSLContext | None:
    """What serves HTTPS with this certificate chain and private key, TLS 1.2 at least. Raises StentorError."""
    if files is None:
        return None
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.minimum_version = TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(*files, password=_no_password)
    except (OSError, ValueError) as error:
        raise StentorError(
            f"TLS can't be served with TLS_CERT {files[0]} and TLS_KEY {files[1]}: {error}. "
            "Both must be PEM files that belong together, the key without a password."
        ) from None
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


class HttpServer:
    """Serves one listening socket. ``begin``, then ``stop_accepting`` when the end comes, and ``end``."""

    def __init__(self, app: App, tls: SSLContext | None = None) -> None:
        self.app = app
        self._tls = tls
        self.secure = tls is not None
        self._server: asyncio.Server | None = None
        self._connections: set[Connected] = set()
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._targets: dict[bytes, str] = {}
        self._date = b""
        self._date_s = 0
        self.ending = False

    async def begin(self, listening: socket) -> None:
        """Serve from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            partial(Connected, self, loop), sock=listening, ssl=self._tls, backlog=BACKLOG
        )

    def stop_accepting(self) -> None:
        """Take no more connections, hang up on the idle ones; running requests go on, and are the last of theirs."""
        if self.ending:
            return
        self.ending = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.end_soon()

    async def end(self, wait_s: float = STOP_S) -> None:
        """Hang up; running requests were drained, so whoever is still there gets a moment to read the answer."""
        self.stop_accepting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._none_left.wait()
        for connection in list(self._connections):
            connection.abort()
        # Aborted transports tell their protocols in the loop's next round.
        await asyncio.sleep(0)

    def enter(self, connection: Connected) -> None:
        """A client has connected."""
        self._connections.add(connection)
        self._none_left.clear()

    def leave(self, connection: Connected) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        if not self._connections:
            self._none_left.set()

    def date_line(self) -> bytes:
        """The ``date`` header, of this second."""
        now_s = int(time.time())
        if now_s != self._date_s:
            self._date_s = now_s
            self._date = b"date: %b\r\n" % formatdate(now_s, usegmt=True).encode("ascii")
        return self._date

    def read_target(self, target: bytes) -> tuple[str, bytes]:
        """Path and query of a request's target. Raises httptools' errors, UnicodeDecodeError."""
        path = self._targets.get(target)
        if path is not None:
            return path, b""
        parsed = httptools.parse_url(target)
        path = parsed.path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        query: bytes = parsed.query or b""
        if not query and target.startswith(b"/") and len(target) < 200 and len(self._targets) < TARGETS_MAX:
            self._targets[target] = path
        return path, query
