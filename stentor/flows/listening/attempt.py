"""One try at a stream: sound to an engine as it comes, what it tells passed on, settled before the end of it is told.

What is reserved is a step of sound beyond what was sent, so that a stream of any length costs what was heard of it and
never more than there is. An utterance that an engine loses before it said a word of it is heard by another.
"""

import asyncio
from typing import cast

import msgspec

from stentor.core.books import Extend, Grant, Settled, Usage
from stentor.core.clock import us_since
from stentor.core.errors import Refused
from stentor.egress.engines import EngineUnreachable
from stentor.egress.sockets import EngineSocket, SocketRefused
from stentor.flows.attempt import Attempt
from stentor.flows.failure import EngineFailed, EngineRefused
from stentor.flows.listening.ask import STEP_MS, ListeningAsk
from stentor.flows.listening.feed import Feed, Told
from stentor.flows.listening.wire import BYTES_PER_S, Event, Failed, Final, Over, Partial, decode, move

END = '{"type":"end"}'
# How long an engine may take for the last word, once all sound was sent; it may have a minute of it to hear.
LAST_WORD_S = 60.0
# One that takes nothing more may still say why.
_REASON_S = 1.0
_EXTEND_S = 30.0
_NO_SUCH_PATH = frozenset({404, 405, 501})
_REFUSALS = {
    "invalid_request": "invalid_request",
    "invalid_language": "invalid_request",
    "invalid_wake_word": "invalid_request",
    "missing_ability": "missing_ability",
    "too_long": "invalid_request",
    "idle": "invalid_request",
}


class Listener:
    """Who asked, as :class:`~stentor.flows.client.Client`: it is told events, and has no stream of bytes."""

    def __init__(self, feed: Feed, told: Told) -> None:
        self.feed = feed
        self.told = told
        self.settled: Settled | None = None


