"""The admin API without a server: the composition opened in this process, under the data folder's lock."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote

from stentor.core.errors import StentorError
from stentor.core.lazy import load
from stentor.core.operator import OperatorAnswer, OperatorCall

if TYPE_CHECKING:
    from stentor.settings import Settings


class LoopbackTransport:
    """Hands requests to an application in this process. ``answer`` runs one call to its end."""

    def __init__(self, answer: Callable[[OperatorCall], OperatorAnswer]) -> None:
        self._answer = answer

    def send(self, method: str, target: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
        path, _, query = target.partition("?")
        try:
            answer = self._answer(OperatorCall(method, unquote(path), query.encode(), body or b""))
        except TimeoutError:
            raise StentorError(f"The books gave no answer within {timeout_s:g} s.") from None
        return answer.status, answer.body


@contextmanager
def open_transport(settings: "Settings") -> Iterator[LoopbackTransport]:
    """Open the books for a few calls. Raises StentorError where they can't be opened."""
    with asyncio.Runner() as runner:
        offline = runner.run(load("stentor.app.offline").open_offline(settings))
        try:
            yield LoopbackTransport(lambda call: runner.run(offline.answer(call)))
        finally:
            runner.run(offline.close())
