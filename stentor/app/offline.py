"""The management operations while no server runs: the same parts, opened under the same lock, in this process."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from stentor.app.authority import Authority
from stentor.audit.log import Actor
from stentor.control.operations import Operations
from stentor.settings import Settings
from stentor.store.database import Database
from stentor.telemetry.logs import Log

T = TypeVar("T")
OPERATOR = Actor("operator", "cli")


class Offline:
    """Runs operations one after the other. ``actor`` is who the audit names."""

    actor = OPERATOR

    def __init__(self, runner: asyncio.Runner, operations: Operations) -> None:
        self._runner = runner
        self._operations = operations

    def do(self, work: Callable[[Operations], Coroutine[Any, Any, T]]) -> T:
        """The result of ``work(operations)``."""
        return self._runner.run(work(self._operations))


@contextmanager
def open_offline(settings: Settings) -> Iterator[Offline]:
    """Open store, vault and books of ``settings``; no engine is started. Raises StentorError."""
    quiet = Log(msgspec.structs.replace(settings.telemetry, log_level="WARNING"))
    database = Database.open(settings.store)
    try:
        with asyncio.Runner() as runner:
            authority = runner.run(Authority.open(settings, database, quiet))
            try:
                yield Offline(runner, authority.operations)
            finally:
                runner.run(authority.scheduler.shutdown(0.0))
    finally:
        database.close()
        quiet.close()
