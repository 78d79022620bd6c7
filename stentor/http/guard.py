"""What a browser could be made to do: the Host header and cross-origin requests."""

import ipaddress
import socket
from collections.abc import Sequence

from stentor.core.errors import Refused
from stentor.http.exchange import Exchange, Headers

_METHODS = b"GET, POST, PUT, PATCH, DELETE, OPTIONS"
_HEADERS = b"Authorization, X-API-Key, Content-Type, If-None-Match"
_EXPOSED = (
    b"x-request-id, x-stentor-model, x-stentor-instance, x-stentor-cost, x-stentor-overhead-ms, "
    b"x-should-retry, retry-after, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, "
    b"x-ratelimit-limit-parallel, x-ratelimit-remaining-parallel, x-next, x-next-after"
)


class HostGuard:
    """Refuses names that aren't this server's, so that a web page can't reach it by a name of its own (DNS rebinding).

    Addresses are always let through: they can't be rebound. So are ``localhost``, the machine's own name, and the
    names of the setting ``ALLOWED_HOSTS`` (``*.example.org`` for all below one).
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        own = socket.gethostname().lower()
        self._names = {"localhost", own, own.partition(".")[0]} | {name.lower() for name in allowed if name[0] != "*"}
        self._suffixes = tuple(name[1:].lower() for name in allowed if name.startswith("*."))
        self._any = "*" in allowed
        self._known: set[bytes] = set()

    def check(self, header: bytes | None) -> None:
        """Raises Refused (400) for a foreign host."""
        if header in self._known:
            return
        host = (header or b"").decode("latin-1").lower()
        if not self._any and not self._is_own(_without_port(host)):
            raise Refused(
                "host_not_allowed",
                f"This server isn't called '{host[:100]}'; the operator can add names to STENTOR_ALLOWED_HOSTS.",
            )
        if header is not None and len(header) < 300 and len(self._known) < 1000:
            self._known.add(header)

    def _is_own(self, name: str) -> bool:
        if name in self._names or name.endswith(self._suffixes):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


class Cors:
    """Cross-origin answers for the configured origins only, never with credentials."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origin.rstrip("/") for origin in origins)

    def is_preflight(self, exchange: Exchange) -> bool:
        """Whether this is a browser's question before a cross-origin request."""
        return (
            exchange.method == "OPTIONS"
            and bool(self._origins)
            and any(name == b"access-control-request-method" for name, _ in exchange.headers)
        )

    def preflight_headers(self) -> Headers:
        """The answer to that question; the origin itself is added to every answer."""
        return [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _HEADERS),
            (b"access-control-max-age", b"600"),
        ]

    def mark(self, exchange: Exchange) -> None:
        """Have the origin's headers added to whatever is answered, if the origin may read it."""
        if not self._origins:
            return
        origin = self._allowed(exchange)
        if origin is not None:
            exchange.more_headers += [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", _EXPOSED),
                (b"vary", b"Origin"),
            ]

    def _allowed(self, exchange: Exchange) -> bytes | None:
        for name, value in exchange.headers:
            if name == b"origin":
                if "*" in self._origins:
                    return b"*"
                return value if value.decode("latin-1") in self._origins else None
        return None
