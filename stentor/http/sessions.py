"""Callers that come with a session cookie instead of a key: who they are, and that a page of ours sent them.

A cookie is sent by browsers without being asked, so what changes anything also needs a token that only our page can
know, and must not come from another origin.
"""

import hashlib
import hmac
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ProjectId
from stentor.core.principal import SCOPES, Principal
from stentor.core.sessions import SessionBook, SessionCard, SessionKind
from stentor.http.connection import Connection
from stentor.http.route import Route

COOKIES: dict[SessionKind, str] = {"admin": "stentor_admin", "user": "stentor_user"}
PATHS: dict[SessionKind, str] = {"admin": "/admin", "user": "/user"}
LONGEST_S = 7 * 86_400
_SAFE = ("GET", "HEAD", "OPTIONS")
_TOKEN_MAX = 128


def csrf_token(token: str) -> str:
    """What a page must send with a session's changes: made from the session's token, which scripts can't read."""
    return hashlib.sha256(b"stentor csrf " + token.encode()).hexdigest()


def cookie_header(kind: SessionKind, token: str, secure: bool) -> tuple[bytes, bytes]:
    """The header that sets a session's cookie, or with an empty token removes it."""
    text = f"{COOKIES[kind]}={token}; Path={PATHS[kind]}; Max-Age={LONGEST_S if token else 0}; HttpOnly; SameSite=Lax"
    return b"set-cookie", (text + ("; Secure" if secure else "")).encode("latin-1")


def find_cookie(connection: Connection, kind: SessionKind) -> str | None:
    """The session token that the request carries."""
    for name, value in connection.headers:
        if name == b"cookie" and COOKIES[kind].encode() in value:
            try:
                morsel = SimpleCookie(value.decode("latin-1")).get(COOKIES[kind])
            except CookieError:
                return None
            if morsel is not None and 0 < len(morsel.value) <= _TOKEN_MAX:
                return morsel.value
    return None


def kind_of(path: str) -> SessionKind:
    """Which kind of session a path belongs to."""
    return "user" if path.startswith("/user") else "admin"


class SessionGate:
    """Lets in who is signed in. ``own_hosts`` are names of this server beside the request's own Host."""

    def __init__(self, sessions: SessionBook, own_hosts: Sequence[str] = ()) -> None:
        self._sessions = sessions
        self._own_hosts = {host.lower() for host in own_hosts}

    async def admit(self, route: Route, connection: Connection, token: str) -> Principal:
        """The caller behind a cookie. Raises Refused."""
        kind = kind_of(route.path)
        card = await self._sessions.find_session(hashlib.sha256(token.encode()).digest(), kind)
        if card is None:
            raise Refused("session_ended", "This session has ended. Sign in again.")
        if connection.exchange.method not in _SAFE:
            self.check_origin(connection)
            sent = (connection.header(b"x-csrf-token") or b"").decode("latin-1")
            if not hmac.compare_digest(sent.encode(), csrf_token(token).encode()):
                raise Refused("csrf_failed", "The header X-CSRF-Token is missing or wrong; the session's page has it.")
        if card.must_change and not route.before_change:
            raise Refused("password_change_required", "Change the generated password first.")
        connection.exchange.session = card
        return principal_of(card)

    def check_origin(self, connection: Connection) -> None:
        """Raises Refused where the browser says that another website's page sent this."""
        origin = connection.header(b"origin")
        if origin is None:
            if connection.header(b"sec-fetch-site") not in (None, b"same-origin", b"none"):
                raise Refused("csrf_failed", "Another website's page sent this request.")
            return
        host = (connection.header(b"host") or b"").decode("latin-1").lower()
        said = _host_of(origin.decode("latin-1"))
        if not said or (said != host and said not in self._own_hosts):
            raise Refused("csrf_failed", f"A page of {origin.decode('latin-1')[:100]} sent this request.")


def _host_of(origin: str) -> str:
    """The host of an ``Origin`` header with its port; empty for one that can't be read, or is ``null``."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def principal_of(card: SessionCard) -> Principal:
    """What a session may do: an admin's everything, a user's only what the user's own pages do."""
    scopes = frozenset(SCOPES) if card.kind == "admin" else frozenset[str]()
    return Principal(
        KeyId(""), card.user_id, ProjectId(""), card.tier_id, scopes, endpoints=card.endpoints, session_id=card.id,
        user_name=card.user_name, session_key=card.key_id,
    )  # fmt: skip


def check_sign_in(connection: Connection, allow_insecure: bool) -> None:
    """Raises Refused where a password would travel readable: from elsewhere, without TLS."""
    address = connection.exchange.address or ""
    if connection.exchange.secure or allow_insecure or address.startswith("127.") or address in ("", "::1"):
        return
    raise Refused(
        "insecure_sign_in",
        "A password can't be sent from another machine without TLS. Set TLS_CERT and TLS_KEY, or put a proxy with TLS "
        "in front and name it in TRUSTED_PROXIES.",
    )
