"""The SQLite driver: which build, how connections are made, and what its errors mean to a person."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from stentor.core.lazy import load
from stentor.store.settings import StoreSettings

T = TypeVar("T")

# Before this version two connections that write and checkpoint at once can corrupt a write-ahead log.
WAL_SAFE_VERSION = (3, 51, 3)


def _choose_module() -> ModuleType:
    try:
        return load("pysqlite3.dbapi2")  # a newer SQLite than most systems have
    except ImportError:
        return sqlite3


module = _choose_module()
version: str = module.sqlite_version

# Primary result codes (https://sqlite.org/rescode.html) that speak of the file and its surroundings.
_STORE_CODES = {
    5: "another process holds the database locked",
    6: "another process holds the database locked",
    7: "the server is out of memory",
    8: "the database is read-only",
    10: "the disk reports an input/output error",
    11: "the database file is damaged",
    13: "the disk is full",
    14: "the database file can't be opened",
    15: "another process holds the database locked",
    26: "the file is not a database",
}
# After these the connection itself may be unusable: take a new one.
_REOPEN_CODES = {8, 10, 11, 14, 26}


def is_wal_safe() -> bool:
    """Whether this build of SQLite has the fix for the write-ahead log (doctor reports it)."""
    return tuple(int(part) for part in version.split(".")) >= WAL_SAFE_VERSION


def error_code(error: BaseException) -> int | None:
    """SQLite's primary result code behind a driver or SQLAlchemy error, or None."""
    if isinstance(error, DBAPIError):
        error = error.orig if error.orig is not None else error
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


class FileGone(Exception):
    """The database isn't where it was opened: what is written into it now would last for nobody."""


class OpenFile:
    """The file at ``path`` as it is now, to be recognised later. Raises OSError where there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = self._identify()

    def _identify(self) -> tuple[int, int]:
        found = os.stat(self._path)
        return found.st_dev, found.st_ino

    def check(self) -> None:
        """Raises FileGone where the file was moved, deleted or replaced."""
        try:
            if self._identify() == self._identity:
                return
        except FileNotFoundError:
            pass
        except OSError:
            return  # nobody can tell; SQLite says what it finds
        raise FileGone("the database file was moved, deleted or replaced while the server runs")


def find_problem(error: BaseException) -> str | None:
    """Why the store as a whole fails, in words for a person; None if ``error`` is about one statement only."""
    if isinstance(error, FileGone):
        return str(error)
    code = error_code(error)
    return None if code is None else _STORE_CODES.get(code)


def needs_reopen(error: BaseException) -> bool:
    """Whether the connection that raised ``error`` should be replaced by a new one."""
    return error_code(error) in _REOPEN_CODES


def database_path(settings: StoreSettings) -> Path:
    """The database file that the settings name."""
    url = settings.url
    if not url:
        return settings.data_dir / "stentor.db"
    return Path(url.removeprefix("sqlite://").partition("?")[0]) if url.startswith("sqlite://") else Path(url)


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(os.path.abspath(path))}?mode={mode}"


def connect(path: Path, mode: str, timeout_s: float) -> Any:
    """A bare driver connection; transactions are begun and ended by whoever holds it. ``mode``: ro, rw or rwc."""
    return module.connect(
        _uri(path, mode),
        uri=True,
        timeout=timeout_s,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )


def _connect_writer(path: Path, settings: StoreSettings) -> Any:
    connection = connect(path, "rwc", settings.busy_timeout_s)
    try:
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise module.OperationalError(f"the file system of {path} can't hold a write-ahead log (mode {mode})")
        connection.execute(f"PRAGMA synchronous={'FULL' if settings.durability == 'power' else 'NORMAL'}")
        connection.execute("PRAGMA wal_autocheckpoint=0")  # the writer checkpoints when nobody waits
        connection.execute("PRAGMA journal_size_limit=67108864")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA cache_size=-16000")
        connection.execute("PRAGMA temp_store=MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_reader(path: Path, settings: StoreSettings) -> Any:
    connection = connect(path, "ro", settings.busy_timeout_s)
    connection.execute("PRAGMA query_only=ON")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    return connection


def raw_of(connection: Connection) -> Any:
    """The driver's own connection, for statements that are worth going past SQLAlchemy."""
    return connection.connection.driver_connection


def writer_engine(path: Path, settings: StoreSettings) -> Engine:
    """The engine behind the one writing connection; each transaction takes the write lock when it begins."""
    engine = create_engine(
        "sqlite://", module=module, creator=lambda: _connect_writer(path, settings), poolclass=NullPool
    )

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        raw = raw_of(connection)
        if not raw.in_transaction:  # it is not run_in_transaction's
            raw.execute("BEGIN IMMEDIATE")

    return engine


def run_in_transaction(connection: Connection, work: Callable[[Connection], T]) -> T:
    """Run ``work`` in a transaction of the driver's own. When it raises, the transaction is still open.

    SQLAlchemy begins its own when ``work`` runs a statement through it; the two are then one.
    """
    raw = raw_of(connection)
    raw.execute("BEGIN IMMEDIATE")
    result = work(connection)
    end_transaction(connection)
    return result


def end_transaction(connection: Connection) -> None:
    """Commit what :func:`run_in_transaction` began."""
    if connection.in_transaction():
        connection.commit()
    else:
        raw_of(connection).execute("COMMIT")


def reader_engine(path: Path, settings: StoreSettings) -> Engine:
    """The engine behind the reading connections: read-only by mode and by pragma; each read sees one snapshot."""
    file = OpenFile(path)

    def connect_reader() -> Any:
        file.check()  # another file in its place is none of ours
        return _connect_reader(path, settings)

    engine = create_engine(
        "sqlite://",
        module=module,
        creator=connect_reader,
        poolclass=QueuePool,
        pool_size=settings.readers + 1,
        max_overflow=0,
    )

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        raw_of(connection).execute("BEGIN")

    return engine
