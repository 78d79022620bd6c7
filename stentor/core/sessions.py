"""Who is signed in to the console: the third question that a worker asks the node authority."""

from typing import Literal, Protocol

import msgspec

from stentor.core.ids import TierId, UserId

SessionKind = Literal["admin", "user"]


class SessionCard(msgspec.Struct, frozen=True, array_like=True):
    """A session that is valid now. ``must_change``: nothing may be done before the password is changed.

    ``key_id`` is the API key it was opened with, empty for a password: it may do no more than that key, and call only
    the ``endpoints`` that this one may call, if it names any.
    """

    id: str
    kind: SessionKind
    user_id: UserId
    user_name: str
    tier_id: TierId
    must_change: bool
    ends_us: int
    key_id: str = ""
    endpoints: frozenset[str] = frozenset()


class SessionBook(Protocol):
    """Sessions by the hash of their token."""

    async def find_session(self, digest: bytes, kind: SessionKind) -> SessionCard | None:
        """The valid session whose token has this SHA-256, or None. Asking keeps it from idling out."""
        ...
