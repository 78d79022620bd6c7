"""What is said between the gateway and the engines that hear while somebody speaks, as messages.

Sound goes out as 16 kHz mono s16le. ``sample`` and ``heard`` count its samples from the beginning of a stream.
"""

import msgspec

RATE = 16_000
BYTES_PER_S = 2 * RATE


class Partial(msgspec.Struct, frozen=True, tag_field="event", tag="partial"):
    """What it sounds like after ``heard_s`` seconds; the first ``stable`` characters won't change before the end."""

    text: str
    stable: int
    heard_s: float


class Final(msgspec.Struct, frozen=True, tag_field="event", tag="final"):
    """What was said, and how many tokens that is (None: the engine doesn't count)."""

    text: str
    audio_ms: int
    output_tokens: int | None


class Ready(msgspec.Struct, frozen=True, tag_field="event", tag="ready"):
    """The engine listens: the wake words that it has, and whether it can tell complete turns."""

    wake_words: tuple[str, ...]
    turns: bool


class SpeechStarted(msgspec.Struct, frozen=True, tag_field="event", tag="speech_started"):
    """Somebody speaks since ``sample``; known by ``heard``."""

    sample: int
    heard: int


class SpeechPaused(msgspec.Struct, frozen=True, tag_field="event", tag="speech_paused"):
    """Nobody has spoken since ``sample``, for a little while; known by ``heard``."""

    sample: int
    heard: int


class SpeechEnded(msgspec.Struct, frozen=True, tag_field="event", tag="speech_ended"):
    """Nobody has spoken since ``sample``, for as long as was asked for; known by ``heard``."""

    sample: int
    heard: int


class WakeWord(msgspec.Struct, frozen=True, tag_field="event", tag="wake_word"):
    """A wake word was said, until about ``sample``."""

    name: str
    probability: float
    sample: int


class Turn(msgspec.Struct, frozen=True, tag_field="event", tag="turn"):
    """How likely the speaker's turn is complete, as it sounds up to ``sample``; None: nobody has spoken in it."""

    probability: float | None
    sample: int


class Over(msgspec.Struct, frozen=True, tag_field="event", tag="over"):
    """All of the stream has been heard, ``heard`` samples."""

    heard: int


class Failed(msgspec.Struct, frozen=True, tag_field="event", tag="error"):
    """The engine hangs up, and says why."""

    code: str
    message: str


Event = Partial | Final | Ready | SpeechStarted | SpeechPaused | SpeechEnded | WakeWord | Turn | Over
"""What a stream tells. ``Final`` and ``Over`` are its end."""

decode = msgspec.json.Decoder(Event | Failed).decode


def move(event: Event, samples: int) -> Event:
    """The event of a stream that an engine has heard without its first ``samples``."""
    if not samples or isinstance(event, Partial | Final | Ready):
        return event
    moved = {name: getattr(event, name) + samples for name in ("sample", "heard") if hasattr(event, name)}
    return msgspec.structs.replace(event, **moved)
