"""What has to be there before anybody can do anything: the admin and a first key, and the operator's fixed key."""

import asyncio
import itertools
import secrets

import msgspec
from sqlalchemy import Connection

from stentor.audit.log import SYSTEM, record_change
from stentor.control.wanted import FirstRun
from stentor.core.clock import Clock
from stentor.core.errors import StentorError
from stentor.core.ids import TierId
from stentor.people import api_keys, projects, users
from stentor.people.key_text import digest_key, is_fixed_key, new_key
from stentor.people.passwords import hash_password, new_password
from stentor.store.database import Database
from stentor.vault.keyring import Keyring

ADMIN = "admin"
FIXED_USER = "env"
ADMIN_SCOPES = ("inference", "admin")


async def ensure_first_run(
    database: Database, keyring: Keyring, clock: Clock, *, admin_key: bool = False
) -> FirstRun | None:
    """Make user ``admin`` with a generated password, a personal project and a first API key, if there is no admin yet.

    Returns what must be shown now or is lost, None on every later start. ``admin_key``: the key may manage, too.
    """
    if await database.read(users.has_admin):
        return None
    password, text = new_password(), new_key()
    hashed = await asyncio.to_thread(hash_password, password)
    scopes = ADMIN_SCOPES if admin_key else ("inference",)

    def work(connection: Connection) -> FirstRun | None:
        if users.has_admin(connection):
            return None
        now_us = clock.now_us()
        new = users.NewUser(
            _find_free_name(connection), None, "admin", TierId("admin"), hashed, password_temporary=True
        )
        user, project = users.add_user(connection, new, now_us)
        wanted = api_keys.NewKey(user.id, project.id, "first", scopes)
        key = api_keys.add_key(connection, wanted, text, digest_key(keyring.pepper(), text), now_us)
        for action, subject, after in (
            ("user_create", ("user", str(user.id)), msgspec.to_builtins(user)),
            ("key_create", ("key", str(key.id)), msgspec.to_builtins(key)),
        ):
            record_change(connection, now_us, SYSTEM, action, subject, after=after)
        return FirstRun(user.name, password, text)

    return await database.write(work)


def _find_free_name(connection: Connection) -> str:
    """``admin``, or where a mere user is called so, the same with a number."""
    names = (ADMIN if number == 1 else f"{ADMIN}{number}" for number in itertools.count(1))
    return next(name for name in names if users.find_user(connection, name) is None)


async def ensure_fixed_key(database: Database, keyring: Keyring, clock: Clock, text: str | None) -> None:
    """Let exactly the key in the settings work for user ``env``; None: none. Raises StentorError for a bad one."""
    if text is not None and not is_fixed_key(text):
        raise StentorError("STENTOR_API_KEY must be 1 to 255 visible ASCII characters without spaces.")
    if text is not None and secrets.compare_digest(text.lower(), "changeme"):
        raise StentorError("STENTOR_API_KEY is still 'changeme', which everybody knows. Choose another.")
    digest = None if text is None else digest_key(keyring.pepper(), text)
    if digest is None and await database.read(_has_no_fixed_key):
        return
    await database.write(lambda connection: _fix_key(connection, text or "", digest, clock.now_us()))


def _has_no_fixed_key(connection: Connection) -> bool:
    user = users.find_user(connection, FIXED_USER)
    return user is None or not any(key.revoked_us is None for key in api_keys.list_keys(connection, user_id=user.id))


def _fix_key(connection: Connection, text: str, digest: bytes | None, now_us: int) -> None:
    user = users.find_user(connection, FIXED_USER)
    if user is None:
        user, _ = users.add_user(connection, users.NewUser(FIXED_USER, tier_id=TierId("admin")), now_us)
        record_change(connection, now_us, SYSTEM, "user_create", ("user", user.id), after=msgspec.to_builtins(user))
    known = None if digest is None else api_keys.find_key_by_digest(connection, digest)
    # Somebody's own key, which the variable holds for `stentor chat`: it works as it is and stays theirs.
    is_theirs = known is not None and known.user_id != user.id
    if known is not None and is_theirs and known.revoked_us is not None:
        raise StentorError("STENTOR_API_KEY is a key of another user that was revoked. Unset it, or choose another.")
    for key in api_keys.list_keys(connection, user_id=user.id):
        if key.revoked_us is None and (known is None or key.id != known.id):
            api_keys.revoke_key(connection, key.id, now_us)
            record_change(connection, now_us, SYSTEM, "key_revoke", ("key", key.id))
    if digest is None or is_theirs:
        return
    if known is None:
        project = projects.get_personal_project(connection, user)
        new = api_keys.NewKey(user.id, project.id, "STENTOR_API_KEY")
        made = api_keys.add_key(connection, new, text, digest, now_us)
        record_change(connection, now_us, SYSTEM, "key_create", ("key", made.id), after=msgspec.to_builtins(made))
    elif known.revoked_us is not None:
        api_keys.restore_key(connection, known.id)
        record_change(connection, now_us, SYSTEM, "key_restore", ("key", known.id))
