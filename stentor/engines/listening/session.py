"""Listening to one stream of sound: what happens in it is told as it happens. Nothing of it is written down.

``GET /v1/activity`` is a WebSocket. The gateway says ``{"type":"begin", threshold, pause_ms, silence_ms, wake_words,
wake_cutoff, turns}`` first, which is answered by ``{"event":"ready", wake_words, turns}``: what there is to ask for.
Then it sends 16 kHz mono s16le in binary frames. ``{"type":"turn"}`` asks how likely the speaker's turn is complete by
now, ``{"type":"turn_over"}`` says that the next speech begins another one. ``{"type":"end"}`` is answered
by ``{"event":"over", heard}`` when all that came before it has been heard.

The engine says ``speech_started``, ``speech_paused`` and ``speech_ended`` (``sample``: where in the stream that was; by
``heard`` samples it was known), ``wake_word`` (``name``, ``probability``), at each pause and when asked for ``turn``
(``probability`` that it is complete, None where nobody has spoken in it), and ``error`` before it hangs up.
"""

import functools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from stentor.core.lazy import load
from stentor.engines.hearing.silero import Silero
from stentor.engines.hearing.sound import RATE, check_whole, read_samples
from stentor.engines.hearing.windows import FRAME
from stentor.engines.host import Problem, Socket, read_order
from stentor.engines.listening.activity import Activity, Ended, Mark, Paused, Started
from stentor.engines.listening.turn import SPAN, SmartTurn
from stentor.engines.listening.wake import WORDS_MOST, WakeListener, WakeWords

_LEAD = int(0.3 * RATE)  # of what was before a turn's first word
_PIECE = 16 * FRAME  # half a second is heard at a time, however much comes at once
_TURN_BYTES = 2 * RATE  # a second is heard until it's somebody else's turn
_MS = Annotated[int, msgspec.Meta(ge=32, le=30_000)]


class Ask(msgspec.Struct):
    """What the gateway says in words. ``wake_cutoff`` None: as each word's makers found best."""

    type: Literal["begin", "turn", "turn_over", "end"]
    threshold: Annotated[float, msgspec.Meta(ge=0.1, le=0.95)] = 0.5
    pause_ms: _MS = 200
    silence_ms: _MS = 500
    wake_words: Annotated[list[str], msgspec.Meta(max_length=WORDS_MOST)] = []
    wake_cutoff: Annotated[float, msgspec.Meta(ge=0.05, le=0.999)] | None = None
    turns: bool = True


class ReadyEvent(msgspec.Struct, tag_field="event", tag="ready"):
    """It listens: the wake words there are, and whether it can tell complete turns."""

    wake_words: tuple[str, ...]
    turns: bool


class StartedEvent(msgspec.Struct, tag_field="event", tag="speech_started"):
    """Somebody speaks, since ``sample``."""

    sample: int
    heard: int


class PausedEvent(msgspec.Struct, tag_field="event", tag="speech_paused"):
    """Nobody has spoken since ``sample``, for a little while."""

    sample: int
    heard: int


class EndedEvent(msgspec.Struct, tag_field="event", tag="speech_ended"):
    """Nobody has spoken since ``sample``, for as long as was asked for."""

    sample: int
    heard: int


class WakeEvent(msgspec.Struct, tag_field="event", tag="wake_word"):
    """A wake word was said, until about ``sample``."""

    name: str
    probability: float
    sample: int


class TurnEvent(msgspec.Struct, tag_field="event", tag="turn"):
    """How likely the turn is complete, as it sounds up to ``sample``."""

    probability: float | None
    sample: int


class OverEvent(msgspec.Struct, tag_field="event", tag="over"):
    """All of it has been heard: ``heard`` samples."""

    heard: int


Event = StartedEvent | PausedEvent | EndedEvent | WakeEvent | TurnEvent
_MARKS: dict[type, type[StartedEvent | PausedEvent | EndedEvent]] = {
    Started: StartedEvent,
    Paused: PausedEvent,
    Ended: EndedEvent,
}


class Ears(msgspec.Struct):
    """The loaded models: Silero's session, the wake words, and the judge of turns where there is one."""

    silero: Any
    words: WakeWords
    turn: SmartTurn | None


