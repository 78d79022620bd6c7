"""Transcription by models that hear in conversations: the upload becomes a chat request with the sound in it.

Such models are told in words what to do, and answer in words: they say no times. Their engines read wav, mp3 and flac.
"""

import base64
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from stentor.core.books import Grant
from stentor.core.errors import Refused
from stentor.flows.ask import Ask, read_chat
from stentor.flows.dialects.chunks import read_chunks
from stentor.flows.failure import EngineRefused
from stentor.flows.fields import LLAMA_ENGINES
from stentor.flows.hearing_ask import HearingAsk
from stentor.flows.languages import name_language
from stentor.flows.media import FILE_MAX_BYTES, measure_audio
from stentor.flows.sound_file import NoSound, look_at_sound

FORMATS = ("wav", "mp3", "flac")
INSTRUCTION = (
    "Write down what is said in this recording, word for word, in the language that is spoken in it. Answer with these "
    "words alone: no heading, no comment, no quotation marks. If nobody speaks in it, answer with nothing."
)
_TIMED = frozenset({"srt", "vtt", "verbose_json"})
_encode = msgspec.json.Encoder().encode


class Question(NamedTuple):
    """What the model is asked, and how long the sound in it is, in seconds."""

    chat: Ask
    duration_s: float


def hears_in_talk(grant: Grant) -> bool:
    """Whether the model hears as part of a conversation, and not by a recognizer of its own."""
    return grant.engine in LLAMA_ENGINES or "transcription" not in grant.abilities


def write_question(ask: HearingAsk) -> Question:
    """The upload as a chat request. Reads the file: not for the loop. Raises EngineRefused naming the field."""
    if ask.form in _TIMED:
        text = "This model says no times: 'response_format' must be json or text."
        raise EngineRefused("invalid_request", text, param="response_format")
    try:
        sound = look_at_sound(Path(ask.path))
    except NoSound as problem:
        raise EngineRefused("invalid_request", f"The file {problem}.", param="file") from None
    if sound.extension not in FORMATS:
        text = f"This model hears wav, mp3 and flac, not {sound.extension}. Send one of these, or choose another model."
        raise EngineRefused("invalid_request", text, param="file")
    if sound.size_bytes > FILE_MAX_BYTES:
        text = f"This model hears files of at most {FILE_MAX_BYTES // 2**20} MiB. Send less, or choose another model."
        raise EngineRefused("invalid_request", text, param="file")
    data = base64.b64encode(sound.path.read_bytes()).decode()
    try:
        duration_s = measure_audio(data, sound.extension, "file").seconds
    except Refused as refusal:
        raise EngineRefused(refusal.code, refusal.message, param="file") from None
    if duration_s > ask.max_s:
        text = f"The sound is {duration_s:.1f} s long; at most {ask.max_s:g} s are heard at once."
        raise EngineRefused("invalid_request", text, param="file")
    return Question(read_chat(_encode(_write_fields(ask, data, sound.extension))), duration_s)


def _write_fields(ask: HearingAsk, data: str, form: str) -> dict[str, Any]:
    told = [INSTRUCTION]
    if ask.language:
        told.append(f"The language is {name_language(ask.language).capitalize()}.")
    if ask.prompt:
        told.append(f"These words may occur, spelt so: {ask.prompt}")
    content = [
        {"type": "text", "text": " ".join(told)},
        {"type": "input_audio", "input_audio": {"data": data, "format": form}},
    ]
    return {"messages": [{"role": "user", "content": content}], "temperature": ask.temperature or 0}


def read_words(frames: bytes) -> list[str]:
    """What some frames of the answer add to the text, each. Raises EngineRubbish."""
    said = (choice.said.content for chunk in read_chunks(frames) for choice in chunk.choices)
    return [words for words in said if words]
