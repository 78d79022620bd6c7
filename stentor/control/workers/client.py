"""The worker's side of the line: ``Books`` and ``Scheduler`` over an inherited socket."""

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from stentor.control.workers.line import Line, RefusalWire, SessionQuestion, StartOrder, Withdrawal
from stentor.core.books import Close, Extend, Grant, Open, Settled
from stentor.core.errors import AuthorityLost, Refused
from stentor.core.ids import KeyId, ModelId
from stentor.core.operator import OperatorAnswer, OperatorCall
from stentor.core.principal import Principal
from stentor.core.scheduler import EngineDoor, InstanceCard, ModelCard
from stentor.core.sessions import SessionCard, SessionKind

_ANSWERS: dict[str, Any] = {
    name: msgspec.msgpack.Decoder(kind).decode
    for name, kind in {
        "find_principal": Principal | None,
        "open": Grant,
        "extend": None,
        "close": Settled,
        "find_problem": str | None,
        "list_models": list[ModelCard],
        "find_model": ModelCard | None,
        "list_instances": list[InstanceCard],
        "find_door": EngineDoor | None,
        "find_session": SessionCard | None,
        "start": None,
        "stop": None,
        "operate": OperatorAnswer,
    }.items()
}
_decode_refusal = msgspec.msgpack.Decoder(RefusalWire).decode
_decode_seconds = msgspec.msgpack.Decoder(float).decode
_decode_text = msgspec.msgpack.Decoder(str).decode


