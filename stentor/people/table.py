"""All SQL about users, tiers, projects and API keys."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from stentor.core.ids import KeyId
from stentor.store.schema import api_keys, project_budgets, projects, sessions, signup_keys, signups, tiers, users

AnyRow = Row[*tuple[Any, ...]]

_TIER = (
    tiers.c.id,
    tiers.c.name,
    tiers.c.requests_per_minute,
    tiers.c.tokens_per_minute,
    tiers.c.concurrency,
    tiers.c.prepaid,
)
_USER = (
    users.c.id,
    users.c.name,
    users.c.email,
    users.c.role,
    users.c.tier_id,
    users.c.active,
    users.c.password_temporary,
    users.c.created_us,
)
_PROJECT = (
    projects.c.id,
    projects.c.name,
    projects.c.owner_id,
    projects.c.personal,
    projects.c.active,
    projects.c.created_us,
)
_KEY = (
    api_keys.c.id,
    api_keys.c.name,
    api_keys.c.hint,
    api_keys.c.user_id,
    api_keys.c.project_id,
    api_keys.c.scopes,
    api_keys.c.models,
    api_keys.c.endpoints,
    api_keys.c.token_limit,
    api_keys.c.spending_limit_nano,
    api_keys.c.requests_per_minute,
    api_keys.c.tokens_per_minute,
    api_keys.c.concurrency,
    api_keys.c.budget_day_nano,
    api_keys.c.budget_month_nano,
    api_keys.c.expires_us,
    api_keys.c.rotated_from,
    api_keys.c.grace_until_us,
    api_keys.c.revoked_us,
    api_keys.c.created_us,
    api_keys.c.line_id,
)
_SESSION = (
    sessions.c.id,
    sessions.c.kind,
    sessions.c.user_id,
    sessions.c.created_us,
    sessions.c.seen_us,
    sessions.c.address,
    sessions.c.agent,
    sessions.c.key_id,
)
_SIGNUP = (
    signups.c.id,
    signups.c.email,
    signups.c.tier_id,
    signups.c.message,
    signups.c.address,
    signups.c.state,
    signups.c.user_id,
    signups.c.decided_by,
    signups.c.created_us,
    signups.c.decided_us,
)


def list_tiers(connection: Connection) -> list[AnyRow]:
    """All tiers by name."""
    return list(connection.execute(select(*_TIER).order_by(tiers.c.name)))


def find_tier(connection: Connection, tier_id: str) -> AnyRow | None:
    """One tier."""
    return connection.execute(select(*_TIER).where(tiers.c.id == tier_id)).one_or_none()


def add_tier(connection: Connection, values: dict[str, Any]) -> None:
    """Insert a tier."""
    connection.execute(insert(tiers).values(**values))


def update_tier(connection: Connection, tier_id: str, values: dict[str, Any]) -> None:
    """Change a tier."""
    connection.execute(update(tiers).where(tiers.c.id == tier_id).values(**values))


def delete_tier(connection: Connection, tier_id: str) -> None:
    """Remove a tier."""
    connection.execute(delete(tiers).where(tiers.c.id == tier_id))


def count_users_of_tier(connection: Connection, tier_id: str) -> int:
    """How many users a tier has."""
    query = select(func.count()).select_from(users).where(users.c.tier_id == tier_id)
    return int(connection.execute(query).scalar_one())


def count_other_admins(connection: Connection, user_id: str) -> int:
    """How many active admins with a password there are beside this user."""
    query = select(func.count()).select_from(users)
    query = query.where(users.c.role == "admin", users.c.active, users.c.password_hash.is_not(None))
    return int(connection.execute(query.where(users.c.id != user_id)).scalar_one())


def count_admins(connection: Connection) -> int:
    """How many admins there are, whether they can sign in or not."""
    return int(connection.execute(select(func.count()).select_from(users).where(users.c.role == "admin")).scalar_one())


def list_users(connection: Connection, after_name: str, limit: int) -> list[AnyRow]:
    """Users by name, those after ``after_name``."""
    query = select(*_USER).where(users.c.name > after_name).order_by(users.c.name).limit(limit)
    return list(connection.execute(query))


def list_names(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """Names by id."""
    names: dict[str, str] = {}
    for start in range(0, len(ids), 500):
        query = select(users.c.id, users.c.name).where(users.c.id.in_(ids[start : start + 500]))
        names.update((row[0], row[1]) for row in connection.execute(query))
    return names


def find_user(connection: Connection, user_id: str) -> AnyRow | None:
    """One user by id."""
    return connection.execute(select(*_USER).where(users.c.id == user_id)).one_or_none()


def find_user_by_name(connection: Connection, name: str) -> AnyRow | None:
    """One user by name."""
    return connection.execute(select(*_USER).where(users.c.name == name)).one_or_none()


def find_user_by_email(connection: Connection, email: str) -> AnyRow | None:
    """One user by email."""
    return connection.execute(select(*_USER).where(users.c.email == email)).one_or_none()


def find_password_hash(connection: Connection, user_id: str) -> str | None:
    """The stored hash of a user's password."""
    return connection.execute(select(users.c.password_hash).where(users.c.id == user_id)).scalar_one_or_none()


