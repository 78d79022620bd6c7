"""The one thread that writes: work of many callers shares one commit, and settlements go first.

A group is a transaction: everything that waited when the writer came round. The callers' futures resolve once it is
durable, in one call into their loop. When a group can't be committed, nothing of it is written, all its futures get
:class:`StoreUnavailable`, and the writer tries again on its own until the cause is gone.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Transaction, text
from sqlalchemy.exc import DBAPIError

from stentor.core.errors import StoreUnavailable
from stentor.store import driver
from stentor.store.lane import Delivered, Job, Lane

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

SLICE_S = 0.005  # how long other writes may share one transaction before settlements get their turn
# Pages of the write-ahead log (about 8 MB) after which it is copied back even under load, and then written from its
# start again: a sync of blocks that exist costs less than half of one that makes the file grow.
CHECKPOINT_PAGES = 2000
GROUP_PAGES = 4  # what one settlement changes: a page of the table and of its index, and a bucket or two
PROBE_S = 0.25  # how often a failed store is tried again while nobody asks
IDLE_S = 0.25
LOOK_S = 0.1  # how often, while it writes, it is looked whether the file is still there


class Writer:
    """Owner of the writing connection. Everything but ``signal`` and the queues belongs to its thread."""

    node_id = ""
    epoch = 0
    lease_until_s = float("inf")

    def __init__(
        self, engine: Engine, connection: Connection, busy_timeout_s: float, file: driver.OpenFile | None = None
    ) -> None:
        """``file`` is what ``connection`` has open, where it is a file."""
        self._engine = engine
        self._file = file
        self._look_s = 0.0
        self._connection: Connection | None = connection
        self._busy_timeout_s = busy_timeout_s
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.signalled = False
        self._lanes: list[Lane[Any, Any]] = []
        self._writes: deque[Job] = deque()
        self._maintenance: deque[Job] = deque()
        self._stopping = False
        self.closed = False
        self._problem: str | None = None
        self._pages_in_log = 0
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    # -- from any thread ------------------------------------------------------------------------------------------

    def signal(self) -> None:
        """Wake the writer. One token is enough for everything queued before it looks."""
        self.signalled = True
        self._wake.put(None)

    def lane(self, work: Callable[[Connection, list[A]], list[B]], delivered: Delivered[A, B] | None) -> Lane[A, B]:
        """A new lane; lanes go before all other writes, in the order they were made."""
        lane: Lane[A, B] = Lane(self, work, delivered)
        self._lanes = [*self._lanes, lane]
        return lane

    def submit(self, work: Callable[[Connection], T], *, maintenance: bool) -> "asyncio.Future[T]":
        """Queue one write of its own."""
        job = Job(work, asyncio.get_running_loop())
        (self._maintenance if maintenance else self._writes).append(job)
        self.signal()
        if self.closed:
            self.refuse_late()
        return job.future

    def problem(self) -> str | None:
        """Why the store can't be written now, or None."""
        return self._problem

    def depth(self) -> int:
        """How many writes wait for a commit, in lanes and alone."""
        return sum(lane.depth for lane in self._lanes) + len(self._writes) + len(self._maintenance)

    def close(self) -> None:
        """Write what is queued, copy the log back into the database, and end the thread."""
        self._stopping = True
        self.signal()
        self._thread.join()

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            stopping = False
            while not stopping:
                self._sleep()
                self.signalled = False
                stopping = self._stopping  # read before the queues are emptied: what came before close() is written
                self._look()
                while self._work_once():
                    pass
        except BaseException:
            # A defect: nobody may wait for a thread that is gone, and readiness has to say so.
            self._problem = "the writer has stopped because of a defect; restart the server"
            raise
        finally:
            self.closed = True
            self.refuse_late()
            self._let_go(truncate=self._problem is None)

    def _sleep(self) -> None:
        idle = PROBE_S if self._problem is not None else IDLE_S if self._pages_in_log else None
        try:
            self._wake.get(timeout=idle)
        except queue.Empty:
            if self._problem is not None:
                self._probe()
            else:
                self._checkpoint()

    def _look(self) -> None:
        """Now and then: whether the file is where it was."""
        now_s = time.monotonic()
        if self._file is not None and self._problem is None and now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            try:
                self._file.check()
            except driver.FileGone as error:
                self._fail(str(error))

    def _work_once(self) -> bool:
        """Do the most urgent thing; False when nothing waits."""
        for lane in self._lanes:
            batch = lane.take()
            if batch:
                self._do_lane(lane, batch)
                self._checkpoint_if_due()
                return True
        if self._writes:
            self._do_writes()
            return True
        if self._maintenance:
            self._do_one(self._maintenance.popleft())
            return True
        return False

    def _do_lane(self, lane: Lane[Any, Any], batch: list[tuple[Any, "asyncio.Future[Any]"]]) -> None:
        items = [item for item, _ in batch]
        try:
            results = self._transact(lambda connection: lane.work(connection, items), group=True)
        except StoreUnavailable as error:
            self._note_doubt(error, lane, batch)
            lane.resolve(batch, error)
            return
        except Exception as error:  # noqa: BLE001 - whatever a group fails with belongs to those who wait for it
            if len(batch) == 1:
                lane.resolve(batch, error)
            else:  # one bad item must not take the others with it
                for single in batch:
                    self._do_lane(lane, [single])
            return
        self._pages_in_log += GROUP_PAGES + len(items) // 2
        lane.resolve(batch, results)

    def _do_writes(self) -> None:
        """Other writes, each in a savepoint of its own, as many as fit in a slice."""
        taken = [self._writes.popleft()]
        done: list[tuple[Job, Any, BaseException | None]] = []

        def fill(connection: Connection) -> None:
            end = time.monotonic() + SLICE_S
            done.append((taken[0], *self._run_in_savepoint(connection, taken[0])))
            while self._writes and time.monotonic() < end:
                taken.append(self._writes.popleft())
                done.append((taken[-1], *self._run_in_savepoint(connection, taken[-1])))

        try:
            self._transact(fill)
        except Exception as error:  # noqa: BLE001 - see _do_lane
            for job in taken:
                job.resolve(None, error)
            return
        self._pages_in_log += GROUP_PAGES * len(done)
        for job, result, own_error in done:
            job.resolve(result, own_error)

    def _do_one(self, job: Job) -> None:
        try:
            result = self._transact(job.work)
        except Exception as error:  # noqa: BLE001 - see _do_lane
            job.resolve(None, error)
            return
        self._pages_in_log += 64
        job.resolve(result, None)

    def _transact(self, work: Callable[[Connection], T], *, group: bool = False) -> T:
        """Run ``work`` in one transaction and commit it. A store failure becomes StoreUnavailable.

        ``group``: it is a lane's, which stands beside those of other nodes and may be run again.
        """
        transaction: Transaction | None = None
        try:
            connection = self._get_connection()
            if group:  # SQLAlchemy's transaction would cost more than a settlement
                result = driver.run_in_transaction(connection, work)
            else:
                transaction = connection.begin()
                result = work(connection)
                transaction.commit()
        except BaseException as error:
            problem = self.find_problem(error)
            self._undo(transaction, lost=driver.needs_reopen(error))
            if problem is None:
                raise
            self._fail(problem)
            raise StoreUnavailable(problem) from error
        if self._problem is not None:
            self._recover()
        return result

    def _run_in_savepoint(self, connection: Connection, job: Job) -> tuple[Any, BaseException | None]:
        """The job's result or its own error; errors of the store itself are raised, they end the whole group."""
        savepoint = connection.begin_nested()
        try:
            result = job.work(connection)
            savepoint.commit()
        except Exception as error:
            if self.find_problem(error) is not None:
                raise
            savepoint.rollback()
            return None, error
        return result, None

    def reap(self, connection: Connection) -> None:
        """Nobody else uses this database."""

    # -- failing and coming back ----------------------------------------------------------------------------------

    def find_problem(self, error: BaseException) -> str | None:
        """Why the store as a whole fails, in words for a person; None if ``error`` is about one statement only."""
        return driver.find_problem(error)

    def _note_doubt(self, error: StoreUnavailable, lane: Lane[Any, Any], batch: Any) -> None:
        """A file on this machine leaves no doubt whether a group was written."""

    def _get_connection(self) -> Connection:
        if self._problem is not None and self._file is not None:
            self._file.check()
        if self._connection is None:
            self._connection = self._engine.connect()
            if self._problem is not None:
                self._wait_for_locks(PROBE_S / 5)
        return self._connection

    def _wait_for_locks(self, timeout_s: float) -> None:
        if self._connection is not None:
            raw = driver.raw_of(self._connection)
            raw.execute(f"PRAGMA busy_timeout={int(timeout_s * 1000)}")

    def _undo(self, transaction: Transaction | None, *, lost: bool) -> None:
        try:
            connection = self._connection
            if transaction is not None:
                transaction.rollback()
            elif connection is not None and connection.in_transaction():
                connection.rollback()
            if connection is not None and driver.raw_of(connection).in_transaction:
                driver.raw_of(connection).execute("ROLLBACK")
        except (DBAPIError, driver.module.Error):
            lost = True
        if lost:
            self._let_go(truncate=False)

    def _fail(self, problem: str) -> None:
        first = self._problem is None
        self._problem = problem
        if first:
            # Those who come while the store is known to fail shall hear so soon.
            self._wait_for_locks(PROBE_S / 5)

    def _recover(self) -> None:
        self._problem = None
        self._wait_for_locks(self._busy_timeout_s)

    def _probe(self) -> None:
        """Write one row that means nothing, to learn whether writing works again."""
        try:
            self._transact(_touch)
        except (StoreUnavailable, DBAPIError, driver.module.Error):
            return

    def _let_go(self, *, truncate: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            if truncate:
                raw = driver.raw_of(connection)
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
        except (DBAPIError, driver.module.Error):
            connection.invalidate()

    def refuse_late(self) -> None:
        """Whoever came after the last group: say so rather than leave them waiting."""
        gone = StoreUnavailable("the database is closed")
        for lane in self._lanes:
            while batch := lane.take():
                lane.resolve(batch, gone)
        for jobs in (self._writes, self._maintenance):
            while jobs:
                jobs.popleft().resolve(None, gone)

    # -- the log ---------------------------------------------------------------------------------------------------

    def _checkpoint_if_due(self) -> None:
        if self._pages_in_log >= CHECKPOINT_PAGES:
            self._checkpoint()

    def _checkpoint(self) -> None:
        self._pages_in_log = 0
        connection = self._connection
        if connection is None:
            return
        raw = driver.raw_of(connection)
        try:
            raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except driver.module.Error as error:
            # The commits are safe in the log; the next write will say whether the store is in trouble.
            if driver.needs_reopen(error):
                self._let_go(truncate=False)


def _touch(connection: Connection) -> None:
    connection.execute(
        text("INSERT INTO meta(name, value) VALUES ('written_us', :v) ON CONFLICT(name) DO UPDATE SET value = :v"),
        {"v": str(time.time_ns() // 1000)},
    )
