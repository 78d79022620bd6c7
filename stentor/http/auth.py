"""Who is calling: from the headers to a Principal.

A key's format is checked before anything else, then its keyed hash is looked up: first among the principals this
worker knows, then at the authority. What is cached is dropped the moment the authority says that a key changed.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Callable

from stentor.core.books import Books
from stentor.core.errors import Refused
from stentor.core.ids import KeyId
from stentor.core.principal import Principal

CACHE_MAX_KEYS = 10_000
_OTHER_PLACES = frozenset({b"api-key", b"x-goog-api-key", b"x-litellm-api-key", b"x-auth-token"})
_VISIBLE = re.compile(rb"[!-~]{1,255}")

Headers = list[tuple[bytes, bytes]]


def _missing_key(headers: Headers) -> Refused:
    """No header has a key where keys are; what else there is may be one in a wrong place."""
    names = {name for name, _ in headers}
    found = "No API key was sent."
    if b"authorization" in names:
        found = "The Authorization header doesn't begin with 'Bearer '."
    elif other := sorted(_OTHER_PLACES & names):
        found = f"No API key was found; the header '{other[0].decode()}' isn't read."
    return Refused("missing_api_key", f"{found} Send it as 'Authorization: Bearer sk-…' or 'X-API-Key: sk-…'.")


def _unknown_key() -> Refused:
    return Refused(
        "invalid_api_key",
        "This API key is unknown, revoked or expired. 'stentor keys list' shows all, 'stentor keys create' makes one.",
    )


def _visible(token: bytes) -> bytes:
    if not _VISIBLE.fullmatch(token):
        raise _unknown_key()
    return token


def any_text(token: bytes) -> bytes:
    """Any text of 1 to 255 characters without whitespace, as UTF-8. Raises Refused for other ones."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        text = token.decode("latin-1")
    if not 1 <= len(text) <= 255 or any(character.isspace() for character in text):
        raise _unknown_key()
    return text.encode()


def find_token(headers: Headers, check: Callable[[bytes], bytes] = _visible) -> bytes | None:
    """The key in ``Authorization: Bearer`` or ``X-API-Key``, or None. Raises Refused for one that can't be a key.

    ``check`` returns what can be one.
    """
    for name, value in headers:
        if name == b"authorization":
            kind, _, token = value.partition(b" ")
            if kind.lower() == b"bearer":
                return check(token.strip())
        elif name == b"x-api-key":
            return check(value.strip())
    return None


class Authenticator:
    """Knows the principals of recently used keys. ``pepper`` is the secret of the keyed hash (32 bytes)."""

    def __init__(self, books: Books, pepper: bytes) -> None:
        self._books = books
        self._pepper = pepper
        self._known: dict[bytes, Principal] = {}
        self._epoch = 0
        books.on_changed(self._forget)

    def _forget(self, key_id: KeyId) -> None:
        self._epoch += 1
        self._known = {name: who for name, who in self._known.items() if who.key_id != key_id}

    async def authenticate(self, headers: Headers) -> Principal:
        """The caller. Raises Refused: 401 for a bad key, 503 when the store can't be asked."""
        token = find_token(headers)
        if token is None:
            raise _missing_key(headers)
        # What is remembered is a plain hash of the whole key: quicker than the keyed one, and it never leaves memory.
        name = hashlib.sha256(token).digest()
        principal = self._known.get(name)
        if principal is None:
            principal = await self._look_up(token, name)
        if principal.expires_us is not None and principal.expires_us <= time.time() * 1e6:
            self._known.pop(name, None)
            raise _unknown_key()
        return principal

    async def _look_up(self, token: bytes, name: bytes) -> Principal:
        epoch = self._epoch
        digest = hmac.digest(self._pepper, token, "sha256")
        principal = await self._books.find_principal(digest)
        if principal is None:
            raise _unknown_key()
        # A key that changed while it was being looked up must not stay here in its old form.
        if epoch == self._epoch:
            if len(self._known) >= CACHE_MAX_KEYS:
                self._known.clear()
            self._known[name] = principal
        return principal


def check_scope(principal: Principal, scope: str, endpoint: str) -> None:
    """Raises Refused (403) when the key may not call this."""
    if scope and scope not in principal.scopes:
        raise Refused(
            "insufficient_scope",
            f"This key has the scopes {', '.join(sorted(principal.scopes)) or 'none'}; this call needs '{scope}'.",
        )
    if principal.endpoints and endpoint not in principal.endpoints:
        raise Refused(
            "insufficient_scope",
            f"This key may only call {', '.join(sorted(principal.endpoints))}.",
        )
