"""The writer on PostgreSQL: the same groups, beside the writers of other nodes, and sure of what it has committed.

Every transaction begins by one statement that takes the schema's gate (lanes share it, everything else has it alone, so
that a check and the change after it are one step on all nodes, as they are with SQLite's one writer) and numbers the
group in the node's own row. The row fences: whoever lost their epoch commits nothing. And the number tells, when the
connection broke while committing, whether the group had been written.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Transaction, text
from sqlalchemy.exc import SQLAlchemyError

from stentor.core.errors import InDoubt, LeasesLost, StentorError, StoreUnavailable
from stentor.core.ids import new_uuid7
from stentor.store import postgres
from stentor.store.asyncpg_dialect import LinkLost, LinkModule
from stentor.store.lane import Lane
from stentor.store.settings import StoreSettings
from stentor.store.writer import Writer

T = TypeVar("T")

NODE_FILE = "node"
LEASE_S = 15.0
PROBE_DEADLINE_S = 1.0  # how long a database that is known to fail may keep anybody waiting
GATE_CLASS = postgres.LOCK_CLASS + 1

_START = """
WITH gate AS MATERIALIZED (SELECT pg_advisory_xact_lock{shared}({lock}, hashtext($1)))
UPDATE nodes SET group_no = $2, seen_us = now.us, lease_until_us = now.us + {lease}
FROM gate, (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) AS now
WHERE id = $3 AND epoch = $4
"""
_ALONE = _START.format(shared="", lock=GATE_CLASS, lease=int(LEASE_S * 1_000_000))

_REGISTER = text("""
INSERT INTO nodes (id, epoch, group_no, address, started_us, seen_us, lease_until_us)
VALUES (:id, 1, 0, '', :now, :now, 0)
ON CONFLICT (id) DO UPDATE SET epoch = nodes.epoch + 1, started_us = :now, seen_us = :now, lease_until_us = 0
RETURNING epoch, group_no
""")
_SILENT = text("""
SELECT id FROM nodes WHERE id <> :me AND lease_until_us < (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
AND EXISTS (SELECT 1 FROM leases WHERE leases.node_id = nodes.id) ORDER BY id
""")
_END_LIFE = text("UPDATE nodes SET epoch = epoch + 1 WHERE id = :id")
_GATE = text("SELECT pg_advisory_xact_lock(:lock, hashtext(:name))")
_RETURN_ALL = text("""
UPDATE bucket SET leased = leased - mine.amount FROM leases mine
WHERE mine.node_id = :id AND bucket.kind = mine.kind AND bucket.subject = mine.subject
AND bucket."window" = mine."window" AND bucket.window_start = mine.window_start
""")
_FORGET_ALL = text("DELETE FROM leases WHERE node_id = :id")
_RESIGN = text("UPDATE leaders SET until_us = 0 WHERE node_id = :id")
_EPOCH = text("SELECT epoch FROM nodes WHERE id = :id")
# Waits for whatever a lost connection may still be committing: it holds the row.
_LAST_GROUP = text("SELECT group_no FROM nodes WHERE id = :id FOR UPDATE")


class _Fenced(Exception):
    """Another life of this node has begun, or the others have given this one up."""


class _Doubt:
    """A group whose commit got no answer, until the database says what became of it."""

    __slots__ = ("group_no", "results", "waiting")

    def __init__(self, group_no: int, results: Any) -> None:
        self.group_no = group_no
        self.results = results
        self.waiting: tuple[Lane[Any, Any], Any] | None = None


class PostgresWriter(Writer):
    """See the module. Made by :func:`open_writer`."""

    def __init__(self, settings: StoreSettings, node_id: str) -> None:
        """Connect and begin a new life of the node. Raises DBAPIError."""
        self._schema = settings.schema
        self._begun = False
        self._doubt: _Doubt | None = None
        self._probing = postgres.writer_engine(settings, PROBE_DEADLINE_S)
        self.node_id = node_id
        self._shared = _shared_start(settings.schema, node_id)
        engine = postgres.writer_engine(settings)
        connection = engine.connect()
        self.epoch, self._group_no = self._register(connection)
        super().__init__(engine, connection, settings.answer_timeout_s)

    def _register(self, connection: Connection) -> tuple[int, int]:
        now_us = time.time_ns() // 1000
        with connection.begin():
            connection.execute(_GATE, {"lock": GATE_CLASS, "name": self._schema})
            epoch, group_no = connection.execute(_REGISTER, {"id": self.node_id, "now": now_us}).one()
            give_up_leases(connection, self.node_id)
        return epoch, group_no

    def find_problem(self, error: BaseException) -> str | None:
        """See :class:`Writer`."""
        return postgres.find_problem(error)

    def _transact(self, work: Callable[[Connection], T], *, group: bool = False) -> T:
        again = self._problem is None
        while True:
            try:
                result = self._try(work, group)
            except _Fenced as error:
                self._begin_new_life()
                if group:
                    raise LeasesLost from error
            except Exception as error:
                if not again or not self._may_repeat(error, group):
                    raise self._give_up(error) from error
                again = False  # nothing of it was written: a lost connection needs no more than a new one
            else:
                if self._problem is not None:
                    self._recover()
                return result

    def _may_repeat(self, error: Exception, group: bool) -> bool:
        return (group or not self._begun) and postgres.find_problem(error) is not None

    def _give_up(self, error: Exception) -> Exception:
        """What to say of a group that wasn't written."""
        if isinstance(error, LeasesLost):
            return error  # the store itself is well
        problem = error.problem if isinstance(error, StoreUnavailable) else postgres.find_problem(error)
        if problem is None:
            return error
        self._fail(problem)
        return error if isinstance(error, StoreUnavailable) else StoreUnavailable(problem)

    def _try(self, work: Callable[[Connection], T], group: bool) -> T:
        self._begun = False
        begun_s = time.monotonic()
        transaction: Transaction | None = None
        try:
            connection = self._get_connection()
            if self._doubt is not None:
                self._clear_doubt(connection)
            if not group:  # SQLAlchemy's transaction costs as much as a settlement
                transaction = connection.begin()
            self._start(connection, group)
            self._begun = True
            result = work(connection)
        except BaseException as error:
            self._undo(transaction, lost=postgres.find_problem(error) is not None)
            raise
        try:
            if transaction is None:
                postgres.end_transaction(connection)
            else:
                transaction.commit()
        except Exception as error:
            problem = postgres.find_problem(error)
            self._undo(transaction, lost=True)
            if problem is None or not self._was_written(problem, result):
                raise
        self.lease_until_s = begun_s + LEASE_S
        return result

    def _start(self, connection: Connection, group: bool) -> None:
        self._group_no += 1
        link = postgres.link_of(connection).link
        if group:  # with the transaction's begin in one round trip
            tag = link.execute(self._shared.format(group_no=self._group_no, epoch=self.epoch))
        else:
            tag = link.fetch(_ALONE, (self._schema, self._group_no, self.node_id, self.epoch))[2]
        if tag != "UPDATE 1":
            raise _Fenced

    def _begin_new_life(self) -> None:
        self.epoch, self._group_no = self._register(self._get_connection())

    def reap(self, connection: Connection) -> None:
        """End the lives of nodes that were silent for too long, and put back what they had borrowed."""
        for node_id in connection.execute(_SILENT, {"me": self.node_id}).scalars().all():
            connection.execute(_END_LIFE, {"id": node_id})
            give_up_leases(connection, node_id)

    # -- failing and coming back ---------------------------------------------------------------------------------------

    def _was_written(self, problem: str, results: Any) -> bool:
        """Whether the group just committed is in the database. Raises InDoubt if it can't be asked."""
        try:
            with self._probing.connect() as connection, connection.begin():
                return self._has_group(connection, self._group_no)
        except (SQLAlchemyError, LinkLost) as error:
            self._doubt = _Doubt(self._group_no, results)
            raise InDoubt(problem) from error

    def _has_group(self, connection: Connection, group_no: int) -> bool:
        return bool(connection.execute(_LAST_GROUP, {"id": self.node_id}).scalar_one() >= group_no)

    def _note_doubt(self, error: StoreUnavailable, lane: Lane[Any, Any], batch: Any) -> None:
        if isinstance(error, InDoubt) and self._doubt is not None:
            self._doubt.waiting = (lane, batch)

    def _clear_doubt(self, connection: Connection) -> None:
        """Learn what became of the group in doubt, before anything else is written."""
        doubt = self._doubt
        assert doubt is not None
        with connection.begin():
            written = self._has_group(connection, doubt.group_no)
        self._doubt = None
        if doubt.waiting is not None:
            lane, batch = doubt.waiting
            lane.resolve(batch, doubt.results if written else StoreUnavailable("it was lost while writing"))

    def _get_connection(self) -> Connection:
        if self._connection is None:
            self._connection = (self._engine if self._problem is None else self._probing).connect()
        return self._connection

    def _wait_for_locks(self, timeout_s: float) -> None:
        if self._connection is not None:
            postgres.link_of(self._connection).link.deadline_s = max(timeout_s, PROBE_DEADLINE_S)

    def _undo(self, transaction: Transaction | None, *, lost: bool) -> None:
        try:
            if transaction is not None and not lost:
                transaction.rollback()
            elif self._connection is not None and not lost:
                postgres.undo_transaction(self._connection)
            if self._connection is not None and self._connection.in_transaction():
                lost = True
        except (SQLAlchemyError, LinkModule.Error, LinkLost):
            lost = True
        if lost:
            self._let_go(truncate=False)

    def _let_go(self, *, truncate: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            if truncate:  # the last thing that is done
                with connection.begin():
                    connection.execute(_GATE, {"lock": GATE_CLASS, "name": self._schema})
                    if self._is_alive(connection):
                        give_up_leases(connection, self.node_id)
                connection.close()
            else:
                connection.invalidate()
                connection.close()
        except (SQLAlchemyError, LinkLost):
            return

    def _is_alive(self, connection: Connection) -> bool:
        return connection.execute(_EPOCH, {"id": self.node_id}).scalar_one_or_none() == self.epoch

    def _checkpoint(self) -> None:
        self._pages_in_log = 0  # PostgreSQL sees to its own log


def open_writer(settings: StoreSettings) -> PostgresWriter:
    """Bring the schema up to date and begin a life of this node. Raises StentorError with what to do."""
    postgres.open_schema(settings)
    try:
        return PostgresWriter(settings, _node_id(settings.data_dir))
    except (SQLAlchemyError, LinkLost) as error:
        raise StentorError(postgres.explain(settings, error)) from error


def _shared_start(schema: str, node_id: str) -> str:
    """The beginning of a lane's group, but for its number and the epoch: one text of two statements."""
    statement = _START.format(shared="_shared", lock=GATE_CLASS, lease=int(LEASE_S * 1_000_000))
    for place, value in (("$1", _quoted(schema)), ("$2", "{group_no}"), ("$3", _quoted(node_id)), ("$4", "{epoch}")):
        statement = statement.replace(place, value)
    return "BEGIN;" + statement


def _quoted(text: str) -> str:
    """A literal, also for :meth:`str.format`."""
    return "'" + text.replace("'", "''").replace("{", "{{").replace("}", "}}") + "'"


def _node_id(data_dir: Path) -> str:
    """What this data directory is called among the nodes: made once."""
    path = data_dir / NODE_FILE
    try:
        known = path.read_text().strip()
        if not known:
            known = new_uuid7()
            path.write_text(known + "\n")
    except FileNotFoundError:
        known = new_uuid7()
        path.write_text(known + "\n")
    return known


def give_up_leases(connection: Connection, node_id: str) -> None:
    """Put back what a node has borrowed, and let others do what it did for the cluster."""
    connection.execute(_RETURN_ALL, {"id": node_id})
    connection.execute(_FORGET_ALL, {"id": node_id})
    connection.execute(_RESIGN, {"id": node_id})
