"""The authority's side of the line: answers one worker, and remembers what that worker owes.

Each question is answered in its own time; a worker that is lost has its open requests closed as ``worker_lost``.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from stentor.control.owned import OwnedBooks
from stentor.control.workers.line import Line, RefusalWire, SessionQuestion, StartOrder, Withdrawal
from stentor.core.books import Close, Extend, Open, Usage
from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ModelId, RequestId
from stentor.core.operator import Operate, OperatorCall
from stentor.core.scheduler import Scheduler
from stentor.core.sessions import SessionBook

_decode_open = msgspec.msgpack.Decoder(Open).decode
_decode_extend = msgspec.msgpack.Decoder(Extend).decode
_decode_close = msgspec.msgpack.Decoder(Close).decode
_decode_start = msgspec.msgpack.Decoder(StartOrder).decode
_decode_withdrawal = msgspec.msgpack.Decoder(Withdrawal).decode
_decode_call = msgspec.msgpack.Decoder(OperatorCall).decode
_decode_session = msgspec.msgpack.Decoder(SessionQuestion).decode
_decode_text = msgspec.msgpack.Decoder(str).decode
_decode_named = msgspec.msgpack.Decoder(tuple[str, frozenset[str]]).decode
_decode_bytes = msgspec.msgpack.Decoder(bytes).decode


class Desk:
    """Serves one worker. ``owner`` names it in the books. Make it inside the running loop."""

    def __init__(
        self,
        owner: str,
        books: OwnedBooks,
        scheduler: Scheduler,
        operate: Operate,
        sessions: SessionBook | None = None,
    ) -> None:
        self._owner = owner
        self._books = books
        self._scheduler = scheduler
        self._operate = operate
        self._sessions = sessions
        self._line: Line | None = None
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        # Goes on when its worker dies: a settlement's answer may have reached the client, and of a change that is being
        # written memory has to hear as well.
        self._lasting: set[asyncio.Task[None]] = set()
        self._opening: dict[int, asyncio.Task[None]] = {}
        self.lost = asyncio.Event()
        self._on_ready: Callable[[], None] | None = None

    async def begin(self, sock: socket.socket, hello: Any) -> None:
        """Take over the socket and greet the worker; returns at once, the desk works until :attr:`lost`."""
        loop = asyncio.get_running_loop()
        _, self._line = await loop.create_connection(lambda: Line(self._take, self._on_lost), sock=sock)
        self._line.send(0, "hello", hello)

    def on_ready(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when the worker serves."""
        self._on_ready = listener

    def tell_changed(self, key_id: KeyId) -> None:
        """Pass on that what is known of a key holds no more."""
        if self._line is not None:
            self._line.send(0, "changed", key_id)

    def tell_revoked(self, key_id: KeyId) -> None:
        """Pass on that a key stopped being valid, or may do less."""
        if self._line is not None:
            self._line.send(0, "revoked", key_id)

    def tell_drain(self, drain_s: float) -> None:
        """Have the worker finish within ``drain_s`` and exit."""
        if self._line is not None:
            self._line.send(0, "drain", drain_s)

    def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._line.close()

    def _on_lost(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        self._books.abandon(self._owner)
        self.lost.set()

    def _take(self, number: int, name: str, payload: msgspec.Raw) -> None:
        if name == "withdraw":
            self._withdraw(_decode_withdrawal(payload))
            return
        if name == "ready":
            if self._on_ready is not None:
                self._on_ready()
            return
        if name == "open" and self._open_at_once(number, payload):
            return
        if name == "close" and self._close_at_once(number, payload):
            return
        task = self._start(number, name, payload)
        if name == "open":
            self._opening[number] = task
            task.add_done_callback(lambda _: self._opening.pop(number, None))

    def _start(self, number: int, name: str, payload: msgspec.Raw) -> asyncio.Task[None]:
        task = self._loop.create_task(self._answer(number, name, payload))
        tasks = self._lasting if name in ("close", "operate") else self._tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    def _open_at_once(self, number: int, payload: msgspec.Raw) -> bool:
        """Answer an ``open`` that needn't wait, without a task; False if it has to be waited for."""
        line = self._line
        assert line is not None
        try:
            grant = self._books.try_open(_decode_open(payload), self._owner)
        except Refused as refusal:
            line.send(number, "refused", _wire(refusal))
            return True
        if grant is not None:
            line.send(number, "ok", grant)
        return grant is not None

    def _close_at_once(self, number: int, payload: msgspec.Raw) -> bool:
        """Start a ``close`` that needs nothing first, and answer it when it is written; False if it needs more."""
        closing = self._books.begin_close(_decode_close(payload))
        if closing is None:
            return False

        def tell(written: asyncio.Future[bool]) -> None:
            if self._line is not None and written.exception() is None and written.result():
                self._line.send(number, "ok", closing.settled)
            else:
                # Not written, or not new: the way that has words for it.
                self._start(number, "close", payload)

        closing.written.add_done_callback(tell)
        return True

    async def _answer(self, number: int, name: str, payload: msgspec.Raw) -> None:
        line = self._line
        assert line is not None
        try:
            answer = await self._serve(name, payload)
        except Refused as refusal:
            line.send(number, "refused", _wire(refusal))
        except Exception as defect:
            # The worker waits without a deadline: it must hear of a defect, too.
            text = f"The server failed on this request ({type(defect).__name__}); its log says more."
            line.send(number, "refused", RefusalWire("internal_error", text, None, None, {}))
            raise
        else:
            line.send(number, "ok", answer)

    async def _serve(self, name: str, payload: msgspec.Raw) -> Any:
        books = self._books
        if name == "open":
            return await books.open(_decode_open(payload), self._owner)
        if name == "extend":
            return await books.extend(_decode_extend(payload))
        if name == "close":
            return await books.close(_decode_close(payload))
        if name == "find_principal":
            return await books.find_principal(_decode_bytes(payload))
        if name == "find_problem":
            return await books.find_problem()
        if name == "find_session" and self._sessions is not None:
            question = _decode_session(payload)
            return await self._sessions.find_session(question.digest, question.kind)
        if name == "operate":
            return await self._operate(_decode_call(payload))
        return await self._schedule(name, payload)

    async def _schedule(self, name: str, payload: msgspec.Raw) -> Any:
        scheduler = self._scheduler
        if name == "start":
            order = _decode_start(payload)
            return await scheduler.start(ModelId(order.model), order.instances)
        if name == "stop":
            return await scheduler.stop(ModelId(_decode_text(payload)))
        if name == "find_model":
            return await scheduler.find_model(*_decode_named(payload))
        if name == "find_door":
            return await scheduler.find_door(_decode_text(payload))
        if name == "list_models":
            return await scheduler.list_models()
        if name == "list_instances":
            return await scheduler.list_instances()
        raise Refused("internal_error", f"The authority knows no question '{name}'.")

    def _withdraw(self, withdrawal: Withdrawal) -> None:
        opening = self._opening.get(withdrawal.number)
        if opening is not None and opening.cancel():
            return
        # The grant was on its way when the worker gave up waiting: nothing was started, nothing is charged.
        end = Close(
            request_id=RequestId(withdrawal.request_id),
            attempt=withdrawal.attempt,
            outcome="cancelled",
            usage=Usage(),
            reason="client_left",
            billable=False,
        )
        task = asyncio.get_running_loop().create_task(self._close_withdrawn(end))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close_withdrawn(self, end: Close) -> None:
        try:
            await self._books.close(end)
        except Refused:
            return  # never opened, or the store is down: there is nothing to give back


def _wire(refusal: Refused) -> RefusalWire:
    return RefusalWire(refusal.code, refusal.message, refusal.param, refusal.retry_after_s, refusal.details)