class Attention:
    """What is known of one stream. Not to be used from two threads at once."""

    def __init__(self, ears: Ears, ask: Ask) -> None:
        self._numpy = load("numpy")
        self._detector = Silero(ears.silero)
        self._activity = Activity(ask.threshold, ask.pause_ms, ask.silence_ms)
        self._wake: WakeListener | None = None
        if ask.wake_words:
            self._wake = ears.words.listen(ask.wake_words, ask.wake_cutoff)
        self._turn = ears.turn if ask.turns else None
        self._sound = self._numpy.zeros(0, self._numpy.float32)
        self._heard = 0  # samples in all
        self._looked = 0  # of them, those that the detector has heard
        self._turn_since: int | None = None

    def hear(self, data: bytes) -> list[Event]:
        """More sound, s16le: what happened in it. Raises Problem."""
        samples = read_samples(data)
        found: list[Event] = []
        for at in range(0, len(samples), _PIECE):
            self._sound = self._numpy.concatenate((self._sound, samples[at : at + _PIECE]))
            self._heard += len(samples[at : at + _PIECE])
            found += self._look()
            if self._wake is not None:
                found += [WakeEvent(*each) for each in self._wake.feed(data[2 * at : 2 * (at + _PIECE)])]
            self._sound = self._sound[-SPAN:]
        return found

    def _look(self) -> Iterator[Event]:
        count = (self._heard - self._looked) // FRAME * FRAME
        if not count:
            return
        likely = self._detector.hear(self._slice(self._looked, self._looked + count))
        for each in likely:
            self._looked += FRAME
            for mark in self._activity.follow([float(each)]):
                yield _MARKS[type(mark)](mark.sample, self._looked)
                yield from self._weigh(mark)

    def _weigh(self, mark: Mark) -> Iterator[Event]:
        if isinstance(mark, Started) and self._turn_since is None:
            self._turn_since = mark.sample
        if isinstance(mark, Paused) and self._turn is not None:
            yield self._judge(self._turn, self._looked)

    def judge(self) -> TurnEvent:
        """How likely the turn is complete by now. Raises Problem where nobody can tell."""
        if self._turn is None:
            raise Problem("missing_ability", "No turns are told: there is no smart-turn*.onnx, or 'turns' is false.")
        return self._judge(self._turn, self._heard)

    def _judge(self, turn: SmartTurn, end: int) -> TurnEvent:
        if self._turn_since is None:
            return TurnEvent(None, end)
        begin = max(0, self._turn_since - _LEAD, end - SPAN, self._heard - len(self._sound))
        return TurnEvent(round(turn.judge(self._slice(begin, end)), 4), end)

    def over(self) -> OverEvent:
        """What was heard in all."""
        return OverEvent(self._heard)

    def end_turn(self) -> None:
        """The next speech begins another turn; what is being said belongs to it, too."""
        self._turn_since = self._looked if self._activity.speaking else None

    def _slice(self, begin: int, end: int) -> Any:
        first = self._heard - len(self._sound)
        return self._sound[begin - first : end - first]


class Listener:
    """One connection."""

    def __init__(self, ears: Ears, socket: Socket) -> None:
        self._ears = ears
        self._socket = socket
        self._attention: Attention | None = None

    async def run(self) -> None:
        """Until the gateway hangs up. Raises Problem."""
        while (message := await self._socket.receive()) is not None:
            if isinstance(message, bytes):
                await self._hear(message)
            else:
                await self._obey(read_order(message.encode(), Ask))

    async def _hear(self, data: bytes) -> None:
        attention = self._current()
        check_whole(data)
        for at in range(0, len(data), _TURN_BYTES):
            for event in await self._socket.work(functools.partial(attention.hear, data[at : at + _TURN_BYTES])):
                await self._socket.send(msgspec.json.encode(event))

    async def _obey(self, ask: Ask) -> None:
        if ask.type == "begin":
            self._attention = await self._socket.work(lambda: Attention(self._ears, ask))
            ready = ReadyEvent(self._ears.words.names, self._ears.turn is not None)
            await self._socket.send(msgspec.json.encode(ready))
        elif ask.type == "turn":
            await self._socket.send(msgspec.json.encode(await self._socket.work(self._current().judge)))
        elif ask.type == "end":
            await self._socket.send(msgspec.json.encode(self._current().over()))
        else:
            self._current().end_turn()

    def _current(self) -> Attention:
        if self._attention is None:
            raise Problem("invalid_request", "Say begin first: how to listen has to be known.")
        return self._attention
