"""Streams of sound as the rest of the gateway has them: sound in as it comes, events out, metered in between."""

import asyncio
import time
from types import TracebackType
from typing import Self

from stentor.core.books import Books, Settled
from stentor.core.errors import Refused
from stentor.core.ids import RequestId, new_request_id
from stentor.core.principal import Principal
from stentor.flows.attempt import Attempt
from stentor.flows.calls import Call, Calls
from stentor.flows.chat import ChatFlow
from stentor.flows.client import AnswerHead, Labels
from stentor.flows.listening.ask import ListeningAsk
from stentor.flows.listening.attempt import END, Listener, ListeningAttempt
from stentor.flows.listening.feed import Feed, Told
from stentor.flows.listening.wire import BYTES_PER_S, Event
from stentor.flows.upstreams.remote import Upstreams
from stentor.telemetry.trace import Tracer

# A frame of an engine's WebSocket; what is larger goes in several.
_PIECE_BYTES = BYTES_PER_S
_ROOM_S = 60.0


class Listening:
    """Opens streams. One for a worker; make it inside the running loop."""

    def __init__(
        self,
        books: Books,
        engines: Upstreams,
        tracer: Tracer,
        calls: Calls,
        attempt: type[Attempt] = ListeningAttempt,
    ) -> None:
        self._flow = ChatFlow(books, engines, tracer, attempt)
        self._calls = calls

    def open(self, principal: Principal, ask: ListeningAsk, labels: Labels = Labels()) -> "SoundStream":  # noqa: B008
        """A stream for ``principal``: admitted, given a place and connected while its first sound comes in.

        Whatever is wrong with that is told by the stream's events. Use it as a context: left early, it is cancelled.
        """
        return SoundStream(self._flow, self._calls, principal, ask, labels)


class SoundStream:
    """One stream. ``request_id`` is its event's in the books; ``settled`` what it cost, once it has ended well.

    One task may send while another takes the events; neither waits for the other.
    """

    def __init__(self, flow: ChatFlow, calls: Calls, principal: Principal, ask: ListeningAsk, labels: Labels) -> None:
        self.request_id = new_request_id()
        self._feed = Feed(keep=ask.hears_words)
        self._told = Told()
        self._client = _Caller(self._feed, self._told, self.request_id)
        self._call: Call | None = None
        self._ended = False
        self._half = b""
        self._task = asyncio.create_task(self._run(flow, calls, principal, ask, labels))

    @property
    def settled(self) -> Settled | None:
        """What was charged, and what was counted."""
        return self._client.settled

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be told than what lies there."""
        return self._told.over

    async def wait_until_open(self) -> None:
        """Return once an engine listens: its model is loaded, its place taken. Sound may be sent before that, too.

        Raises Refused where that can't be.
        """
        await self._told.wait_until_open()

    async def send(self, sound: bytes) -> None:
        """More sound, 16 kHz mono s16le, however cut. Waits where a minute of it lies unsent.

        Raises Refused ``engine_failed`` where that doesn't change. After the end of the stream it goes nowhere.
        """
        if self._ended or self._told.over:
            return
        sound = self._half + sound if self._half else sound
        whole = len(sound) // 2 * 2
        self._half = sound[whole:]
        for at in range(0, whole, _PIECE_BYTES):
            if not self._feed.has_room:
                await self._wait_for_room()
            self._feed.put(sound[at : min(whole, at + _PIECE_BYTES)])

    async def _wait_for_room(self) -> None:
        room = asyncio.create_task(self._feed.wait_for_room())
        try:
            done, _ = await asyncio.wait((room, self._task), timeout=_ROOM_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            room.cancel()
        if not done:
            text = f"The model's engine took no sound for {_ROOM_S:g} s; try again."
            raise Refused("engine_failed", text, retry_after_s=1.0)

    def order(self, message: str) -> None:
        """Words for the engine (JSON), in their place among the sound."""
        if not self._ended:
            self._feed.put(message)

    def end(self) -> None:
        """That was all the sound: what is told now is the last word, and the end."""
        if not self._ended:
            self._feed.put(END)
            self._ended = True

    async def next(self) -> Event | None:
        """The next event, None after the last. Raises Refused where the stream ended early, as often as it is asked."""
        return await self._told.take()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def cancel(self) -> None:
        """Nobody wants it any more: what was sent is settled as far as it was heard. Returns when that is done."""
        self._ended = True
        if self._call is None:
            self._task.cancel()
        else:
            self._call.interrupt("client_left")
        await asyncio.wait((self._task,))
        self._told.end()
        if not self._task.cancelled():
            self._task.result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cancel()

    async def _run(self, flow: ChatFlow, calls: Calls, principal: Principal, ask: ListeningAsk, labels: Labels) -> None:
        call = self._call = calls.enter(principal.key_id)
        try:
            await flow.run(principal, ask, self._client, call, labels)
        except Refused as refusal:
            self._told.end(refusal)
        finally:
            call.closing = True
            calls.leave(call)
            self._told.end(self._find_problem(call))

    def _find_problem(self, call: Call) -> Refused | None:
        """Why it ended, where nobody has said so."""
        if call.interrupted == "client_stalled":
            return Refused("invalid_request", "The events of the stream were not taken, so it was ended.")
        if call.interrupted is not None or self.settled is not None:
            return None
        return Refused("internal_error", "This server failed to hear the stream; its log says more.")


class _Caller(Listener):
    """The stream, as :class:`~stentor.flows.client.Client` of a flow."""

    def __init__(self, feed: Feed, told: Told, request_id: RequestId) -> None:
        super().__init__(feed, told)
        self.request_id = request_id
        self.received_s = time.monotonic()

    async def start_stream(self, head: AnswerHead) -> None:
        """An engine listens."""
        self.told.open()

    async def write(self, data: bytes) -> None:
        """Nothing: events are told as they are."""

    async def end_stream(self, data: bytes) -> None:
        """Nothing: events are told as they are."""

    async def fail_stream(self, refusal: Refused) -> None:
        """It ends early."""
        self.told.end(refusal)

    async def answer(self, head: AnswerHead, body: bytes) -> None:
        """Nothing: events are told as they are."""
