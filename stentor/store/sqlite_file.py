"""The SQLite file: whose it is, how it is made and brought up to date, and what to do when it can't be opened."""

import contextlib
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Connection, Text, cast
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError

from stentor.core.errors import StentorError
from stentor.core.ids import new_uuid7
from stentor.core.lazy import load
from stentor.store import driver
from stentor.store.schema import HEAD, PRODUCT, meta
from stentor.store.settings import StoreSettings
from stentor.store.writer import Writer


def open_writer(path: Path, settings: StoreSettings) -> Writer:
    """The writer of the database file, made or brought up to date if need be. Raises StentorError with what to do."""
    engine = driver.writer_engine(path, settings)
    connection: Connection | None = None
    # Ours alone from its first byte on, in a folder that may be open to others; log and shared memory follow its mode.
    with contextlib.suppress(OSError):  # SQLite says it better
        if not path.exists():
            path.touch(mode=0o600)
    try:
        current = _inspect(path, settings.busy_timeout_s)
        connection = engine.connect()
        with connection.begin():
            if current != HEAD:
                load("stentor.store.migrate").upgrade(connection, current)
            _count_start(connection)
    except (DBAPIError, driver.module.Error) as error:
        raise StentorError(_explain(path, error)) from error
    finally:
        if connection is not None and connection.in_transaction():
            connection.rollback()
    return Writer(engine, connection, settings.busy_timeout_s, driver.OpenFile(path))


def _count_start(connection: Connection) -> None:
    """Name the node once, and number this start: a lease of an earlier one is recognised as stale."""
    node = insert(meta).values(name="node_id", value=new_uuid7())
    connection.execute(node.on_conflict_do_nothing(index_elements=[meta.c.name]))
    start = insert(meta).values(name="epoch", value="1")
    following = cast(cast(meta.c.value, BigInteger) + 1, Text)
    connection.execute(start.on_conflict_do_update(index_elements=[meta.c.name], set_={"value": following}))


def _inspect(path: Path, timeout_s: float) -> str | None:
    """The revision of an existing database, None for a missing or empty one; looks without changing anything."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    raw = driver.connect(path, "ro", timeout_s)
    try:
        tables = {row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")}
        tables = {name for name in tables if not name.startswith("sqlite_")}
        if not tables:
            return None
        if not {"meta", "alembic_version"} <= tables or not _is_ours(raw):
            raise StentorError(
                f"{path} holds tables that aren't Stentor's ({', '.join(sorted(tables)[:5])}) and was left untouched. "
                "Point STENTOR_DATABASE_URL at a file of its own; data of other servers comes in by `stentor import`."
            )
        row = raw.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])
    finally:
        raw.close()


def _is_ours(raw: Any) -> bool:
    try:
        row = raw.execute("SELECT value FROM meta WHERE name = 'product'").fetchone()
    except driver.module.OperationalError as error:
        if driver.find_problem(error) is not None:
            raise
        return False
    return row is not None and row[0] == PRODUCT


def _explain(path: Path, error: BaseException) -> str:
    problem = driver.find_problem(error) or str(error).splitlines()[0]
    advice = {
        5: f"Find it with `fuser {path}` and end it.",
        8: "Give the server's user write access to the file and its directory, and check how the disk is mounted.",
        10: "Check that disk: its free space, quotas, limits on the size of files, and the kernel's log.",
        11: "Restore a backup; `stentor doctor` tells how far the damage goes.",
        13: "Free some space and start again; nothing was lost.",
        14: "Check the path and who may read and write there.",
        26: "Point STENTOR_DATABASE_URL at another file, or restore a backup.",
    }.get(driver.error_code(error) or 0, "See `stentor doctor`.")
    return f"Can't open the database {path}: {problem}. {advice}"