def add_user(connection: Connection, values: dict[str, Any]) -> None:
    """Insert a user."""
    connection.execute(insert(users).values(**values))


def update_user(connection: Connection, user_id: str, values: dict[str, Any]) -> None:
    """Change a user."""
    connection.execute(update(users).where(users.c.id == user_id).values(**values))


def list_projects(connection: Connection, owner_id: str | None) -> list[AnyRow]:
    """Projects, oldest first; of one owner if given."""
    query = select(*_PROJECT).order_by(projects.c.created_us, projects.c.id)
    if owner_id is not None:
        query = query.where(projects.c.owner_id == owner_id)
    return list(connection.execute(query))


def page_projects(connection: Connection, owner_id: str | None, after_id: str, limit: int) -> list[AnyRow]:
    """Projects by id, which sorts by time, those after ``after_id``; of one owner if given."""
    query = select(*_PROJECT).where(projects.c.id > after_id).order_by(projects.c.id).limit(limit)
    if owner_id is not None:
        query = query.where(projects.c.owner_id == owner_id)
    return list(connection.execute(query))


def update_project(connection: Connection, project_id: str, values: dict[str, Any]) -> None:
    """Change a project."""
    connection.execute(update(projects).where(projects.c.id == project_id).values(**values))


def find_project(connection: Connection, project_id: str) -> AnyRow | None:
    """One project."""
    return connection.execute(select(*_PROJECT).where(projects.c.id == project_id)).one_or_none()


def add_project(connection: Connection, values: dict[str, Any]) -> None:
    """Insert a project."""
    connection.execute(insert(projects).values(**values))


def list_budgets(connection: Connection, project_id: str) -> list[AnyRow]:
    """A project's budgets: window, limit_nano."""
    query = select(project_budgets.c.window, project_budgets.c.limit_nano)
    query = query.where(project_budgets.c.project_id == project_id).order_by(project_budgets.c.window)
    return list(connection.execute(query))


def set_budget(connection: Connection, project_id: str, window: str, limit_nano: int | None, now_us: int) -> None:
    """Set, change or (None) remove a budget."""
    here = (project_budgets.c.project_id == project_id) & (project_budgets.c.window == window)
    connection.execute(project_budgets.delete().where(here))
    if limit_nano is not None:
        values = {"project_id": project_id, "window": window, "limit_nano": limit_nano, "updated_us": now_us}
        connection.execute(insert(project_budgets).values(**values))


def list_keys(connection: Connection, user_id: str | None, before_id: str | None, limit: int) -> list[AnyRow]:
    """Keys, newest first (ids sort by time); of one user if given."""
    query = select(*_KEY).order_by(api_keys.c.id.desc()).limit(limit)
    if user_id is not None:
        query = query.where(api_keys.c.user_id == user_id)
    if before_id is not None:
        query = query.where(api_keys.c.id < before_id)
    return list(connection.execute(query))


def find_key(connection: Connection, key_id: str) -> AnyRow | None:
    """One key by id."""
    return connection.execute(select(*_KEY).where(api_keys.c.id == key_id)).one_or_none()


def find_key_by_digest(connection: Connection, digest: bytes) -> AnyRow | None:
    """One key by its keyed hash."""
    return connection.execute(select(*_KEY).where(api_keys.c.digest == digest)).one_or_none()


def find_successor(connection: Connection, key_id: str) -> KeyId | None:
    """The key that replaced this one."""
    query = select(api_keys.c.id).where(api_keys.c.rotated_from == key_id).order_by(api_keys.c.id).limit(1)
    found = connection.execute(query).scalar_one_or_none()
    return None if found is None else KeyId(found)


def list_line(connection: Connection, line_id: str) -> list[KeyId]:
    """The keys of a line, oldest first."""
    query = select(api_keys.c.id).where(api_keys.c.line_id == line_id).order_by(api_keys.c.id)
    return [KeyId(key_id) for key_id in connection.execute(query).scalars()]


def list_lines(connection: Connection) -> dict[str, str]:
    """The line of each key that replaced another."""
    query = select(api_keys.c.id, api_keys.c.line_id).where(api_keys.c.rotated_from.is_not(None))
    return {row[0]: row[1] for row in connection.execute(query.order_by(api_keys.c.id))}


