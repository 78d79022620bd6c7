"""The application: one dispatch over the surface, with every refusal answered in its surface's envelope.

For each request: the host is checked, the route found, the caller authenticated as the route demands, the handler
called. The server's own Unix socket carries no key: whoever may open it is the operator.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import msgspec

from stentor.core.errors import Refused
from stentor.core.principal import Principal
from stentor.core.sessions import SessionBook
from stentor.http.auth import Authenticator, check_scope, find_token
from stentor.http.connection import Connection
from stentor.http.errors import OLLAMA_MAKING, Envelope, envelope_of, status_of
from stentor.http.exchange import ClientGone, Exchange, Headers
from stentor.http.guard import Cors, HostGuard
from stentor.http.handler import ANONYMOUS, OPERATOR, Handler, Params
from stentor.http.proxies import TrustedProxies
from stentor.http.route import Route
from stentor.http.sessions import SessionGate, check_sign_in, find_cookie, kind_of
from stentor.http.surface import SURFACE
from stentor.telemetry.logs import Log

# Clients of these write a slash at the end, or not, as they like.
_SLASHED = ("/api/v1/", "/conversations/", "/templates/", "/registry/")


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``body_max_bytes`` bounds a JSON body; ``open_metrics``: the server listens on loopback alone.

    ``ring_bridge``: any text is a key on the LLMRing surface. ``own_hosts`` are hosts, with ports, that pages of ours
    may come from beside the one that is asked. ``audio_max_bytes`` and ``audio_max_s`` bound an upload of sound, which
    lies in ``spool_dir`` meanwhile, and is refused if it comes at less than ``upload_least_bytes_per_s``. ``tls`` are
    the paths of certificate chain and private key.
    """

    body_max_bytes: int = 32 * 1024 * 1024
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    open_metrics: bool = True
    ring_bridge: bool = False
    trusted_proxies: tuple[str, ...] = ()
    allow_insecure_admin: bool = False
    own_hosts: tuple[str, ...] = ()
    audio_max_bytes: int = 100 * 1024 * 1024
    audio_max_s: float = 7200.0
    upload_least_bytes_per_s: int = 16 * 1024
    spool_dir: str = "data/tmp"
    tls: tuple[str, str] | None = None


class RingCallers(Protocol):
    """Who calls the LLMRing surface, where any text may be a key."""

    async def authenticate(self, headers: Headers) -> Principal:
        """The caller. Raises Refused."""
        ...


class Callers(NamedTuple):
    """Those who know who calls: by key, by session, and on the LLMRing surface by any text."""

    authenticator: Authenticator
    sessions: SessionBook
    bridge: RingCallers | None = None


class _Bound(NamedTuple):
    route: Route
    handler: Handler


