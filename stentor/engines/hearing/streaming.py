"""Hearing while somebody speaks: hypotheses as sound arrives, what of them is settled, and the text at the end.

``GET /v1/listen`` is a WebSocket. The gateway says ``{"type":"begin", language, prompt, max_s}`` first, then sends
16 kHz mono s16le in binary frames, ``{"type":"end"}`` when the utterance is over (a ``final`` answers it, and the next
one may begin), ``{"type":"drop"}`` to forget what was heard. The engine says ``{"event":"partial", text, stable,
heard_s}``, where the first ``stable`` characters won't change any more, ``{"event":"final", text, audio_ms,
output_tokens}``, and ``{"event":"error", code, message}`` before it hangs up.

Whisper hears a whole utterance anew each time. So it is asked again when enough has been added, and as soon as the
speaker pauses: by the time that somebody decides that the utterance is over, its text is there.
"""

from typing import Any, Literal

import msgspec

from stentor.core.lazy import load
from stentor.engines.hearing.sound import RATE, read_samples
from stentor.engines.hearing.transcription import Ear, HearOrder, Recognizer
from stentor.engines.hearing.windows import FRAME, Detector, Window
from stentor.engines.host import Problem, Socket, read_order

MAX_S = 28.0
_AGAIN_S = 0.6  # how much more sound is worth another hypothesis
_PAUSE_S = 0.15
_SPEECH = 0.5
_KEEP_S = 0.4  # of the silence before the first word


class Ask(msgspec.Struct):
    """What the gateway says in words."""

    type: Literal["begin", "end", "drop"]
    language: str = ""
    prompt: str = ""
    max_s: float = MAX_S


class Partial(msgspec.Struct, tag_field="event", tag="partial"):
    """What it sounds like so far; ``stable`` characters of it are settled."""

    text: str
    stable: int
    heard_s: float


class Final(msgspec.Struct, tag_field="event", tag="final"):
    """What was said."""

    text: str
    audio_ms: int
    output_tokens: int | None


class Utterance:
    """The sound of one utterance, and what was made of it. Pure but for the detector."""

    def __init__(self, detector: Detector, max_s: float) -> None:
        self._numpy = load("numpy")
        self._detector = detector
        self._most = int(min(max_s, MAX_S) * RATE)
        self.sound = self._numpy.zeros(0, self._numpy.float32)
        self.heard = 0  # samples, also of silence that was let go
        self._looked = 0
        self._speech_end = 0  # samples of `sound` up to the last speech
        self.text = ""  # the last hypothesis
        self._known = 0  # samples that it was made of
        self._stable: list[str] = []

    def feed(self, data: bytes) -> None:
        """More sound, s16le. Raises Problem beyond the most."""
        fresh = read_samples(data)
        self.heard += len(fresh)
        self.sound = self._numpy.concatenate((self.sound, fresh))
        whole = len(self.sound) // FRAME * FRAME
        if whole > self._looked:
            likely = self._detector.hear(self.sound[self._looked : whole])
            spoken = self._numpy.flatnonzero(likely >= _SPEECH)
            if len(spoken):
                self._speech_end = self._looked + (int(spoken[-1]) + 1) * FRAME
            self._looked = whole
        if not self._speech_end and len(self.sound) > 2 * RATE:
            self._forget(len(self.sound) - int(_KEEP_S * RATE))
        if len(self.sound) > self._most:
            raise Problem("too_long", f"The utterance is longer than {self._most / RATE:g} s.")

    def _forget(self, count: int) -> None:
        count = count // FRAME * FRAME
        self.sound = self.sound[count:]
        self._looked -= count

    @property
    def is_silent(self) -> bool:
        """Whether nobody has spoken so far."""
        return not self._speech_end

    def is_due(self) -> bool:
        """Whether another hypothesis is worth its while: enough was added, or the speaker pauses."""
        if self.is_silent:
            return False
        if len(self.sound) - self._speech_end >= _PAUSE_S * RATE:
            return self._known < self._speech_end
        return len(self.sound) - self._known >= _AGAIN_S * RATE

    def is_heard_out(self) -> bool:
        """Whether the last hypothesis has all speech in it."""
        return self._known >= self._speech_end

    def note(self, text: str, samples: int) -> Partial:
        """A hypothesis for the first ``samples``: the words that it shares with the one before are settled."""
        words, count = text.split(), len(self._stable)
        agreed = count_common(self.text.split(), words)
        # What is settled stays, whatever this hypothesis thinks of it by now; the final text may know better.
        shown = [*self._stable, *words[count:]]
        if agreed > count:
            self._stable = shown[:agreed]
        self.text, self._known = text, samples
        return Partial(" ".join(shown), len(" ".join(self._stable)), round(self.heard / RATE, 3))


def count_common(before: list[str], now: list[str]) -> int:
    """How many words two hypotheses begin with alike, the last one left out: it may still be being spoken."""
    count = 0
    for left, right in zip(before, now[:-1], strict=False):
        if _plain(left) != _plain(right):
            break
        count += 1
    return count


def _plain(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter.isalnum())


class Listener:
    """One connection: utterances, one after the other."""

    def __init__(self, recognizer: Recognizer, socket: Socket) -> None:
        self._recognizer = recognizer
        self._socket = socket
        self._ask = Ask("begin")
        self._utterance: Utterance | None = None
        self._tokens: int | None = 0

    async def run(self) -> None:
        """Until the gateway hangs up. Raises Problem."""
        while True:
            message = await self._socket.receive()
            if message is None:
                return
            if isinstance(message, bytes):
                self._current().feed(message)
            else:
                await self._obey(read_order(message.encode(), Ask))
            # Everything that lies there is taken in before the recognizer is asked.
            if self._socket.has_more():
                continue
            if self._utterance is not None and self._utterance.is_due():
                await self._hear(self._utterance)

    async def _obey(self, ask: Ask) -> None:
        if ask.type == "begin":
            self._ask, self._utterance = ask, None
            # It may have to load something first.
            await self._socket.work(lambda: self._recognizer.begin(self._order()))
        elif ask.type == "drop":
            self._utterance = None
        elif ask.type == "end":
            utterance, self._utterance = self._current(), None
            if not utterance.is_heard_out():
                await self._hear(utterance)
            tokens = self._tokens if utterance.text else 0
            audio_ms = -(-utterance.heard * 1000 // RATE)
            await self._socket.send(msgspec.json.encode(Final(utterance.text, audio_ms, tokens)))

    async def _hear(self, utterance: Utterance) -> None:
        samples = len(utterance.sound)
        sound = utterance.sound
        text = await self._socket.work(lambda: self._transcribe(sound))
        await self._socket.send(msgspec.json.encode(utterance.note(text, samples)))

    def _transcribe(self, sound: Any) -> str:
        ear: Ear = self._recognizer.begin(self._order())
        text = "".join(segment.text for segment in ear.hear(Window(sound, 0.0))).strip()
        self._tokens = ear.output_tokens
        return text

    def _order(self) -> HearOrder:
        return HearOrder(path="", max_s=self._ask.max_s, language=self._ask.language, prompt=self._ask.prompt)

    def _current(self) -> Utterance:
        if self._utterance is None:
            self._utterance = Utterance(self._recognizer.detector(), self._ask.max_s)
        return self._utterance
