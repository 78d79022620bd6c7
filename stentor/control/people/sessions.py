"""Signing in to the console, and who is signed in. Memory is the truth, the database what outlives it."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection

from stentor.audit.log import Actor, record_change
from stentor.control.books import LocalBooks
from stentor.control.management import Management
from stentor.control.nodes.following import Follower
from stentor.control.people.slowdown import ACCOUNT_FREE_TRIES, ACCOUNT_LONGEST_WAIT_S, Slowdown, network_of
from stentor.core.clock import Clock
from stentor.core.errors import Refused, StoreUnavailable
from stentor.core.ids import KeyId, UserId
from stentor.core.sessions import SessionCard, SessionKind
from stentor.people import api_keys, sessions, users
from stentor.people.key_text import digest_key
from stentor.people.sessions import Session
from stentor.people.values import KeyLimits, User
from stentor.store.database import Database
from stentor.vault.keyring import Keyring

FLUSH_US = 60 * 1_000_000
KNOWN_MAX = 10_000
FAILURES_WRITTEN_PER_MINUTE = 60


class SignedIn(NamedTuple):
    """A new session, and its token, which nobody can read again."""

    token: str
    card: SessionCard


class _Live:
    """A session in memory; ``written_us`` is what the database says of when it was seen.

    ``key_ends_us`` is when the key ends that it was opened with, if it was one and that ends by itself; ``endpoints``
    are what that key may call, if not everything.
    """

    __slots__ = ("endpoints", "key_ends_us", "session", "user", "written_us")

    def __init__(
        self, session: Session, user: User, key_ends_us: int | None = None, endpoints: Iterable[str] = ()
    ) -> None:
        self.session = session
        self.user = user
        self.key_ends_us = key_ends_us
        self.endpoints = frozenset(endpoints)
        self.written_us = session.seen_us

    def is_over(self, now_us: int) -> bool:
        """Whether it has ended by itself."""
        return self.session.ends_us() <= now_us or (self.key_ends_us is not None and self.key_ends_us <= now_us)


class Sessions:
    """Implements :class:`~stentor.core.sessions.SessionBook`. Lives on the books' event loop."""

    def __init__(
        self, database: Database, books: LocalBooks, management: Management, keyring: Keyring, clock: Clock
    ) -> None:
        self._database = database
        self._books = books
        self._management = management
        self._keyring = keyring
        self._clock = clock
        self._slowdown = Slowdown(clock)
        self._accounts = Slowdown(clock, ACCOUNT_FREE_TRIES, ACCOUNT_LONGEST_WAIT_S)
        self._good: set[str] = set()
        self._known: dict[bytes, _Live] = {}
        self._version = 0
        self._written = (0, 0.0)
        books.on_changed(self._forget_key)

    # -- who -----------------------------------------------------------------------------------------------------------

    async def find_session(self, digest: bytes, kind: SessionKind) -> SessionCard | None:
        """See :class:`~stentor.core.sessions.SessionBook`."""
        now_us = self._clock.now_us()
        live = self._known.get(digest)
        if live is not None and live.is_over(now_us):  # unless another node has seen it since
            del self._known[digest]
            live = None
        if live is None:
            live = await self._load(digest)
            now_us = self._clock.now_us()
        if live is None or live.session.kind != kind or live.is_over(now_us):
            return None
        live.session = msgspec.structs.replace(live.session, seen_us=now_us)
        if now_us - live.written_us > FLUSH_US:
            live.written_us = now_us
            session_id = live.session.id
            try:
                await self._database.write(lambda connection: sessions.note_seen(connection, session_id, now_us))
            except StoreUnavailable:
                live.written_us = 0  # memory knows it; the next use tries again
        return _card(live)

    async def _load(self, digest: bytes) -> _Live | None:
        def read(connection: Connection) -> _Live | None:
            session = sessions.find_session(connection, digest)
            if session is None:
                return None
            user = users.get_user(connection, session.user_id)
            key = None if session.key_id is None else api_keys.get_key(connection, session.key_id)
            if not _may(user, session.kind) or (key is not None and not key.is_valid(self._clock.now_us())):
                return None
            return _Live(session, user) if key is None else _Live(session, user, key.ends_us(), key.endpoints)

        while True:
            version = self._version
            found = await self._database.read(read)
            if version != self._version:
                continue  # something ended meanwhile
            if found is None:
                return None
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            return self._known.setdefault(digest, found)

    def follow(self, follower: Follower) -> None:
        """Have what other nodes do to users and keys take effect on sessions here."""

        async def follow_user(name: str) -> None:
            self.forget(UserId(name))

        async def follow_key(name: str) -> None:
            self._forget_key(KeyId(name))

        follower.also("user", follow_user)
        follower.also("key", follow_key)

    def forget(self, user_id: UserId) -> None:
        """A user changed: what is known of their sessions is read anew."""
        self._version += 1
        self._known = {digest: live for digest, live in self._known.items() if live.session.user_id != user_id}

    def _forget_key(self, key_id: KeyId) -> None:
        """A key changed or ended: so may sessions have that were opened with it."""
        self._version += 1
        self._known = {digest: live for digest, live in self._known.items() if live.session.key_id != key_id}

    # -- in and out ----------------------------------------------------------------------------------------------------

    async def sign_in(self, name: str, password: str, kind: SessionKind, place: tuple[str, str]) -> SignedIn:
        """A session for whoever knows the password; ``place`` is the client's address and the name it gives itself.

        Raises Refused: ``wrong_password`` (the same for an unknown name), ``rate_limit_exceeded`` after failures.
        """
        # However it is spelt that leads to the same account: spaces around an email and capitals don't matter there.
        network, account = network_of(place[0]), users.plain_email(name)[:128]
        here = f"{network} {account}"
        self._slowdown.enter((network, here))
        if here not in self._good:
            self._accounts.enter((account,))
        proof = await self._management.passwords.check(name, password)
        if proof is None or not _may(proof.user, kind):
            await self._note_failure(place[0], kind, None if proof is None else proof.user.id)
            raise _wrong()
        self._slowdown.forgive((here,))
        self._slowdown.forgive_place(network, account)
        self._accounts.forgive((account,))
        self._remember_good(here)
        return await self._open(proof.user.id, kind, place, proof.check)

    def _remember_good(self, here: str) -> None:
        """Who signed in here is let in here again, however many guess at their account from elsewhere."""
        if len(self._good) >= KNOWN_MAX:
            self._good.clear()
        self._good.add(here)

    async def exchange(self, key: str, place: tuple[str, str]) -> SignedIn:
        """A user session for whoever holds an API key of theirs. Raises Refused."""
        network = network_of(place[0])
        self._slowdown.enter((network,))
        principal = await self._books.find_principal(digest_key(self._keyring.pepper(), key)) if key else None
        if principal is None:
            await self._note_failure(place[0], "user", None)
            raise _unknown_key()
        key_id = principal.key_id
        self._slowdown.forgive_place(network, key_id)

        def check(connection: Connection) -> None:
            if not api_keys.get_key(connection, key_id).is_valid(self._clock.now_us()):
                raise _unknown_key()

        return await self._open(principal.user_id, "user", place, check, key_id)

    async def _open(
        self,
        user_id: UserId,
        kind: SessionKind,
        place: tuple[str, str],
        check: Callable[[Connection], None],
        key_id: KeyId | None = None,
    ) -> SignedIn:
        """A new session. ``check`` raises Refused if what let the caller in doesn't hold any more.

        Nothing of it is remembered here: what ended between now and its first use is seen when it is loaded.
        """
        token = sessions.new_token()

        def work(connection: Connection) -> _Live:
            now_us = self._clock.now_us()
            user = users.get_user(connection, user_id)
            if not _may(user, kind):
                raise _wrong()
            check(connection)
            session = sessions.add_session(connection, user, kind, token, place, now_us, key_id)
            after = {"session": session.id, "kind": kind, "address": session.address}
            actor = Actor(user.name, "console", session.address)
            record_change(connection, now_us, actor, "sign_in", ("user", user.id), after=after)
            key = None if key_id is None else api_keys.get_key(connection, key_id)
            return _Live(session, user) if key is None else _Live(session, user, key.ends_us(), key.endpoints)

        return SignedIn(token, _card(await self._database.write(work)))

    async def _note_failure(self, address: str, kind: str, user_id: UserId | None) -> None:
        """In the audit, but never more than so many a minute: whoever guesses must not fill the disk."""
        now_s = self._clock.monotonic_s()
        count, since_s = self._written
        if now_s - since_s >= 60:
            count, since_s = 0, now_s
        self._written = (count + 1, since_s)
        if count >= FAILURES_WRITTEN_PER_MINUTE:
            return
        now_us = self._clock.now_us()
        actor, after = Actor("unknown", "console", address[:64]), {"kind": kind, "address": address[:64]}
        subject = ("user", user_id or "unknown")
        await self._database.write(
            lambda connection: record_change(connection, now_us, actor, "sign_in_failed", subject, after=after)
        )

    async def end(self, actor: Actor, session_id: str, user_id: UserId | None = None) -> Session:
        """End a session, of this user if given. Raises Refused where there is none."""

        def work(connection: Connection) -> Session:
            now_us = self._clock.now_us()
            session = sessions.end_session(connection, session_id, user_id)
            before = {"session": session.id}
            record_change(connection, now_us, actor, "sign_out", ("user", session.user_id), before=before)
            return session

        session = await self._database.write(work)
        self.forget(session.user_id)
        return session

    async def list_sessions(
        self, *, user: str | None = None, after: str = "", limit: int = 100
    ) -> list[tuple[Session, str]]:
        """Valid sessions with their users' names, oldest first; ``user`` is a name, email or id."""

        def read(connection: Connection) -> list[tuple[Session, str]]:
            user_id = None if user is None else users.get_user(connection, user).id
            now_us = self._clock.now_us()
            found = sessions.list_sessions(connection, now_us, user_id=user_id, after_id=after, limit=limit)
            return [(session, users.get_user(connection, session.user_id).name) for session in found]

        return await self._database.read(read)

    async def change_password(
        self, actor: Actor, user_id: UserId, old: str, new: str, *, keep: str, key_id: str | None = None
    ) -> None:
        """A user's own change of password; their other sessions end. Raises Refused.

        Who has none yet sets a first one over a key, ``key_id``, that leaves nothing of theirs out.
        """
        stored = await self._database.read(lambda connection: users.find_password_hash(connection, user_id))
        if stored is None and key_id is not None:
            await self._database.read(lambda connection: _check_whole(connection, user_id, KeyId(key_id)))
        else:
            names = (f"password {user_id}",)
            self._slowdown.enter(names)
            if await self._management.passwords.check(user_id, old) is None:
                await self._note_failure(actor.address, "password", user_id)
                raise Refused("wrong_password", "The present password is wrong.")
            self._slowdown.forgive(names)
        if old == new:
            raise Refused("invalid_request", "The new password is the present one.", param="new_password")
        hashed = await self._management.passwords.hash(new)

        def work(connection: Connection) -> None:
            now_us = self._clock.now_us()
            user = users.get_user(connection, user_id)
            if users.find_password_hash(connection, user_id) != stored:
                raise Refused("wrong_password", "The password was changed in this moment.")
            if stored is None and key_id is not None:
                _check_whole(connection, user_id, KeyId(key_id))
            users.set_password(connection, user, hashed, False, now_us)
            sessions.end_sessions(connection, user.id, but=keep)
            record_change(connection, now_us, actor, "user_password", ("user", user.id))

        await self._database.write(work)
        self.forget(user_id)


def _may(user: User, kind: SessionKind) -> bool:
    """Whether a user may have a session of this kind."""
    return user.active and (kind == "user" or user.role == "admin")


def _wrong() -> Refused:
    return Refused("wrong_password", "The name or the password is wrong.")


def _unknown_key() -> Refused:
    return Refused("invalid_api_key", "This API key is unknown, revoked or expired.")


def _card(live: _Live) -> SessionCard:
    session, user = live.session, live.user
    return SessionCard(
        session.id,
        session.kind,
        user.id,
        user.name,
        user.tier_id,
        user.password_temporary,
        session.ends_us(),
        session.key_id or "",
        live.endpoints,
    )


def _check_whole(connection: Connection, user_id: UserId, key_id: KeyId) -> None:
    """Raises Refused where a password would open more than the key does that sets it."""
    key, user = api_keys.get_key_in_line(connection, key_id), users.get_user(connection, user_id)
    narrow = key.models or key.endpoints or key.limits != KeyLimits() or key.ends_us() is not None
    if narrow or (user.role == "admin" and "admin" not in key.scopes):
        raise Refused(
            "insufficient_scope",
            "A first password can't be set with a key that is limited, or ends. Use one that isn't, or ask an admin.",
        )
