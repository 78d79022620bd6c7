"""Stentor with named points at which it ends itself with SIGKILL: ``pointed.py ARM up …`` is ``stentor up …``.

``ARM`` is a file: as soon as it holds a point's name, the process that reaches that point is gone, and so is the file.
The points are wrapped around the server's own parts from here; the product knows nothing of them.
"""

import asyncio
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sqlalchemy.engine import Connection as StoreConnection  # noqa: E402
from sqlalchemy.engine import Transaction  # noqa: E402

from stentor.accounting import table as accounting_table  # noqa: E402
from stentor.accounting.settlement import Settlement  # noqa: E402
from stentor.accounting.usage import table as usage_table  # noqa: E402
from stentor.app import server  # noqa: E402
from stentor.cli import main  # noqa: E402
from stentor.control.books import LocalBooks  # noqa: E402
from stentor.control.money import summing  # noqa: E402
from stentor.control.nodes.shared import SharedBooks  # noqa: E402
from stentor.control.observed import ObservedBooks  # noqa: E402
from stentor.control.workers.client import AuthorityClient  # noqa: E402
from stentor.control.workers.desk import Desk  # noqa: E402
from stentor.egress.engines import EngineClient  # noqa: E402
from stentor.flows.attempt import Attempt  # noqa: E402
from stentor.http.connection import Connection  # noqa: E402
from stentor.receipts.log import ReceiptLog  # noqa: E402
from stentor.runtime.scheduler import LocalScheduler  # noqa: E402
from stentor.store import driver, postgres  # noqa: E402
from stentor.store.lane import Lane  # noqa: E402
from stentor.store.writer import Writer  # noqa: E402

ARM = Path(sys.argv[1])
MIDWAY = 5
_group = threading.local()  # whether this thread's transaction holds settlements


def reach(name: str) -> None:
    """Nothing, unless this is the point."""
    try:
        armed = ARM.read_text()
    except FileNotFoundError:
        return
    if name and armed == name:
        ARM.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str, before: str = "", after: str = "") -> None:
    """Two points, before and after a method or function; the second only if it returns."""
    real = getattr(owner, name)

    if asyncio.iscoroutinefunction(real):

        @functools.wraps(real)
        async def wrapped(*args: Any, **more: Any) -> Any:
            reach(before)
            result = await real(*args, **more)
            reach(after)
            return result

    else:

        @functools.wraps(real)
        def wrapped(*args: Any, **more: Any) -> Any:
            reach(before)
            result = real(*args, **more)
            reach(after)
            return result

    setattr(owner, name, wrapped)


def point_books() -> None:
    """Opening and closing, as far as memory goes."""
    around(ObservedBooks, "open", "open-asked", "open-granted")
    around(LocalBooks, "_admit", after="open-reserved")
    around(LocalBooks, "_wait", "open-waiting")
    around(LocalScheduler, "try_acquire", after="open-place-taken")
    around(ObservedBooks, "close", "close-asked", "close-settled")
    around(LocalBooks, "_settle", after="close-charged-in-memory")
    around(LocalBooks, "begin_close", after="close-queued")
    around(LocalBooks, "_delivered", after="close-delivered")
    around(SharedBooks, "_borrow", "borrow-begun", "borrow-lent")
    around(SharedBooks, "_lent_out", "borrow-committed", "borrow-known")
    around(SharedBooks, "_give_back", after="return-written")


def point_relay() -> None:
    """Between engine and client."""
    around(EngineClient, "post_json", "relay-asking", "relay-headers")
    around(Attempt, "_collect", after="relay-collected")
    around(Attempt, "_finish", "relay-finished")
    around(Connection, "end_stream", "end-unsent", "end-sent")
    around(Connection, "answer", "end-unsent", "end-sent")
    real, count = Attempt._pass_on, 0

    async def pass_on(attempt: Attempt, frames: list[bytes]) -> None:
        nonlocal count
        count = count + 1 if attempt.started else 1
        reach("relay-first-frame" if count == 1 else "")
        await real(attempt, frames)
        reach("relay-first-frame-sent" if count == 1 else "relay-midway" if count == MIDWAY else "")

    Attempt._pass_on = pass_on  # type: ignore[method-assign]


def point_store() -> None:
    """The group that makes a settlement durable, and what goes on behind it."""
    add_events, commit, resolve = accounting_table.add_events, Transaction.commit, Lane.resolve

    def add(*args: Any) -> list[bool]:
        _group.settles = True
        reach("group-begun")
        fresh = add_events(*args)
        reach("group-event-written")
        return fresh

    def charge(real: Callable[..., None]) -> Callable[..., None]:
        def charged(*args: Any) -> None:
            real(*args)
            reach("group-charged" if getattr(_group, "settles", False) else "")

        return charged

    def end(transaction: Transaction) -> None:
        settles, _group.settles = getattr(_group, "settles", False), False
        reach("group-committing" if settles else "")
        commit(transaction)
        reach("group-committed" if settles else "")

    def tell(lane: Lane[Any, Any], batch: list[Any], outcome: Any) -> None:
        reach("group-durable" if isinstance(batch[0][0], Settlement) else "")
        resolve(lane, batch, outcome)

    accounting_table.add_events = add
    accounting_table.charge_buckets = charge(accounting_table.charge_buckets)
    accounting_table.post_shared = charge(accounting_table.post_shared)

    def end_own(real: Callable[[StoreConnection], None]) -> Callable[[StoreConnection], None]:
        def ended(connection: StoreConnection) -> None:
            settles, _group.settles = getattr(_group, "settles", False), False
            reach("group-committing" if settles else "")
            real(connection)
            reach("group-committed" if settles else "")

        return ended

    Transaction.commit = end  # type: ignore[method-assign]
    driver.end_transaction = end_own(driver.end_transaction)
    postgres.end_transaction = end_own(postgres.end_transaction)
    Lane.resolve = tell  # type: ignore[method-assign]
    around(Writer, "_checkpoint", "log-copying", "log-copied")
    around(ReceiptLog, "append", "receipt-numbering", "receipt-numbered")
    usage_table.BLOCK, summing.EVERY_S = 1, 0.6
    around(usage_table, "_event_sums", "block-summing")


def point_line() -> None:
    """Between worker and authority, on both sides."""
    around(AuthorityClient, "open", "line-open", "line-granted")
    around(AuthorityClient, "close", "line-close", "line-settled")
    ask = AuthorityClient._ask

    def send(client: AuthorityClient, name: str, payload: Any) -> Any:
        sent = ask(client, name, payload)
        reach(f"line-{name}-sent")
        return sent

    AuthorityClient._ask = send  # type: ignore[method-assign]
    around(Desk, "_open_at_once", "desk-open", "desk-granted")
    around(Desk, "_close_at_once", "desk-close", "desk-closing")


def worker_command(line_fd: int, listen_fd: int) -> list[str]:
    return [sys.executable, __file__, str(ARM), "worker", str(line_fd), str(listen_fd), str(os.getpid())]


if __name__ == "__main__":
    point_books()
    point_relay()
    point_store()
    point_line()
    del sys.argv[1]
    if sys.argv[1] == "worker":
        from stentor.app import worker

        sys.exit(worker.main(sys.argv[2:]))
    server._worker_command = worker_command
    main()
