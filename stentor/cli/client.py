"""The admin API, as commands call it: over the Unix socket of the running server, or in this process without one.

On the socket it is plain HTTP/1.1 without a key: whoever may open the socket is the operator.
"""

import http.client
import os
import socket
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

import msgspec

from stentor.core.errors import StentorError

DEFAULT_TIMEOUT_S = 60.0


class Transport(Protocol):
    """Carries one request of the admin API; ``target`` is path and query. Returns status and body."""

    def send(self, method: str, target: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
        """Raises StentorError where nobody answers."""
        ...


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, reached through its folder, as the path itself may be longer than sockets allow."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self._timeout_s)
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)


class SocketTransport:
    """The running server."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def send(self, method: str, target: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection = _SocketConnection(self._path, timeout_s)
        try:
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise StentorError(
                f"The running server does not answer on {self._path}: {error or type(error).__name__}. "
                "Restart it if that goes on."
            ) from None
        finally:
            connection.close()


class AdminClient:
    """Calls of the admin API. A refusal is a StentorError in the server's own words."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: Any = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Any:
        """One call below ``/admin/api``; returns the decoded JSON. ``query`` leaves out what is None."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        target = f"/admin/api{path}" + (f"?{urlencode(given)}" if given else "")
        data = None if body is None else msgspec.json.encode(body)
        return _decode(*self._transport.send(method, target, data, timeout_s))


def _decode(status: int, payload: bytes) -> Any:
    try:
        document = msgspec.json.decode(payload) if payload else None
    except msgspec.DecodeError:
        raise StentorError(f"The server answered something that is not JSON (status {status}).") from None
    if 200 <= status < 300:
        return document
    detail = document.get("detail") if isinstance(document, dict) else None
    if isinstance(detail, list):
        detail = "; ".join(str(item.get("msg", item)) if isinstance(item, dict) else str(item) for item in detail)
    raise StentorError(str(detail or f"The server refused with status {status}."))
