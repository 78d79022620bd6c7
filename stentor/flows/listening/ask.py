"""What is asked of a stream of sound: the words in it, or who speaks when."""

import math
from typing import Any

import msgspec

from stentor.flows.ask import Ask

# The most sound that is reserved at a time; more is reserved as it comes.
STEP_MS = 30_000
# How much speech one utterance may have; engines refuse more. Silence before it doesn't count.
UTTERANCE_MAX_S = 28.0
# Whisper writes at most 224 tokens for half a minute.
_TOKENS_PER_S = 8
_TOKENS_LEAST = 32
_encode = msgspec.json.Encoder().encode


class ListeningAsk(Ask):
    """A checked request for one stream. ``path`` is the engine's, ``begin`` what it is told first (JSON)."""

    __slots__ = ("audio_ms", "begin", "hears_words", "path", "surface")

    path: str
    begin: str
    hears_words: bool

    def __init__(self, surface: str, model: str) -> None:
        self.surface = surface
        self.model = model
        self.kind = "completion"
        self.fields = {}
        self.stream = True
        self.include_usage = False
        self.answers = 1
        self.input_bound = self.media = self.prefix = 0
        self.images = ()
        self.keep_s = None
        self.audio_ms = STEP_MS

    @property
    def endpoint(self) -> str:
        return self.surface

    def bound_tokens(self, audio_ms: int) -> int:
        """The most tokens that so much sound may come to."""
        return _TOKENS_LEAST + math.ceil(audio_ms / 1000 * _TOKENS_PER_S) if self.hears_words else 0


class WordsAsk(ListeningAsk):
    """What is said in one utterance, of :data:`UTTERANCE_MAX_S` at most? ``language`` empty: the engine finds out;
    ``prompt`` are words that may occur."""

    __slots__ = ()

    def __init__(self, surface: str, model: str, *, language: str = "", prompt: str = "") -> None:
        super().__init__(surface, model)
        self.path = "/v1/listen"
        self.needs = ("transcription",)
        self.hears_words = True
        self.output_asked = self.bound_tokens(STEP_MS)
        self.begin = _encode({"type": "begin", "language": language, "prompt": prompt}).decode()


class ActivityAsk(ListeningAsk):
    """Who speaks when? See the engine for the fields of ``how``: threshold, pause_ms, silence_ms, wake_words, turns."""

    __slots__ = ()

    def __init__(self, surface: str, model: str, **how: Any) -> None:
        super().__init__(surface, model)
        self.path = "/v1/activity"
        self.needs = ("listening",)
        self.hears_words = False
        self.output_asked = 0
        self.begin = _encode({"type": "begin", **how}).decode()
