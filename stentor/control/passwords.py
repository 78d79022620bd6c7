"""Checking and hashing passwords: slow on purpose, so in threads and few at once."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from sqlalchemy import Connection

from stentor.core.errors import Refused
from stentor.people import users
from stentor.people.passwords import hash_password, is_password
from stentor.people.values import User
from stentor.store.database import Database

HASHES_AT_ONCE = 2  # each takes 64 MiB
HASHERS_MAX = 64  # who may wait for one: some seconds' worth
PASSWORD_LEAST = 8
PASSWORD_MOST = 1024

T = TypeVar("T")


class Proof(NamedTuple):
    """Somebody knew the password behind ``stored``, a hash. What follows from that is written in a transaction of its
    own, which asks first whether it still holds.
    """

    user: User
    stored: str | None

    def check(self, connection: Connection) -> None:
        """Raises Refused if the user has another password by now."""
        if users.find_password_hash(connection, self.user.id) != self.stored:
            raise Refused("wrong_password", "The password was changed in this moment.")


class Passwords:
    """Whose password it is, and the hashes of new ones."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)
        self._hashers = 0

    async def check(self, user: str, password: str) -> Proof | None:
        """Whose password it is, if they are let in; as slow for an unknown name. Raises Refused when too many ask."""

        def read(connection: Connection) -> tuple[User | None, str | None]:
            found = users.find_user(connection, user)
            return found, None if found is None else users.find_password_hash(connection, found.id)

        found, stored = await self._database.read(read)
        right = await self._slowly(lambda: is_password(stored, password))
        return Proof(found, stored) if right and found is not None and found.active else None

    async def hash(self, password: str) -> str:
        """The hash of a new password, which must not be too short."""
        if len(password) < PASSWORD_LEAST:
            raise Refused("invalid_request", f"A password has at least {PASSWORD_LEAST} characters.", param="password")
        if len(password) > PASSWORD_MOST:
            raise Refused("invalid_request", f"A password has at most {PASSWORD_MOST} characters.", param="password")
        return await self._slowly(lambda: hash_password(password))

    async def _slowly(self, work: Callable[[], T]) -> T:
        """Do slow work on a password in a thread, few at once. Raises Refused where too many wait already."""
        if self._hashers >= HASHERS_MAX:
            raise Refused("overloaded", "Too many sign in at once. Try again in a moment.", retry_after_s=2.0)
        self._hashers += 1
        try:
            async with self._hashing:
                return await asyncio.to_thread(work)
        finally:
            self._hashers -= 1
