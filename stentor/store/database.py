"""The database: opened once by the node authority, read by many, written by one thread."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import BigInteger, Connection, Engine, Text, cast
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError

from stentor.core.errors import StentorError, StoreUnavailable
from stentor.core.ids import new_uuid7
from stentor.core.lazy import load
from stentor.store import driver
from stentor.store.lane import Delivered, Lane
from stentor.store.lock import LOCK_NAME, DataLock
from stentor.store.schema import HEAD, PRODUCT, meta
from stentor.store.settings import StoreSettings
from stentor.store.writer import Writer

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")


class Database:
    """All durable state. ``open`` makes, checks and migrates it; one server at a time may hold it."""

    def __init__(self, path: Path, locks: list[DataLock], writer: Writer, readers: Engine, reader_count: int) -> None:
        self.path = path
        self._locks = locks
        self._writer = writer
        self._readers = readers
        self._threads = ThreadPoolExecutor(reader_count, thread_name_prefix="store-reader")
        self._closed = False

    @classmethod
    def open(cls, settings: StoreSettings) -> "Database":
        """Lock the data directory, open or make the database, bring it to this code's schema, start the writer.

        Blocks; call it before the event loop or in a thread. Raises StentorError with what to do: another server holds
        the data, the directory can't be written, the file is foreign, damaged, or newer than this code.
        """
        _refuse_other_systems(settings.url)
        path = driver.database_path(settings)
        locks = _lock(settings.data_dir, path)
        try:
            writer = _open_writer(path, settings)
        except BaseException:
            for lock in locks:
                lock.release()
            raise
        return cls(path, locks, writer, driver.reader_engine(path, settings), settings.readers)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on a read-only connection, in a thread, on one consistent snapshot."""
        if self._closed:
            raise StoreUnavailable("the database is closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read_here, work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a savepoint of its own within the next group commit; returns when it is durable.

        What ``work`` raises is raised here and undoes ``work`` alone. Raises StoreUnavailable if the group failed.
        ``work`` runs on the writer's thread and must not wait for anything.
        """
        return await self._writer.submit(work, maintenance=False)

    async def maintain(self, work: Callable[[Connection], T]) -> T:
        """As :meth:`write`, but after everything else that waits. ``work`` should take 5 ms at most: slice it."""
        return await self._writer.submit(work, maintenance=True)

    def lane(
        self,
        work: Callable[[Connection, list[A]], list[B]],
        delivered: Delivered[A, B] | None = None,
    ) -> Lane[A, B]:
        """A lane for many equal small writes, served before everything else (:class:`~stentor.store.lane.Lane`)."""
        return self._writer.lane(work, delivered)

    def problem(self) -> str | None:
        """Why the store can't be written now, in words for a person, or None. Costs nothing."""
        return "the database is closed" if self._closed else self._writer.problem()

    def queued_writes(self) -> int:
        """How many writes wait for the next commit. Costs nothing."""
        return self._writer.depth()

    def close(self) -> None:
        """Write what is queued, then let go of everything. Does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        self._threads.shutdown(wait=True)
        self._readers.dispose()  # before the writer: the last connection to close tidies the log away
        self._writer.close()
        for lock in self._locks:
            lock.release()

    def _read_here(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._readers.connect() as connection:
                return work(connection)
        except (DBAPIError, driver.module.Error) as error:
            problem = driver.find_problem(error)
            if problem is None:
                raise
            raise StoreUnavailable(problem) from error


def _refuse_other_systems(url: str) -> None:
    scheme = url.partition("://")[0] if "://" in url else "sqlite"
    if scheme != "sqlite":
        raise StentorError(
            f"STENTOR_DATABASE_URL starts with {scheme}://, which this version can't use. "
            "Leave it empty for the database in the data directory, or give sqlite://PATH."
        )


def _lock(data_dir: Path, path: Path) -> list[DataLock]:
    for directory in (data_dir, path.parent):
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StentorError(
                f"Can't make the directory {directory}: {error.strerror}. "
                "Make it for the server's user, or choose another one with STENTOR_DATA_DIR."
            ) from error
    locks = [DataLock.acquire(data_dir / LOCK_NAME, data_dir)]
    if path.parent.resolve() != data_dir.resolve():
        try:
            locks.append(DataLock.acquire(path.with_name(path.name + ".lock"), path))
        except BaseException:
            locks[0].release()
            raise
    return locks


def _open_writer(path: Path, settings: StoreSettings) -> Writer:
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
    return Writer(engine, connection, path, settings.busy_timeout_s)


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