class AuthorityClient:
    """Asks the node authority. Implements ``Books`` and ``Scheduler``; every question fails once the line is lost."""

    def __init__(self) -> None:
        self._line: Line | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[str, asyncio.Future[Any]]] = {}
        self._revoked: list[Callable[[KeyId], None]] = []
        self._changed: list[Callable[[KeyId], None]] = []
        self._lost: list[Callable[[], None]] = []
        self._drain: list[Callable[[float], None]] = []
        self._drain_s: float | None = None
        self._hello: asyncio.Future[bytes] | None = None

    async def connect(self, sock: socket.socket) -> bytes:
        """Take over the inherited socket; returns the authority's first words, for the worker to configure itself."""
        loop = asyncio.get_running_loop()
        self._hello = loop.create_future()
        _, self._line = await loop.create_connection(lambda: Line(self._take, self._on_lost), sock=sock)
        async with asyncio.timeout(10):
            return await self._hello

    def tell_ready(self) -> None:
        """Say that this worker serves."""
        if self._line is not None:
            self._line.send(0, "ready", None)

    def hang_up(self) -> None:
        """Close the line."""
        if self._line is not None:
            self._line.close()

    @property
    def is_lost(self) -> bool:
        """Whether the authority is gone."""
        return self._line is None or self._line.lost

    def on_lost(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when the authority is gone; at once if it is."""
        self._lost.append(listener)
        if self._line is not None and self._line.lost:
            listener()

    def on_drain(self, listener: Callable[[float], None]) -> None:
        """Call ``listener`` with the seconds left when this worker is to finish and exit; at once if that was said."""
        self._drain.append(listener)
        if self._drain_s is not None:
            listener(self._drain_s)

    def on_revoked(self, listener: Callable[[KeyId], None]) -> None:
        """See ``Books.on_revoked``."""
        self._revoked.append(listener)

    def on_changed(self, listener: Callable[[KeyId], None]) -> None:
        """See ``Books.on_changed``."""
        self._changed.append(listener)

    def _take(self, number: int, name: str, payload: msgspec.Raw) -> None:
        if number == 0:
            self._take_news(name, payload)
            return
        asked, future = self._waiting.pop(number, (None, None))
        if asked is None or future is None or future.done():
            return
        if name == "refused":
            refusal = _decode_refusal(payload)
            future.set_exception(
                Refused(
                    refusal.code,
                    refusal.message,
                    param=refusal.param,
                    retry_after_s=refusal.retry_after_s,
                    details=refusal.details,
                )
            )
        else:
            future.set_result(_ANSWERS[asked](payload))

    def _take_news(self, name: str, payload: msgspec.Raw) -> None:
        if name == "hello":
            if self._hello is not None and not self._hello.done():
                self._hello.set_result(bytes(payload))
        elif name in ("changed", "revoked"):
            key_id = KeyId(_decode_text(payload))
            for listener in self._changed if name == "changed" else self._revoked:
                listener(key_id)
        elif name == "drain":
            self._drain_s = _decode_seconds(payload)
            for wait in self._drain:
                wait(self._drain_s)

    def _on_lost(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for _, future in waiting.values():
            if not future.done():
                future.set_exception(AuthorityLost())
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(AuthorityLost())
        for listener in self._lost:
            listener()

    def _ask(self, name: str, payload: Any) -> tuple[int, asyncio.Future[Any]]:
        line = self._line
        if line is None or line.lost:
            raise AuthorityLost
        number = next(self._numbers)
        future = line.loop.create_future()
        self._waiting[number] = (name, future)
        line.send(number, name, payload)
        return number, future

    # -- Books -----------------------------------------------------------------------------------------------------

    async def find_principal(self, key_digest: bytes) -> Principal | None:
        """See ``Books.find_principal``."""
        found: Principal | None = await self._ask("find_principal", key_digest)[1]
        return found

    async def open(self, ask: Open) -> Grant:
        """See ``Books.open``. A wait that is given up is withdrawn at the authority, granted or not."""
        number, future = self._ask("open", ask)
        try:
            grant: Grant = await future
        except asyncio.CancelledError:
            self._waiting.pop(number, None)
            if self._line is not None:
                self._line.send(0, "withdraw", Withdrawal(number, ask.request_id, ask.attempt))
            raise
        return grant

    async def extend(self, more: Extend) -> None:
        """See ``Books.extend``."""
        await self._ask("extend", more)[1]

    async def close(self, end: Close) -> Settled:
        """See ``Books.close``."""
        settled: Settled = await self._ask("close", end)[1]
        return settled

    async def find_problem(self) -> str | None:
        """See ``Books.find_problem``."""
        problem: str | None = await self._ask("find_problem", None)[1]
        return problem

    # -- Scheduler -------------------------------------------------------------------------------------------------

    async def list_models(self) -> list[ModelCard]:
        """See ``Scheduler.list_models``."""
        cards: list[ModelCard] = await self._ask("list_models", None)[1]
        return cards

    async def find_model(self, name: str, allowed: frozenset[str] = frozenset()) -> ModelCard | None:
        """See ``Scheduler.find_model``."""
        card: ModelCard | None = await self._ask("find_model", (name, allowed))[1]
        return card

    async def list_instances(self) -> list[InstanceCard]:
        """See ``Scheduler.list_instances``."""
        cards: list[InstanceCard] = await self._ask("list_instances", None)[1]
        return cards

    async def find_door(self, name: str) -> EngineDoor | None:
        """See ``Scheduler.find_door``."""
        door: EngineDoor | None = await self._ask("find_door", name)[1]
        return door

    async def start(self, model: ModelId, instances: int = 1) -> None:
        """See ``Scheduler.start``."""
        await self._ask("start", StartOrder(model, instances))[1]

    async def stop(self, model: ModelId) -> None:
        """See ``Scheduler.stop``."""
        await self._ask("stop", model)[1]

    # -- Sessions --------------------------------------------------------------------------------------------------

    async def find_session(self, digest: bytes, kind: SessionKind) -> SessionCard | None:
        """See ``SessionBook.find_session``."""
        card: SessionCard | None = await self._ask("find_session", SessionQuestion(digest, kind))[1]
        return card

    # -- Management ------------------------------------------------------------------------------------------------

    async def operate(self, call: OperatorCall) -> OperatorAnswer:
        """Have the authority answer a management request."""
        answer: OperatorAnswer = await self._ask("operate", call)[1]
        return answer
