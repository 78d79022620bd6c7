"""What the engines that speak have in common: an order, and the events in which the speech goes out.

Each event is a frame of an event stream, as OpenAI's ``stream_format: "sse"`` has them, with two counts more:
``{"type":"speech.audio.delta","audio":<base64>,"characters":…,"audio_ms":…}`` says how much of the text is spoken with
it, and how long that is; ``speech.audio.done`` ends a speech that is whole.
"""

import difflib
from array import array
from base64 import b64encode
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec

from stentor.core.errors import Refused
from stentor.engines.encoding import SpeechFormat, make_encoder
from stentor.engines.sentences import split_sentences

DELTA_BYTES = 32 * 1024
DEFAULT_VOICE = ("", "default")
_encode = msgspec.json.Encoder().encode


class SpeechOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be said, and how. Fields that aren't named here are nobody's business."""

    input: str
    voice: str = ""
    response_format: SpeechFormat = "mp3"
    speed: Annotated[float, msgspec.Meta(ge=0.25, le=4.0)] = 1.0


class Voice(NamedTuple):
    """One voice of a model; ``language`` is a tag such as ``en-US``."""

    id: str
    language: str


class Synthesizer(Protocol):
    """A model that speaks. Its methods are called by one thread at a time for each text, by several for several."""

    rate_hz: int
    voices: tuple[Voice, ...]

    def speak(self, text: str, voice: Voice, speed: float, place: int) -> "Iterable[array[int]]":
        """The samples (s16, mono) of ``text``, which stands at ``place`` in the whole. May be none."""
        ...


def read_order(fields: dict[str, Any] | bytes) -> SpeechOrder:
    """The order in a request's body. Raises Refused (``invalid_request``)."""
    try:
        if isinstance(fields, bytes):
            return msgspec.json.decode(fields, type=SpeechOrder)
        return msgspec.convert(fields, SpeechOrder)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
        raise Refused("invalid_request", f"The request for speech can't be read: {problem}.") from None


def choose_voice(voices: tuple[Voice, ...], wanted: str) -> Voice:
    """The voice that is meant; the first where none is named. Raises Refused (``invalid_request``) with the nearest."""
    if wanted.lower() in DEFAULT_VOICE:
        return voices[0]
    for voice in voices:
        if voice.id.lower() == wanted.lower():
            return voice
    names = [voice.id for voice in voices]
    near = difflib.get_close_matches(wanted.lower(), names, 3, 0.4)
    hint = f"Near it: {', '.join(near)}." if near else f"It has {', '.join(names[:8])}{'…' if len(names) > 8 else ''}."
    raise Refused(
        "invalid_request",
        f"This model has no voice '{wanted[:64]}'. {hint} GET /v1/audio/voices lists them all.",
        param="voice",
    )


class Speech:
    """One text being spoken. Made (and refused) before anything is sent; :meth:`events` does the work, as it is read."""

    def __init__(self, synthesizer: Synthesizer, order: SpeechOrder) -> None:
        """Raises Refused for a voice that the model lacks, ImportError where the format needs a library."""
        self._synthesizer = synthesizer
        self._order = order
        self._voice = choose_voice(synthesizer.voices, order.voice)
        self._encoder = make_encoder(order.response_format, synthesizer.rate_hz)
        self._samples = 0
        self._characters = 0
        self._told = (0, 0)

    def events(self) -> Iterator[bytes]:
        """Frames of the event stream, each as soon as its sound is made; stop reading to stop the work."""
        order, voice = self._order, self._voice
        for piece in split_sentences(order.input):
            for samples in self._synthesizer.speak(piece, voice, order.speed, self._characters):
                self._samples += len(samples)
                yield from self._deltas(self._encoder.feed(samples))
            self._characters += len(piece)
        yield from self._deltas(self._encoder.finish(), last=True)
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        yield _frame({"type": "speech.audio.done", "usage": usage})

    def _deltas(self, data: bytes, *, last: bool = False) -> Iterator[bytes]:
        """``data`` in frames; what was spoken since the last one counts with the first of them."""
        counts = (self._characters, self._samples * 1000 // self._synthesizer.rate_hz)
        for start in range(0, max(len(data), 1 if last else 0), DELTA_BYTES):
            characters, audio_ms = counts[0] - self._told[0], counts[1] - self._told[1]
            self._told = counts
            yield _frame(
                {
                    "type": "speech.audio.delta",
                    "audio": b64encode(data[start : start + DELTA_BYTES]).decode(),
                    "characters": characters,
                    "audio_ms": audio_ms,
                }
            )


def _frame(event: dict[str, object]) -> bytes:
    return b"data: " + _encode(event) + b"\n\n"
