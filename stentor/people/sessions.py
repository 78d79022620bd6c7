"""Console sessions: a random token whose hash is stored, twelve hours idle, seven days in all."""

import hashlib
import secrets

import msgspec
from sqlalchemy import Connection

from stentor.core.errors import Refused
from stentor.core.ids import KeyId, UserId, new_uuid7
from stentor.core.sessions import SessionKind
from stentor.people import table
from stentor.people.values import User

IDLE_US = 12 * 3600 * 1_000_000
LONGEST_US = 7 * 86_400 * 1_000_000
_AGENT_MAX = 200


class Session(msgspec.Struct, frozen=True):
    """One sign-in. Times are UTC microseconds; ``seen_us`` is at most a minute old while it is used.

    ``key_id`` is the key it was opened with, if it was one: the session may do no more than that, and ends with it.
    """

    id: str
    kind: SessionKind
    user_id: UserId
    created_us: int
    seen_us: int
    address: str
    agent: str
    key_id: KeyId | None = None

    def ends_us(self) -> int:
        """When it ends if nothing is done with it any more."""
        return min(self.seen_us + IDLE_US, self.created_us + LONGEST_US)


def new_token() -> str:
    """A fresh session token: 256 random bits."""
    return secrets.token_urlsafe(32)


def digest_token(token: str) -> bytes:
    """What is stored of a token."""
    return hashlib.sha256(token.encode()).digest()


def add_session(
    connection: Connection,
    user: User,
    kind: SessionKind,
    token: str,
    place: tuple[str, str],
    now_us: int,
    key_id: KeyId | None = None,
) -> Session:
    """Store a session; ``place`` is the client's address and the name it gives itself. Ended ones are cleared away."""
    table.delete_sessions_before(connection, now_us - IDLE_US, now_us - LONGEST_US)
    session = Session(new_uuid7(), kind, user.id, now_us, now_us, place[0][:64], place[1][:_AGENT_MAX], key_id)
    table.add_session(connection, msgspec.structs.asdict(session) | {"digest": digest_token(token)})
    return session


def find_session(connection: Connection, digest: bytes) -> Session | None:
    """The session with this token's hash, valid or not."""
    row = table.find_session(connection, digest)
    return None if row is None else Session(*row)


def list_sessions(
    connection: Connection, now_us: int, *, user_id: UserId | None = None, after_id: str = "", limit: int = 100
) -> list[Session]:
    """Valid sessions by id, which sorts by time; of one user if given."""
    rows = table.list_sessions(connection, user_id, (now_us - IDLE_US, now_us - LONGEST_US), after_id, limit)
    return [Session(*row) for row in rows]


def note_seen(connection: Connection, session_id: str, now_us: int) -> None:
    """Write down that a session was used."""
    table.update_session(connection, session_id, now_us)


def end_session(connection: Connection, session_id: str, user_id: UserId | None = None) -> Session:
    """End a session, of this user if given. Raises Refused where there is none."""
    row = table.find_session_by_id(connection, session_id)
    if row is None or (user_id is not None and Session(*row).user_id != user_id):
        raise Refused("not_found", f"There is no session '{session_id[:64]}'.")
    table.delete_session(connection, session_id)
    return Session(*row)


def end_sessions(connection: Connection, user_id: UserId, *, but: str = "") -> int:
    """End all sessions of a user but one; returns how many."""
    return table.delete_sessions_of(connection, user_id, but)
