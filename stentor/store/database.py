"""The database: opened once by the node authority, read by many, written by one thread."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from stentor.core.errors import StentorError, StoreUnavailable
from stentor.core.lazy import load
from stentor.store import driver, sqlite_file
from stentor.store.lane import Delivered, Lane
from stentor.store.lock import LOCK_NAME, DataLock
from stentor.store.settings import StoreSettings
from stentor.store.writer import Writer

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")


class Database:
    """All durable state. ``open`` makes, checks and migrates it; one server at a time may hold a data directory.

    ``place`` says where the database is, for people: a path, or an address without its password.
    """

    def __init__(self, place: str, locks: list[DataLock], writer: Writer, readers: Engine, reader_count: int) -> None:
        """``readers`` has a connection for each of ``reader_count`` threads, and one more (:meth:`study`)."""
        self.place = place
        self._locks = locks
        self._writer = writer
        self._readers = readers
        self._threads = ThreadPoolExecutor(reader_count, thread_name_prefix="store-reader")
        self._study = ThreadPoolExecutor(1, thread_name_prefix="store-study")
        self._closed = False

    @classmethod
    def open(cls, settings: StoreSettings) -> "Database":
        """Lock the data directory, open or make the database, bring it to this code's schema, start the writer.

        Blocks; call it before the event loop or in a thread. Raises StentorError with what to do: another server holds
        the data, the directory can't be written, the file is foreign, damaged, or newer than this code.
        """
        locks = _lock(settings)
        try:
            if settings.is_postgres:
                postgres = load("stentor.store.postgres")
                writer = load("stentor.store.postgres_writer").open_writer(settings)
                count = settings.pool_size + settings.pool_overflow
                return cls(postgres.describe(settings.url), locks, writer, postgres.reader_engine(settings), count)
            path = driver.database_path(settings)
            writer = sqlite_file.open_writer(path, settings)
            return cls(str(path), locks, writer, driver.reader_engine(path, settings), settings.readers)
        except BaseException:
            for lock in locks:
                lock.release()
            raise

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return Path(self.place)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on a read-only connection, in a thread, on one consistent snapshot."""
        if self._closed:
            raise StoreUnavailable("the database is closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read_here, work)

    async def study(self, work: Callable[[Connection], T]) -> T:
        """As :meth:`read`, for what reads much: one after the other, so that neither short reads nor those who settle
        have to share the machine with more than one of them.
        """
        if self._closed:
            raise StoreUnavailable("the database is closed")
        return await asyncio.get_running_loop().run_in_executor(self._study, self._read_here, work)

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

    # -- among other nodes (PostgreSQL) --------------------------------------------------------------------------------

    @property
    def is_shared(self) -> bool:
        """Whether other servers may use it at the same time."""
        return self._writer.node_id != ""

    @property
    def node_id(self) -> str:
        """What this node is called among the others."""
        return self._writer.node_id

    @property
    def epoch(self) -> int:
        """Which of the node's lives this is: what was borrowed in an earlier one is lost."""
        return self._writer.epoch

    @property
    def lease_until_s(self) -> float:
        """Until when, on the monotonic clock, what this node has borrowed is surely its own."""
        return self._writer.lease_until_s

    async def reap_nodes(self) -> None:
        """Take back what nodes have borrowed that were silent for too long."""
        await self._writer.submit(self._writer.reap, maintenance=False)

    def close(self) -> None:
        """Write what is queued, then let go of everything. Does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        self._threads.shutdown(wait=True)
        self._study.shutdown(wait=True)
        self._readers.dispose()  # before the writer: the last connection to close tidies the log away
        self._writer.close()
        for lock in self._locks:
            lock.release()

    def _read_here(self, work: Callable[[Connection], T]) -> T:
        again = True
        while True:
            try:
                with self._readers.connect() as connection:
                    return work(connection)
            except (SQLAlchemyError, driver.module.Error, driver.FileGone) as error:
                problem = self._writer.find_problem(error)
                if problem is None:
                    raise
                if again and getattr(error, "connection_invalidated", False):
                    again = False  # a connection of the pool that died while nobody used it
                    continue
                raise StoreUnavailable(problem) from error


def _lock(settings: StoreSettings) -> list[DataLock]:
    data_dir = settings.data_dir
    path = data_dir / LOCK_NAME if settings.is_postgres else driver.database_path(settings)
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
