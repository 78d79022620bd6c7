"""Users: found by id, name or email; made with a personal project of their own."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from stentor.core.errors import Refused
from stentor.core.ids import ProjectId, TierId, UserId, new_uuid7
from stentor.people import table
from stentor.people.passwords import is_password
from stentor.people.tiers import get_tier
from stentor.people.values import Project, User

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}", re.ASCII)
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,189}")


def is_email(text: str) -> bool:
    """Whether ``text`` looks like an email address."""
    return _EMAIL.fullmatch(text) is not None


def plain_email(text: str) -> str:
    """An email as it is stored and compared."""
    return text.strip().lower()


class NewUser(msgspec.Struct, frozen=True):
    """What a new user is made from. ``password_hash`` None: the user can't sign in to the console yet."""

    name: str
    email: str | None = None
    role: str = "user"
    tier_id: TierId = TierId("payg")
    password_hash: str | None = None
    password_temporary: bool = False


def list_users(connection: Connection, *, after_name: str = "", limit: int = 100) -> list[User]:
    """Users by name; page on with the last one's name."""
    return [User(*row) for row in table.list_users(connection, after_name, limit)]


def list_names(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """The names of users by id; unknown ids are left out."""
    return table.list_names(connection, ids)


def has_admin(connection: Connection) -> bool:
    """Whether anybody is an admin."""
    return table.count_admins(connection) > 0


def find_user(connection: Connection, user: str) -> User | None:
    """The user whose id, name or email is ``user``; emails are the same however they are capitalized."""
    row = table.find_user(connection, user) or table.find_user_by_name(connection, user)
    row = row or table.find_user_by_email(connection, plain_email(user))
    return None if row is None else User(*row)


def get_user(connection: Connection, user: str) -> User:
    """As :func:`find_user`; raises Refused for an unknown one."""
    found = find_user(connection, user)
    if found is None:
        raise Refused("not_found", f"There is no user '{user}'; `stentor users list` shows all.", param="user")
    return found


def add_user(connection: Connection, new: NewUser, now_us: int) -> tuple[User, Project]:
    """Make a user and their personal project. Raises Refused for a bad or taken name or email."""
    if not _NAME.fullmatch(new.name):
        raise Refused(
            "invalid_request",
            f"'{new.name}' can't be a user's name: use letters, digits and . _ @ + -, at most 128 characters.",
            param="name",
        )
    email = None if new.email is None else plain_email(new.email)
    if email is not None and not _EMAIL.fullmatch(email):
        raise Refused("invalid_request", f"'{email[:256]}' isn't an email address.", param="email")
    if new.role not in ("user", "admin"):
        raise Refused("invalid_request", f"A role is 'user' or 'admin', not '{new.role}'.", param="role")
    tier = get_tier(connection, new.tier_id)
    for taken in (new.name, email):
        if taken is not None and find_user(connection, taken) is not None:
            raise Refused("conflict", f"There is a user '{taken}' already.", param="name")
    user = User(UserId(new_uuid7()), new.name, email, new.role, tier.id, True, new.password_temporary, now_us)
    values = msgspec.structs.asdict(user) | {"password_hash": new.password_hash, "updated_us": now_us}
    table.add_user(connection, values)
    project = Project(ProjectId(new_uuid7()), new.name, user.id, True, True, now_us)
    table.add_project(connection, msgspec.structs.asdict(project))
    return user, project


def change_user(connection: Connection, user: User, changes: dict[str, Any], now_us: int) -> User:
    """Change ``active``, ``role``, ``tier_id``, ``email``, ``password_hash``, ``password_temporary``; returns the user.

    Raises Refused for a bad or taken value, and where no admin would be left who can sign in.
    """
    email = changes.get("email")
    if email is not None:
        email = plain_email(email)
        changes = {**changes, "email": email}
    if email is not None and not _EMAIL.fullmatch(email):
        raise Refused("invalid_request", f"'{email[:256]}' isn't an email address.", param="email")
    if email is not None:
        other = find_user(connection, email)
        if other is not None and other.id != user.id:
            raise Refused("conflict", f"There is a user '{email}' already.", param="email")
    if changes.get("role", "user") not in ("user", "admin"):
        raise Refused("invalid_request", f"A role is 'user' or 'admin', not '{changes['role']}'.", param="role")
    if "tier_id" in changes:
        get_tier(connection, changes["tier_id"])
    leaves = user.role == "admin" and (changes.get("role") == "user" or changes.get("active") is False)
    if leaves and user.active and not table.count_other_admins(connection, user.id):
        raise Refused("conflict", f"'{user.name}' is the last admin who can sign in; make another one first.")
    table.update_user(connection, user.id, {**changes, "updated_us": now_us})
    return get_user(connection, user.id)


def set_password(connection: Connection, user: User, password_hash: str, temporary: bool, now_us: int) -> None:
    """Store a new password's hash."""
    values = {"password_hash": password_hash, "password_temporary": temporary, "updated_us": now_us}
    table.update_user(connection, user.id, values)


def find_password_hash(connection: Connection, user_id: UserId) -> str | None:
    """The stored hash, for :func:`~stentor.people.passwords.is_password` in a thread of the caller."""
    return table.find_password_hash(connection, user_id)


__all__ = [
    "NewUser",
    "add_user",
    "change_user",
    "find_password_hash",
    "find_user",
    "get_user",
    "is_password",
    "list_names",
    "list_users",
    "set_password",
]
