"""Bridge mode: on the LLMRing surface any text is a key, and each is a tenant of its own.

What looks like a key of this server (``sk-``) is looked up as everywhere: a mistyped one is no tenant.
"""

import hmac
import time

from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ProjectId, TierId, UserId
from stentor.core.principal import Principal
from stentor.http.auth import Authenticator, Headers, any_text, find_token

REQUESTS_PER_MINUTE = 600
TENANTS_MAX = 10_000


class Bridge:
    """Names tenants by a keyed hash of what they call themselves, and counts their requests."""

    def __init__(self, authenticator: Authenticator, pepper: bytes) -> None:
        self._authenticator = authenticator
        self._pepper = pepper
        self._counts: dict[str, int] = {}
        self._minute = 0

    async def authenticate(self, headers: Headers) -> Principal:
        """The caller. Raises Refused."""
        token = find_token(headers, any_text)
        if token is None or token.startswith(b"sk-"):
            return await self._authenticator.authenticate(headers)
        name = "bridge:" + hmac.digest(self._pepper, b"bridge\0" + token, "sha256").hex()[:40]
        self._count(name)
        return Principal(KeyId(name), UserId(name), ProjectId(name), TierId(""), frozenset({"ring"}))

    def _count(self, name: str) -> None:
        now = time.monotonic()
        minute = int(now // 60)
        if minute != self._minute or len(self._counts) > TENANTS_MAX:
            self._minute = minute
            self._counts.clear()
        count = self._counts[name] = self._counts.get(name, 0) + 1
        if count > REQUESTS_PER_MINUTE:
            raise Refused(
                "rate_limit_exceeded",
                f"A tenant without a key of this server may send {REQUESTS_PER_MINUTE} requests a minute.",
                retry_after_s=60 - now % 60,
                details={"limit": REQUESTS_PER_MINUTE, "left": 0},
            )
