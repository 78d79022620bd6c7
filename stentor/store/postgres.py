"""PostgreSQL: how connections are made, what their errors mean, and how a schema is found, made and brought up to date.

Stentor keeps to one schema of the database (``STENTOR_DATABASE_SCHEMA``); what lies in others is never looked at.
"""

import re
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.dialects import registry
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool, QueuePool

from stentor.core.errors import StentorError
from stentor.core.lazy import load
from stentor.store.asyncpg_dialect import LinkConnection, LinkLost, LinkModule
from stentor.store.schema import HEAD, PRODUCT
from stentor.store.settings import StoreSettings

# Advisory locks are pairs of numbers that hold within one database: this one, and the schema's name hashed.
LOCK_CLASS = 0x53746E74
MIGRATE_S = 600.0
MIGRATE_IDLE_S = 60.0
OLDEST_SERVER = 14
IDLE_IN_TRANSACTION_S = 3.0

registry.register("postgresql.stentor", "stentor.store.asyncpg_dialect", "BlockingDialect")

_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")

# Classes and codes of https://www.postgresql.org/docs/current/errcodes-appendix.html that speak of the whole store.
_CODES = {
    "25006": "the database is read-only (a standby?)",
    "25P03": "the database ended a transaction that lasted too long",
    "28000": "the database refuses this user",
    "28P01": "the database refuses this user's password",
    "3D000": "the database doesn't exist",
    "42501": "the database user lacks a right",
    "53100": "the database's disk is full",
    "53200": "the database is out of memory",
    "53300": "the database has no connection left",
    "57014": "the database doesn't answer in time",
    "57P01": "the database is shutting down",
    "57P02": "the database has crashed",
    "57P03": "the database is starting or stopping",
}
_CLASSES = {
    "08": "the connection to the database was lost",
    "53": "the database lacks resources",
    "57": "the database was interrupted",
    "58": "the database reports an input/output error",
    "XX": "the database reports damage",
}


def _driver_error(error: BaseException) -> BaseException:
    """asyncpg's own error, or the link's, behind those of SQLAlchemy."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    if isinstance(error, LinkModule.Error) and error.__cause__ is not None:
        return error.__cause__
    return error


def error_code(error: BaseException) -> str | None:
    """PostgreSQL's SQLSTATE behind a driver or SQLAlchemy error, or None."""
    code = getattr(_driver_error(error), "sqlstate", None)
    return None if code is None else str(code)


def find_problem(error: BaseException) -> str | None:
    """Why the store as a whole fails, in words for a person; None if ``error`` is about one statement only."""
    if isinstance(error, PoolTimeout):
        return "all connections to the database are in use"
    error = _driver_error(error)
    if isinstance(error, LinkLost):
        return str(error)
    code = error_code(error)
    if code is None or (code not in _CODES and code[:2] not in _CLASSES):
        return None
    return _CODES.get(code) or _CLASSES[code[:2]]


def find_schema(settings: StoreSettings) -> str:
    """The schema's name. Raises StentorError for one that would need quoting."""
    if not _SCHEMA_NAME.fullmatch(settings.schema) or settings.schema.startswith("pg_"):
        raise StentorError(
            f"STENTOR_DATABASE_SCHEMA is {settings.schema!r}. Use lower-case letters, digits and underscores."
        )
    return settings.schema


def describe(url: str) -> str:
    """The address without its password, for people."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = re.sub(r"(?i)(password|passfile)=[^&]*", r"\1=***", parts.query)
    return urlunsplit((parts.scheme, f"{user.partition(':')[0]}{at}{host}", parts.path, query, ""))


def link_of(connection: Connection) -> LinkConnection:
    """The driver's own connection, for statements that are worth going past SQLAlchemy."""
    driver: LinkConnection = connection.connection.driver_connection  # type: ignore[assignment]
    return driver


def end_transaction(connection: Connection) -> None:
    """Commit what was begun on the driver's own connection, past SQLAlchemy."""
    if connection.in_transaction():  # something went through it nonetheless: the two are one
        connection.commit()
    else:
        link_of(connection).commit()


def undo_transaction(connection: Connection) -> None:
    """Leave no trace of what was begun so."""
    if connection.in_transaction():
        connection.rollback()
    else:
        link_of(connection).rollback()


def _make_engine(
    settings: StoreSettings, deadline_s: float, begin: str, pool: dict[str, Any], idle_s: float = 0.0
) -> Engine:
    server_settings = {
        "application_name": "stentor",
        "search_path": find_schema(settings),
        # A node that stopped in the middle of a transaction must not hold the others up.
        "idle_in_transaction_session_timeout": str(int((idle_s or IDLE_IN_TRANSACTION_S) * 1000)),
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "3",
        "tcp_keepalives_count": "3",
        "jit": "off",
        "max_parallel_workers_per_gather": "0",  # a report must not take all processors from those who settle
    }
    if settings.durability == "process":
        server_settings["synchronous_commit"] = "off"
    address = {"dsn": settings.url, "server_settings": server_settings}
    engine = create_engine("postgresql+stentor://", connect_args={"deadline_s": deadline_s, "address": address}, **pool)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if not link_of(connection).link.raw.is_in_transaction():  # a lane's group has begun its own
            connection.exec_driver_sql(begin)

    return engine