class ListeningAttempt(Attempt):
    """One try at a :class:`~stentor.flows.listening.ask.ListeningAsk`."""

    _ask: ListeningAsk
    _sent_bytes = _told_ms = _reserved_ms = _base = 0
    _text = ""

    async def relay(self) -> None:
        """Send, tell, settle, end. Raises EngineFailed, EngineRefused, Refused."""
        grant = self._granted()
        self._overhead_us = max(0, us_since(self.client.received_s) - grant.queued_us)
        if grant.remote is not None:
            raise _lacks(grant)
        # As long as no sound was sent, nothing was used.
        self._preparing = True
        self._reserved_ms = self._ask.audio_ms
        self._base = self._listener.feed.rewind()
        if self._base and self._ask.hears_words:
            raise EngineFailed(
                "engine_broke_off", "it was lost, and the beginning of the utterance with it", suspect=False
            )
        socket = await self._connect(grant)
        try:
            await self.client.start_stream(self._head(None))
            last = await self._converse(socket)
            await self._finish_listening(last)
        except EngineRefused:
            raise
        except Refused as refusal:
            if self.is_open:
                await self.settle_failed(EngineFailed(refusal.code, refusal.message, suspect=False))
            raise
        finally:
            await socket.close()

    @property
    def _listener(self) -> Listener:
        return cast(Listener, self.client)

    @property
    def _sent_ms(self) -> int:
        return _ms(self._sent_bytes)

    async def _connect(self, grant: Grant) -> EngineSocket:
        try:
            return await self._engines.sockets.connect(grant.url + self._ask.path, grant.token)
        except SocketRefused as refusal:
            if refusal.status in _NO_SUCH_PATH:
                raise _lacks(grant) from None
            raise EngineFailed("engine_error", str(refusal), suspect=refusal.status != 503) from None
        except EngineUnreachable as error:
            raise EngineFailed("engine_unreachable", str(error), suspect=True) from None

    async def _converse(self, socket: EngineSocket) -> Event:
        """Send and hear at the same time, until the last word. Raises EngineFailed, EngineRefused, Refused."""
        sending = asyncio.create_task(self._send_all(socket))
        hearing = asyncio.create_task(self._hear_all(socket))
        try:
            await asyncio.wait((sending, hearing), return_when=asyncio.FIRST_COMPLETED)
            if not hearing.done():
                await self._wait_for_last(sending, hearing)
            return await hearing
        finally:
            for task in (sending, hearing):
                task.cancel()
            await asyncio.gather(sending, hearing, return_exceptions=True)

    async def _wait_for_last(self, sending: asyncio.Task[None], hearing: asyncio.Task[Event]) -> None:
        """All is sent, or could not be. Raises why that is, EngineFailed or Refused, where the engine doesn't say."""
        problem = sending.exception()
        if isinstance(problem, Refused):
            raise problem
        patience_s = LAST_WORD_S if problem is None else _REASON_S
        await asyncio.wait((hearing,), timeout=patience_s)
        if not hearing.done():
            text = str(problem or f"it had no last word within {LAST_WORD_S:g} s")
            raise EngineFailed("engine_broke_off", text, suspect=True)

    async def _send_all(self, socket: EngineSocket) -> None:
        """Everything that is fed, up to the end. Raises EngineUnreachable, Refused."""
        await socket.send(self._ask.begin)
        while True:
            item = await self._listener.feed.take()
            if isinstance(item, bytes):
                await self._count(len(item))
            # Words without their beginning are no use: what nobody can hear anew isn't tried again.
            self.started = self.started or (self._ask.hears_words and not self._listener.feed.is_whole)
            await socket.send(item)
            if item == END:
                return

    async def _count(self, size_bytes: int) -> None:
        """Reserve what so much more sound may cost, before it is sent. Raises Refused."""
        sent_bytes = self._sent_bytes + size_bytes
        if _ms(sent_bytes) > self._reserved_ms:
            self._reserved_ms = _ms(sent_bytes) + STEP_MS
            grant = self._granted()
            bound = self._ask.bound_tokens(self._reserved_ms)
            try:
                async with asyncio.timeout(_EXTEND_S):
                    await self._books.extend(Extend(grant.request_id, grant.attempt, bound, self._reserved_ms))
            except TimeoutError:
                text = f"More sound could not be reserved within {_EXTEND_S:g} s; try again shortly."
                raise Refused("store_unavailable", text, retry_after_s=5.0) from None
        self._sent_bytes = sent_bytes
        self._preparing = False

    async def _hear_all(self, socket: EngineSocket) -> Event:
        """Pass on what is told; returns the last of it, which is held back. Raises EngineFailed, EngineRefused."""
        while True:
            try:
                event = decode(await socket.receive())
            except EngineUnreachable as error:
                raise EngineFailed("engine_broke_off", str(error), suspect=True) from None
            except (msgspec.DecodeError, RecursionError) as error:
                raise EngineFailed("engine_rubbish", f"it said what can't be read: {error}", suspect=True) from None
            if isinstance(event, Failed):
                raise _explain(event)
            if isinstance(event, Final | Over):
                return event
            self._tell(event)

    def _tell(self, event: Event) -> None:
        if isinstance(event, Partial):
            self._text = event.text
        if self._first_token_us is None:
            self._first_token_us = us_since(self.client.received_s)
        self.started = True
        self._told_ms = self._sent_ms
        if not self._listener.told.put(move(event, self._base)):
            self._call.interrupt("client_stalled")

    async def _finish_listening(self, last: Event) -> None:
        self._call.closing = True
        text, tokens = "", 0
        if isinstance(last, Final):
            most = self._ask.bound_tokens(self._sent_ms)
            text = "" if last.output_tokens is not None else last.text
            tokens = min(most, max(0, last.output_tokens or 0))
            last = msgspec.structs.replace(last, audio_ms=self._sent_ms)
        usage = Usage(output_tokens=tokens, audio_ms=self._sent_ms)
        self._listener.settled = await self._settle("completed", usage, texts=("", text))
        self._listener.told.put(move(last, self._base))

    def _usage_so_far(self) -> Usage:
        return Usage(audio_ms=self._sent_ms, estimated=bool(self._text))

    def _uncounted(self, usage: Usage | None) -> tuple[str, str]:
        return "", self._text

    def _relayed(self) -> tuple[Usage, str]:
        """What was heard for what was told."""
        return Usage(audio_ms=self._told_ms, estimated=True), self._text


def _ms(size_bytes: int) -> int:
    return -(-size_bytes * 1000 // BYTES_PER_S)


def _lacks(grant: Grant) -> EngineRefused:
    text = f"The engine of '{grant.model}' can't hear while somebody speaks; choose another model."
    return EngineRefused("missing_ability", text, param="model")


def _explain(event: Failed) -> EngineRefused | EngineFailed:
    code = _REFUSALS.get(event.code)
    if code is None:
        return EngineFailed("engine_error", event.message[:500], suspect=False)
    return EngineRefused(code, event.message[:500])
