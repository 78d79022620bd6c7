"""How the engines that speak answer: an order, and the events in which the speech goes out, sentence by sentence.

``POST /v1/audio/speech`` answers an event stream, as OpenAI's ``stream_format: "sse"`` has it, with two counts more:
``{"type":"speech.audio.delta","audio":<base64>,"characters":…,"audio_ms":…}`` says how much of the text is spoken with
it, and how long that is; ``speech.audio.done`` ends a speech that is whole, and holds the same for the last of it.
"""

import difflib
import threading
from array import array
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Protocol

import msgspec

from stentor.core.sound import SpeechForm
from stentor.core.voices import VoiceCard
from stentor.engines.answer import Answer, Handler
from stentor.engines.host import BadModel, Problem, read_order
from stentor.engines.speaking.encoding import make_encoder
from stentor.engines.speaking.sentences import Pace, split_sentences

EVENTS = "text/event-stream"
DELTA_BYTES = 32 * 1024
DEFAULT_VOICE = ("", "default")
# The names that OpenAI's clients have built in, and many let nobody change.
OPENAI_VOICES = frozenset(
    {
        "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer",
        "verse",
    }
)  # fmt: skip
# A file without a single sample is none that players open.
_SILENCE_S = 0.1
# Libraries of C end a text at the first of them, or refuse it.
_CONTROLS = dict.fromkeys({*range(32), 127} - {ord(each) for each in "\t\n\r"}, " ")
_encode = msgspec.json.Encoder().encode


class SpeechOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be said, and how. Fields that aren't named here are nobody's business."""

    input: str
    voice: str = ""
    response_format: SpeechForm = "mp3"
    speed: Annotated[float, msgspec.Meta(ge=0.25, le=4.0)] = 1.0


class Synthesizer(Protocol):
    """A model that speaks; several threads may ask at once. ``pace`` is how long the pieces of a text are for it."""

    rate_hz: int
    voices: tuple[VoiceCard, ...]
    pace: Pace

    def speak(self, text: str, voice: VoiceCard, speed: float, place: int) -> "Iterable[array[int]]":
        """The samples (s16, mono) of ``text``, which stands at ``place`` in the whole. May be none."""
        ...


class SpeakingEngine:
    """An engine around a synthesizer."""

    def __init__(self, make: Callable[[], Synthesizer]) -> None:
        """``make`` loads the model. Raises BadModel."""
        self._make = make
        self._synthesizer: Synthesizer | None = None

    def load(self) -> None:
        """See :class:`~stentor.engines.host.Engine`."""
        self._synthesizer = self._make()
        if not self._synthesizer.voices:
            raise BadModel("the model has no voice")

    def check(self) -> None:
        """See :class:`~stentor.engines.host.Engine`."""
        synthesizer = self._loaded()
        for _ in synthesizer.speak("a", synthesizer.voices[0], 1.0, 0):
            pass

    def handlers(self) -> Mapping[str, Handler]:
        """See :class:`~stentor.engines.host.Engine`."""
        return {"/v1/audio/speech": self._speak}

    def _speak(self, body: bytes, _left: threading.Event) -> Answer:
        return Answer(EVENTS, Speech(self._loaded(), read_order(body, SpeechOrder)).events())

    def _loaded(self) -> Synthesizer:
        assert self._synthesizer is not None
        return self._synthesizer


def choose_voice(voices: tuple[VoiceCard, ...], wanted: str) -> VoiceCard:
    """The voice that is meant; the first where none is named. Raises Problem with the nearest.

    One of OpenAI's own is the voice here that is called so (Kokoro's ``af_nova``), or the first.
    """
    if wanted.lower() in DEFAULT_VOICE:
        return voices[0]
    for voice in voices:
        if voice.id.lower() == wanted.lower():
            return voice
    if wanted.lower() in OPENAI_VOICES:
        alike = (voice for voice in voices if voice.id.lower().endswith(f"_{wanted.lower()}"))
        return next(alike, voices[0])
    names = [voice.id for voice in voices]
    near = difflib.get_close_matches(wanted.lower()[:64], names, 3, 0.4)
    hint = (
        f"Near it: {', '.join(near)}." if near else f"It has {', '.join(names[:8])}{', …' if len(names) > 8 else ''}."
    )
    raise Problem("voice", f"This model has no voice '{wanted[:64]}'. {hint} GET /v1/audio/voices lists them all.")


class Speech:
    """One text being spoken. Refused when it is made; :meth:`events` does the work, as it is read."""

    def __init__(self, synthesizer: Synthesizer, order: SpeechOrder) -> None:
        """Raises Problem for a voice that the model lacks, and for a format whose library isn't there."""
        self._synthesizer = synthesizer
        self._order = order
        self._voice = choose_voice(synthesizer.voices, order.voice)
        self._samples = 0
        self._characters = 0
        self._told = (0, 0)
        try:
            self._encoder = make_encoder(order.response_format, synthesizer.rate_hz)
        except ImportError:
            form, text = order.response_format, "needs the library av on the server (pip install 'stentor[piper]')"
            raise Problem("response_format", f"The format '{form}' {text}; 'wav' needs none.") from None

    def events(self) -> Iterator[bytes]:
        """Frames of the event stream, each as soon as its sound is made; stop reading to stop the work."""
        order, voice = self._order, self._voice
        for piece in split_sentences(order.input.translate(_CONTROLS), self._synthesizer.pace):
            place, self._characters = self._characters, self._characters + len(piece)
            for samples in self._synthesizer.speak(piece, voice, order.speed, place):
                self._samples += len(samples)
                data = self._encoder.feed(samples)
                if data:
                    yield self._deltas(data)
        rest = b"" if self._samples else self._encoder.feed(self._silence())
        yield self._frame("speech.audio.done", rest + self._encoder.finish())

    def _silence(self) -> "array[int]":
        samples = array("h", bytes(2 * round(_SILENCE_S * self._synthesizer.rate_hz)))
        self._samples += len(samples)
        return samples

    def _deltas(self, data: bytes) -> bytes:
        """``data`` in frames; what was spoken since the last one counts with the first of them."""
        starts = range(0, len(data), DELTA_BYTES)
        return b"".join(self._frame("speech.audio.delta", data[start : start + DELTA_BYTES]) for start in starts)

    def _frame(self, kind: str, data: bytes) -> bytes:
        counts = (self._characters, self._samples * 1000 // self._synthesizer.rate_hz)
        characters, audio_ms = counts[0] - self._told[0], counts[1] - self._told[1]
        self._told = counts
        event = {"type": kind, "audio": b64encode(data).decode(), "characters": characters, "audio_ms": audio_ms}
        return b"data: " + _encode(event) + b"\n\n"
