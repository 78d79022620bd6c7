"""``/v1/audio/speech``: what is to be said, checked and bounded."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from stentor.core.sound import SPEECH_FORMS, SpeechForm
from stentor.flows.ask import Ask, bad_request, decode_fields, read_ttl, read_typed

PATH = "/v1/audio/speech"
SLOWEST, QUICKEST = 0.25, 4.0
# No voice needs longer for a character: what may have to be paid where seconds are priced.
CHARACTER_MS = 500
TEXT_MAX_CHARS = 65_536
Delivery = Literal["audio", "sse", "json"]


class _NamedVoice(msgspec.Struct):
    id: str


_decode_str = msgspec.json.Decoder(str | None).decode
_decode_voice = msgspec.json.Decoder(str | _NamedVoice | None).decode
_decode_speed = msgspec.json.Decoder(float | None).decode
_encode = msgspec.json.Encoder().encode


class SpeechAsk(Ask):
    """A checked request for speech. ``delivery`` is how it goes out: sound, events with sound, or one JSON.

    ``any_form``: the client named no format.
    """

    __slots__ = ("any_form", "audio_ms", "characters", "delivery", "form", "said", "speed", "text")

    text: str
    form: SpeechForm
    any_form: bool
    speed: float
    delivery: Delivery
    said: dict[str, Any]

    @property
    def endpoint(self) -> str:
        return PATH

    def engine_body(self, upstream_model: str) -> bytes:
        """The request as an engine, or an upstream of the same API, gets it."""
        return _encode({"model": upstream_model, **self.said})


def read_speech(body: bytes, *, as_json: bool = False) -> SpeechAsk:
    """Read a ``/v1/audio/speech`` body; ``as_json``: the client takes JSON alone. Raises Refused naming the field."""
    fields = decode_fields(body)
    ask = SpeechAsk()
    ask.fields = fields
    ask.kind = "completion"
    ask.needs = ("speech",)
    ask.model = read_typed(fields, "model", _decode_str, "a model's name") or ""
    ask.keep_s = read_ttl(fields)
    ask.text = _read_text(fields)
    ask.delivery = _read_delivery(fields, as_json)
    form = _find_form(fields)
    ask.form = "wav" if as_json else form or "mp3"
    ask.any_form = form is None or as_json
    ask.speed = speed = _read_speed(fields)
    ask.stream = not as_json
    ask.include_usage = False
    ask.output_asked = 0
    ask.answers = 1
    ask.media = ask.prefix = 0
    ask.images = ()
    ask.characters = len(ask.text)
    ask.audio_ms = math.ceil(len(ask.text) * CHARACTER_MS / speed)
    ask.input_bound = len(ask.text.encode()) + 1
    ask.said = {"input": ask.text, "response_format": ask.form, "speed": speed}
    voice = _read_voice(fields)
    if voice:
        ask.said["voice"] = voice
    instructions = read_typed(fields, "instructions", _decode_str, "a text")
    if instructions:
        ask.said["instructions"] = instructions
    return ask


def _read_text(fields: dict[str, msgspec.Raw]) -> str:
    text: str | None = read_typed(fields, "input", _decode_str, "the text to speak")
    if text is None or not text.strip():
        raise bad_request("'input' is missing or empty: send the text to speak.", "input")
    if len(text) > TEXT_MAX_CHARS:
        raise bad_request(
            f"'input' has {len(text)} characters; at most {TEXT_MAX_CHARS} are spoken at once. Send it in parts.",
            "input",
        )
    return text


def _read_voice(fields: dict[str, msgspec.Raw]) -> str:
    voice = read_typed(fields, "voice", _decode_voice, "a voice's name")
    name: str = voice.id if isinstance(voice, _NamedVoice) else voice or ""
    if len(name) > 128:
        raise bad_request("'voice' has over 128 characters; GET /v1/audio/voices lists the names.", "voice")
    return name


def _find_form(fields: dict[str, msgspec.Raw]) -> SpeechForm | None:
    said: str = read_typed(fields, "response_format", _decode_str, "the name of a format") or ""
    for form in SPEECH_FORMS:
        if form == said:
            return form
    if not said:
        return None
    raise bad_request(f"'response_format' is '{said[:40]}'; it must be {_either(SPEECH_FORMS)}.", "response_format")


def _read_delivery(fields: dict[str, msgspec.Raw], as_json: bool) -> Delivery:
    wanted: str = read_typed(fields, "stream_format", _decode_str, "'audio' or 'sse'") or "audio"
    if wanted not in ("audio", "sse"):
        raise bad_request(f"'stream_format' is '{wanted[:40]}'; it must be 'audio' or 'sse'.", "stream_format")
    if as_json:
        return "json"
    return "sse" if wanted == "sse" else "audio"


def _read_speed(fields: dict[str, msgspec.Raw]) -> float:
    given: float | None = read_typed(fields, "speed", _decode_speed, "a number")
    speed = 1.0 if given is None else given
    if not SLOWEST <= speed <= QUICKEST:
        raise bad_request(f"'speed' is {speed:g}; it must be {SLOWEST} to {QUICKEST}.", "speed")
    return speed


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(repr(name) for name in names[:-1])} or '{names[-1]}'"