def writer_engine(settings: StoreSettings, deadline_s: float = 0.0) -> Engine:
    """The engine behind the one writing connection of this process."""
    return _make_engine(settings, deadline_s or settings.answer_timeout_s, "BEGIN", {"poolclass": NullPool})


def reader_engine(settings: StoreSettings) -> Engine:
    """The engine behind the reading connections; each read sees one snapshot and can't write."""
    pool = {
        "poolclass": QueuePool,
        "pool_size": settings.pool_size,
        "max_overflow": settings.pool_overflow + 1,
        "pool_timeout": settings.answer_timeout_s,
    }
    begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    return _make_engine(settings, settings.answer_timeout_s * 6, begin, pool)


def open_schema(settings: StoreSettings) -> None:
    """Make the schema, or bring it to this code's revision: one server at a time, in one transaction.

    Raises StentorError with what to do: no connection, a foreign schema, one of a newer version.
    """
    schema = find_schema(settings)
    # What makes the tables is loaded within the transaction, which a machine that is busy takes its time for.
    engine = _make_engine(settings, MIGRATE_S, "BEGIN", {"poolclass": NullPool}, MIGRATE_IDLE_S)
    try:
        with engine.begin() as connection:
            lock = text("SELECT pg_advisory_xact_lock(:class, hashtext(:name))")
            connection.execute(lock, {"class": LOCK_CLASS, "name": schema})
            current = find_revision(connection, settings)
            if current != HEAD:
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
                load("stentor.store.migrate").upgrade(connection, current)
    except (DBAPIError, LinkLost) as error:
        raise StentorError(explain(settings, error)) from error
    finally:
        engine.dispose()


class Look(NamedTuple):
    """What a schema is seen to be."""

    revision: str | None
    version: str
    size_bytes: int


def look(settings: StoreSettings) -> Look:
    """The schema's state, looked at without changing anything. Raises StentorError where it can't be."""
    engine = _make_engine(settings, settings.answer_timeout_s, "BEGIN READ ONLY", {"poolclass": NullPool})
    size = text(
        "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relkind IN ('r', 'p')"
    )
    try:
        with engine.connect() as connection:
            revision = find_revision(connection, settings)
            version = connection.execute(text("SHOW server_version")).scalar_one()
            size_bytes = connection.execute(size, {"schema": settings.schema}).scalar_one()
        return Look(revision, str(version), int(size_bytes))
    except (DBAPIError, LinkLost) as error:
        raise StentorError(explain(settings, error)) from error
    finally:
        engine.dispose()


def find_revision(connection: Connection, settings: StoreSettings) -> str | None:
    """The revision of the schema, None for a missing or empty one. Raises StentorError for one that isn't ours."""
    schema = find_schema(settings)
    version = (connection.dialect.server_version_info or (0,))[0]
    if int(version) < OLDEST_SERVER:
        raise StentorError(f"{describe(settings.url)} is PostgreSQL {version}; Stentor needs {OLDEST_SERVER} or newer.")
    query = text(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = :schema AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY c.relname"
    )
    tables = set(connection.execute(query, {"schema": schema}).scalars())
    if not tables:
        return None
    if not {"meta", "alembic_version"} <= tables or not _is_ours(connection):
        raise StentorError(
            f"The schema {schema} of {describe(settings.url)} holds tables that aren't Stentor's "
            f"({', '.join(sorted(tables)[:5])}) and was left untouched. Give Stentor a schema of its own with "
            "STENTOR_DATABASE_SCHEMA; data of other servers comes in by `stentor import`."
        )
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return None if revision is None else str(revision)


def _is_ours(connection: Connection) -> bool:
    columns = text(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass('meta') AND attname IN ('name', 'value')"
    )
    if connection.execute(columns).scalar_one() != 2:
        return False
    value = connection.execute(text("SELECT value FROM meta WHERE name = 'product'")).scalar_one_or_none()
    return bool(value == PRODUCT)


def explain(settings: StoreSettings, error: BaseException) -> str:
    """Why the database can't be used, and what to do about it."""
    problem = find_problem(error) or str(_driver_error(error)).partition("\n")[0]
    code = error_code(error) or ""
    advice = {
        "28000": "Check the user and the server's pg_hba.conf.",
        "28P01": "Check the user and the password in STENTOR_DATABASE_URL.",
        "3D000": "Make it with `createdb`, or name another one in STENTOR_DATABASE_URL.",
        "42501": "Grant it: the user has to make the schema, or own it.",
        "53300": "Raise its max_connections, or lower STENTOR_DATABASE_POOL_SIZE.",
    }.get(code, "Check that it runs and is reached from here; `stentor doctor` looks again.")
    return f"Can't open the database {describe(settings.url)}: {problem}. {advice}"