class Gateway:
    """``operator_socket`` True serves the Unix socket, where the caller is the operator. Make it on its loop."""

    def __init__(
        self,
        settings: HttpSettings,
        callers: Callers,
        handlers: Mapping[str, Handler],
        log: Log,
        *,
        operator_socket: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._authenticator = callers.authenticator
        self._log = log
        self._sessions = SessionGate(callers.sessions, settings.own_hosts)
        self._proxies = TrustedProxies(settings.trusted_proxies)
        self._behind_proxies = bool(self._proxies) and not operator_socket
        self._allow_insecure = settings.allow_insecure_admin
        self._open_metrics = settings.open_metrics
        self._operator_socket = operator_socket
        self._bridge = callers.bridge
        self._hosts = None if operator_socket else HostGuard(settings.allowed_hosts)
        self._cors = Cors(settings.cors_origins)
        self._exact: dict[tuple[str, str], _Bound] = {}
        self._patterns = []
        for route in SURFACE:
            bound = _Bound(route, handlers[route.handler])
            if "{" in route.path:
                self._patterns.append((route.method, _compile(route.path), bound))
            else:
                self._exact[route.method, route.path] = bound

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        if self._behind_proxies:
            self._proxies.apply(exchange)
        connection = Connection(exchange, self._loop)
        self._cors.mark(exchange)
        envelope: Envelope | None = None
        principal = ANONYMOUS
        try:
            if self._hosts is not None:
                self._hosts.check(connection.header(b"host"))
            if self._cors.is_preflight(exchange):
                await connection.respond(204, self._cors.preflight_headers(), b"")
                return
            bound, params = self._find(exchange.method, exchange.path)
            envelope = bound.route.envelope
            principal = await self._admit(bound.route, connection)
            await bound.handler(connection, principal, params)
        except Refused as refusal:
            await self._refuse(connection, refusal, envelope, principal)
        except ClientGone:
            return
        except Exception as error:  # noqa: BLE001  # the outermost boundary: a defect is answered, logged and survived
            self._log.event("request_crashed", level="error", request_id=connection.request_id, cause=error)
            await self._refuse(connection, _defect(), envelope, principal)
        finally:
            connection.finish()

    async def _refuse(
        self, connection: Connection, refusal: Refused, envelope: Envelope | None, principal: Principal
    ) -> None:
        exchange = connection.exchange
        envelope = envelope or envelope_of(exchange.path)
        status = status_of(refusal, envelope)
        self._log.event(
            "request_refused",
            level="warning" if status >= 500 else "info",
            request_id=connection.request_id,
            path=exchange.path,
            method=exchange.method,
            status=status,
            code=refusal.code,
            # Whoever is known is named; of strangers only the address tells a guesser from a misspelt key.
            key_id=principal.key_id or None,
            client=None if principal.key_id else exchange.address,
        )
        if connection.started:
            await connection.fail_stream(refusal)
        else:
            await connection.refuse(refusal, envelope)

    def _find(self, method: str, path: str) -> tuple[_Bound, Params]:
        if method == "HEAD":
            method = "GET"
        bound = self._exact.get((method, path))
        if bound is not None:
            return bound, {}
        allowed = [known for known, exact in self._exact if exact == path]
        for wanted, pattern, candidate in self._patterns:
            match = pattern.match(path)
            if match is not None:
                if wanted == method:
                    return candidate, match.groupdict()
                allowed.append(wanted)
        if path.endswith("/") and not path.endswith("//") and path.startswith(_SLASHED):
            return self._find(method, path[:-1])
        if allowed:
            pages = " Pages of other websites may call what CORS_ORIGINS names." if method == "OPTIONS" else ""
            raise Refused(
                "method_not_allowed",
                f"{path[:200]} doesn't answer {method[:20]}, only {', '.join(sorted(allowed))}.{pages}",
                details={"allowed": sorted(allowed)},
            )
        hint = self._find_meant(path)
        raise Refused("not_found", f"There is nothing at {path[:200]}; {hint}/docs lists what there is.")

    def _find_meant(self, path: str) -> str:
        """What a client meant whose base URL lacks ``/v1`` or has too much, or whose slashes are doubled."""
        if path in OLLAMA_MAKING:
            return "here the operator fetches and removes models, with `stentor models`; "
        clean = "/" + "/".join(part for part in path[:200].split("/") if part)
        known = {exact for _, exact in self._exact}
        for meant in (clean, f"/v1{clean}", clean.removeprefix("/v1"), clean.removeprefix("/api")):
            if meant != path and meant in known:
                return f"did you mean {meant}? "
        return ""

    async def _admit(self, route: Route, connection: Connection) -> Principal:
        if route.sign_in and not self._operator_socket:
            check_sign_in(connection, self._allow_insecure)
            self._sessions.check_origin(connection)
        if route.access == "public":
            return ANONYMOUS
        if self._operator_socket:
            caller = connection.exchange.caller
            return OPERATOR if caller is None else caller
        if route.access == "metrics" and self._open_metrics and _from_loopback(connection.exchange.address):
            return ANONYMOUS
        # A cookie counts only on the paths that it was given for, whoever sends it elsewhere.
        if route.access in ("admin", "user") and route.path.startswith(("/admin/", "/user/")):
            token = find_cookie(connection, kind_of(route.path))
            if token is not None and find_token(connection.headers) is None:
                principal = await self._sessions.admit(route, connection, token)
                check_scope(principal, "", route.path)
                return principal
        callers = self._bridge if self._bridge is not None and route.scope == "ring" else self._authenticator
        principal = await callers.authenticate(connection.headers)
        check_scope(principal, route.scope, route.path)
        return principal


def _compile(path: str) -> re.Pattern[str]:
    """``/v1/models/{model_name}`` as a pattern whose groups are the parameters; ``{rest}`` takes what is left, and
    ``{model_name}``, too, if it is anything: ``org/repo:quant``."""
    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path))
    pattern = pattern.replace("(?P<rest>[^/]+)", "(?P<rest>.*)").replace("(?P<model_name>[^/]+)", "(?P<model_name>.+)")
    return re.compile("^" + pattern + "$", re.DOTALL)


def _defect() -> Refused:
    return Refused("internal_error", "The server failed on this request. The log has more under its x-request-id.")


def _from_loopback(address: str | None) -> bool:
    return address is not None and (address.startswith("127.") or address == "::1")