def find_digest(connection: Connection, key_id: str) -> bytes | None:
    """The keyed hash of a key."""
    return connection.execute(select(api_keys.c.digest).where(api_keys.c.id == key_id)).scalar_one_or_none()


def add_key(connection: Connection, values: dict[str, Any]) -> None:
    """Insert a key."""
    connection.execute(insert(api_keys).values(**values))


def update_key(connection: Connection, key_id: str, values: dict[str, Any]) -> None:
    """Change a key."""
    connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(**values))


def add_session(connection: Connection, values: dict[str, Any]) -> None:
    """Insert a session."""
    connection.execute(insert(sessions).values(**values))


def find_session(connection: Connection, digest: bytes) -> AnyRow | None:
    """One session by its token's hash."""
    return connection.execute(select(*_SESSION).where(sessions.c.digest == digest)).one_or_none()


def find_session_by_id(connection: Connection, session_id: str) -> AnyRow | None:
    """One session by id."""
    return connection.execute(select(*_SESSION).where(sessions.c.id == session_id)).one_or_none()


def list_sessions(
    connection: Connection, user_id: str | None, since: tuple[int, int], after_id: str, limit: int
) -> list[AnyRow]:
    """Sessions seen and made after these times, by id; of one user if given."""
    query = select(*_SESSION).where(
        sessions.c.seen_us > since[0], sessions.c.created_us > since[1], sessions.c.id > after_id
    )
    if user_id is not None:
        query = query.where(sessions.c.user_id == user_id)
    return list(connection.execute(query.order_by(sessions.c.id).limit(limit)))


def update_session(connection: Connection, session_id: str, seen_us: int) -> None:
    """Note when a session was last used."""
    connection.execute(update(sessions).where(sessions.c.id == session_id).values(seen_us=seen_us))


def delete_session(connection: Connection, session_id: str) -> None:
    """Remove a session."""
    connection.execute(delete(sessions).where(sessions.c.id == session_id))


def delete_sessions_of(connection: Connection, user_id: str, but: str) -> int:
    """Remove a user's sessions but one; returns how many."""
    return connection.execute(delete(sessions).where(sessions.c.user_id == user_id, sessions.c.id != but)).rowcount


def delete_sessions_before(connection: Connection, seen_us: int, created_us: int) -> None:
    """Remove sessions last used, or made, before these times."""
    connection.execute(delete(sessions).where((sessions.c.seen_us <= seen_us) | (sessions.c.created_us <= created_us)))


def add_signup(connection: Connection, values: dict[str, Any]) -> None:
    """Insert a request for an account."""
    connection.execute(insert(signups).values(**values))


def add_signup_key(connection: Connection, signup_id: str, name: str, hint: str, digest: bytes) -> None:
    """Insert a key that was given out with a request."""
    values = {"signup_id": signup_id, "name": name, "hint": hint, "digest": digest}
    connection.execute(insert(signup_keys).values(**values))


def take_signup_key(connection: Connection, signup_id: str) -> AnyRow | None:
    """Remove the key that was given out with a request: its name, hint and digest."""
    gone = delete(signup_keys).where(signup_keys.c.signup_id == signup_id)
    return connection.execute(
        gone.returning(signup_keys.c.name, signup_keys.c.hint, signup_keys.c.digest)
    ).one_or_none()


def update_signup(connection: Connection, signup_id: str, values: dict[str, Any]) -> None:
    """Change a request for an account."""
    connection.execute(update(signups).where(signups.c.id == signup_id).values(**values))


def find_signup(connection: Connection, signup_id: str) -> AnyRow | None:
    """One request for an account."""
    return connection.execute(select(*_SIGNUP).where(signups.c.id == signup_id)).one_or_none()


def has_pending_signup(connection: Connection, email: str) -> bool:
    """Whether a request with this email waits."""
    query = select(signups.c.id).where(signups.c.email == email, signups.c.state == "pending").limit(1)
    return connection.execute(query).one_or_none() is not None


def count_pending_signups(connection: Connection) -> int:
    """How many requests wait."""
    query = select(func.count()).select_from(signups).where(signups.c.state == "pending")
    return int(connection.execute(query).scalar_one())


def list_signups(connection: Connection, state: str | None, before_id: str | None, limit: int) -> list[AnyRow]:
    """Requests, newest first; of one state if given."""
    query = select(*_SIGNUP).order_by(signups.c.id.desc()).limit(limit)
    if state is not None:
        query = query.where(signups.c.state == state)
    if before_id is not None:
        query = query.where(signups.c.id < before_id)
    return list(connection.execute(query))
