"""Looking at a database without changing it, beside a running server or without one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from stentor.core.errors import StentorError
from stentor.core.lazy import load
from stentor.store import driver
from stentor.store.lock import find_holder
from stentor.store.schema import HEAD
from stentor.store.settings import StoreSettings

T = TypeVar("T")


class StoreStatus(msgspec.Struct, frozen=True):
    """What there is. ``revision`` None: no database yet. ``server_pid``: who holds the data directory.

    ``place`` is a path, or an address without its password; ``wal_bytes`` and ``wal_safe`` are None with PostgreSQL.
    """

    place: str
    size_bytes: int
    wal_bytes: int | None
    revision: str | None
    newest_revision: str
    system: str
    wal_safe: bool | None
    durability: str
    server_pid: int | None


def inspect_store(settings: StoreSettings) -> StoreStatus:
    """The status of the database that the settings name. Raises StentorError where it can't be read."""
    if settings.is_postgres:
        return _inspect_postgres(settings)
    path = driver.database_path(settings)
    return StoreStatus(
        place=str(path),
        size_bytes=_size(path),
        wal_bytes=_size(path.with_name(path.name + "-wal")),
        revision=_read(path, settings, _read_revision) if _size(path) else None,
        newest_revision=HEAD,
        system=f"SQLite {driver.version}",
        wal_safe=driver.is_wal_safe(),
        durability=settings.durability,
        server_pid=find_holder(settings.data_dir),
    )


def _inspect_postgres(settings: StoreSettings) -> StoreStatus:
    postgres = load("stentor.store.postgres")
    found = postgres.look(settings)
    return StoreStatus(
        place=postgres.describe(settings.url),
        size_bytes=found.size_bytes,
        wal_bytes=None,
        revision=found.revision,
        newest_revision=HEAD,
        system=f"PostgreSQL {found.version}",
        wal_safe=None,
        durability=settings.durability,
        server_pid=find_holder(settings.data_dir),
    )


def check_integrity(settings: StoreSettings) -> list[str]:
    """SQLite's own complaints about the file: damaged pages, rows that point nowhere. Empty: sound (or no file)."""
    if settings.is_postgres:
        return []  # PostgreSQL keeps its own house: amcheck and checksums are its operator's
    path = driver.database_path(settings)
    return _read(path, settings, _read_complaints) if _size(path) else []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(path: Path, settings: StoreSettings, look: Callable[[Any], T]) -> T:
    try:
        connection = driver.connect(path, "ro", settings.busy_timeout_s)
        try:
            return look(connection)
        finally:
            connection.close()
    except driver.module.Error as error:
        problem = driver.find_problem(error) or str(error)
        raise StentorError(f"Can't read the database {path}: {problem}.") from error


def _read_revision(connection: Any) -> str | None:
    held = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
    ).fetchone()
    if held is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def _read_complaints(connection: Any) -> list[str]:
    lines = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)").fetchall()]
    orphans = [
        f"a row of {row[0]} points to a missing row of {row[2]}"
        for row in connection.execute("PRAGMA foreign_key_check").fetchmany(20)
    ]
    return [line for line in lines if line != "ok"] + orphans
