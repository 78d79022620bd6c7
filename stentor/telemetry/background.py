"""Work that goes on in the background as long as the server runs, and what becomes of it when it fails."""

import asyncio
from collections.abc import Awaitable, Callable

from stentor.telemetry.logs import Log

AGAIN_S = 5.0


async def keep_going(name: str, work: Callable[[], Awaitable[None]], log: Log | None) -> None:
    """Do ``work`` until it ends or is cancelled. A defect is told of as ``task_crashed``, and it begins again."""
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - or it would not go on, unseen, for as long as the server runs
            if log is not None:
                log.event("task_crashed", level="error", name=name, cause=_innermost(error))
        else:
            return
        await asyncio.sleep(AGAIN_S)


def _innermost(error: Exception) -> BaseException:
    """What went wrong first in a group of tasks."""
    found: BaseException = error
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
