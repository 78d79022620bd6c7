"""PostgreSQL through asyncpg for threads: a DBAPI connection that owns an event loop and runs it while it waits.

SQLAlchemy's own asyncpg dialect needs a greenlet for each call; the store's threads may block, so theirs don't. Types,
casts and the names of errors are SQLAlchemy's. Transactions are begun by whoever holds the connection, as with SQLite.
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, TypeVar

import asyncpg
import uvloop
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi, PGDialect_asyncpg
from sqlalchemy.dialects.postgresql.base import PGExecutionContext

T = TypeVar("T")

STATEMENTS_MAX = 256
LOST = "the connection to the database was lost"
_WITH_ROWS = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "SHOW", "VALUES")


class Statement:
    """A prepared statement and what describes its columns."""

    __slots__ = ("description", "prepared")

    def __init__(self, prepared: Any) -> None:
        self.prepared = prepared
        attributes = prepared.get_attributes()
        self.description = [(a.name, a.type.oid, None, None, None, None, None) for a in attributes] or None


class LinkLost(Exception):
    """The database can't be reached, went away, or didn't answer in time; says which, for a person."""


class Link:
    """One connection of asyncpg and its loop. Used by one thread at a time.

    ``deadline_s`` bounds each wait for the server; after it has passed the connection is given up.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, raw: Any, deadline_s: float) -> None:
        self.raw = raw
        self.deadline_s = deadline_s
        self._loop = loop
        self._statements: OrderedDict[str, Statement] = OrderedDict()

    @classmethod
    def open(cls, address: dict[str, Any], deadline_s: float) -> "Link":
        """Connect. Raises LinkLost, or asyncpg's errors where the server answered."""
        loop = uvloop.new_event_loop()  # half the processor time of asyncio's own for one statement after the other
        connecting = asyncpg.connect(**address, timeout=deadline_s, statement_cache_size=0)
        try:
            raw = _run(loop, connecting)
        except BaseException as error:
            _end(loop)
            if isinstance(error, TimeoutError):
                raise LinkLost("the database doesn't answer in time") from error
            if isinstance(error, OSError):
                raise LinkLost(f"the database can't be reached ({error.strerror or error})") from error
            raise
        return cls(loop, raw, deadline_s)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end. Raises LinkLost where the connection is gone, and past the deadline it is."""
        if self._loop.is_closed():
            work.close()
            raise LinkLost(LOST)
        task = self._loop.create_task(work)
        alarm = self._loop.call_later(self.deadline_s, task.cancel)
        try:
            return _run(self._loop, task)
        except (TimeoutError, asyncio.CancelledError) as error:
            self.drop()
            raise LinkLost("the database doesn't answer in time") from error
        except OSError as error:
            self.drop()
            raise LinkLost(LOST) from error
        except asyncpg.InterfaceError as error:
            if not self.raw.is_closed():
                raise
            raise LinkLost(LOST) from error
        finally:
            alarm.cancel()

    def execute(self, statement: str) -> str:
        """Run statements without parameters and rows in one round trip; returns the last one's tag."""
        return str(self.wait(self.raw.execute(statement)))

    def fetch(self, statement: str, parameters: Sequence[Any]) -> tuple[Statement, list[Any], str]:
        """Run a prepared statement: itself, its rows, its tag."""
        return self.wait(self._fetch(statement, parameters))

    async def _fetch(self, statement: str, parameters: Sequence[Any]) -> tuple[Statement, list[Any], str]:
        found = self._statements.get(statement)
        if found is None:
            found = self._statements[statement] = Statement(await self.raw.prepare(statement))
            if len(self._statements) > STATEMENTS_MAX:
                self._statements.popitem(last=False)
        else:
            self._statements.move_to_end(statement)
        try:
            rows = await found.prepared.fetch(*parameters)
        except asyncpg.InvalidCachedStatementError:
            self._statements.clear()
            raise
        return found, rows, found.prepared.get_statusmsg() or ""

    def is_open(self) -> bool:
        """Whether the connection is still there, as far as is known."""
        return not self._loop.is_closed() and not self.raw.is_closed()

    def close(self) -> None:
        """Say goodbye, if somebody listens, and let go."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            _run(self._loop, self.raw.close(timeout=min(1.0, self.deadline_s)))
        self.drop()

    def drop(self) -> None:
        """Let go without a word."""
        if self._loop.is_closed():
            return
        self._statements.clear()
        self.raw.terminate()
        _end(self._loop)


def _run(loop: asyncio.AbstractEventLoop, work: Awaitable[T]) -> T:
    """Run ``loop`` until ``work`` is done; from another thread, where this one runs a loop of its own."""
    if asyncio._get_running_loop() is None:
        return loop.run_until_complete(work)
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(loop.run_until_complete, work).result()


def _end(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        _run(loop, asyncio.wait(tasks, timeout=1.0))
    _run(loop, asyncio.sleep(0))  # transports that were aborted close their sockets
    loop.close()


_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, LinkLost)


class Cursor:
    """A DBAPI cursor whose rows are all here once ``execute`` returns."""

    arraysize = 1

    def __init__(self, connection: "LinkConnection") -> None:
        self._connection = connection
        self._rows: deque[Any] = deque()
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1
        self.lastrowid = None

    def execute(self, operation: str, parameters: Sequence[Any] | None = None) -> None:
        """Run one statement."""
        link = self._connection.link
        try:
            if not parameters and not operation.lstrip().upper().startswith(_WITH_ROWS):
                tag = link.execute(operation)
                rows: list[Any] = []
                self.description = None
            else:
                found, rows, tag = link.fetch(operation, parameters or ())
                self.description = found.description
        except _ERRORS as error:
            self._connection.raise_as_dbapi(error)
        self._rows = deque(rows)
        count = tag.rpartition(" ")[2]
        self.rowcount = int(count) if count.isdigit() else -1

    def executemany(self, operation: str, many: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each of ``many``."""
        total = 0
        for parameters in many:
            self.execute(operation, parameters)
            total += max(self.rowcount, 0)
        self.rowcount = total

    def setinputsizes(self, *_: Any) -> None:
        """Types are in the statements' casts."""

    def fetchone(self) -> Any:
        """The next row, or None."""
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows."""
        wanted = self.arraysize if size is None else size
        return [self._rows.popleft() for _ in range(min(wanted, len(self._rows)))]

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def close(self) -> None:
        """Forget the rows."""
        self._rows.clear()


class LinkConnection:
    """What SQLAlchemy takes for a DBAPI connection."""

    def __init__(self, dbapi: "LinkModule", link: Link) -> None:
        self.dbapi = dbapi
        self.link = link

    def cursor(self, **_: Any) -> Cursor:
        """A new cursor."""
        return Cursor(self)

    def run(self, statement: str) -> None:
        """Run a statement without parameters and rows. Raises DBAPI errors."""
        try:
            self.link.execute(statement)
        except _ERRORS as error:
            self.raise_as_dbapi(error)

    def commit(self) -> None:
        """End the transaction; all of it is durable once this returns."""
        if self.link.raw.is_in_transaction():
            self.run("COMMIT")

    def rollback(self) -> None:
        """End the transaction without a trace."""
        if self.link.is_open() and self.link.raw.is_in_transaction():
            self.run("ROLLBACK")

    def close(self) -> None:
        """Close the connection."""
        self.link.close()

    def terminate(self) -> None:
        """Drop the connection."""
        self.link.drop()

    def raise_as_dbapi(self, error: Exception) -> None:
        """Raise ``error`` as the DBAPI error it stands for."""
        raise self.dbapi.translate(error) from error


class LinkModule(AsyncAdapt_asyncpg_dbapi):
    """What SQLAlchemy takes for a DBAPI module: asyncpg's errors under the names of PEP 249."""

    apilevel = "2.0"
    threadsafety = 1

    def __init__(self, driver: ModuleType) -> None:
        super().__init__(driver)  # type: ignore[no-untyped-call]

    def connect(self, *, deadline_s: float, address: dict[str, Any]) -> LinkConnection:
        """Connect in this thread."""
        try:
            return LinkConnection(self, Link.open(address, deadline_s))
        except _ERRORS as error:
            raise self.translate(error) from error

    def translate(self, error: Exception) -> Exception:
        """The DBAPI error for one of asyncpg's, or for a lost link."""
        text = str(error) or type(error).__name__
        for kind in type(error).__mro__:
            if kind in self._asyncpg_error_translate:
                translated: Exception = self._asyncpg_error_translate[kind](text, error)
                return translated
        lost: Exception = self.OperationalError(text, error)  # type: ignore[no-untyped-call]
        return lost


class BlockingDialect(PGDialect_asyncpg):
    """SQLAlchemy's dialect for asyncpg over :class:`LinkConnection`."""

    is_async = False
    supports_statement_cache = True
    supports_server_side_cursors = False
    execution_ctx_cls = PGExecutionContext  # type: ignore[assignment]

    @classmethod
    def import_dbapi(cls) -> Any:
        """The module made for this dialect."""
        return LinkModule(asyncpg)

    def on_connect(self) -> None:
        """No types beyond asyncpg's own are used."""

    def get_driver_connection(self, connection: Any) -> Any:
        """The :class:`LinkConnection` itself."""
        return connection

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Whether the connection is gone."""
        return connection is not None and not connection.link.is_open()

    def detect_autocommit_setting(self, dbapi_conn: Any) -> bool:
        """Transactions are always explicit."""
        return False
