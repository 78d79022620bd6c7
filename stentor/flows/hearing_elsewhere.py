"""Transcription by other servers: what they are sent, and how their answers are read. Pure.

An OpenAI-compatible upstream is sent the form that clients send here. It is asked for json, which all understand, and
for verbose_json where times are wanted; the other forms are made here. The hub's inference service is sent the sound.
"""

import secrets
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import msgspec

from stentor.core.books import Grant
from stentor.egress.outbound import StreamedBody
from stentor.flows.failure import EngineFailed, EngineRefused
from stentor.flows.hearing_ask import HearingAsk
from stentor.flows.languages import find_code
from stentor.flows.sound_file import SoundFile
from stentor.flows.transcripts import SpokenSegment, SpokenWord

_TIMED = frozenset({"srt", "vtt", "verbose_json"})


class Heard(msgspec.Struct):
    """What an upstream heard. ``duration_s`` and ``output_tokens`` are None where it doesn't say."""

    text: str
    language: str
    segments: list[SpokenSegment]
    duration_s: float | None
    output_tokens: int | None


class _Usage(msgspec.Struct):
    seconds: float | None = None
    output_tokens: int | None = None


class _Body(msgspec.Struct):
    text: str
    language: str | None = None
    duration: float | None = None
    segments: list[dict[str, Any]] | None = None
    words: list[SpokenWord] | None = None
    usage: _Usage | None = None


# Some write numbers as texts.
_decode = msgspec.json.Decoder(_Body, strict=False).decode


def write_form(ask: HearingAsk, grant: Grant, sound: SoundFile) -> tuple[str, StreamedBody]:
    """Path and body of a question to the upstream. Raises EngineRefused for what it can't be told."""
    if grant.engine == "hf-inference":
        _check_plain(ask)
        path = f"/models/{quote(grant.upstream_model)}"
        return path, StreamedBody(sound.media_type, sound.size_bytes, sound.pieces)
    fields = [("model", grant.upstream_model), ("response_format", "verbose_json" if ask.form in _TIMED else "json")]
    fields += [(name, said) for name, said in (("language", ask.language), ("prompt", ask.prompt)) if said]
    if ask.temperature is not None:
        fields.append(("temperature", f"{ask.temperature:g}"))
    if ask.form == "verbose_json":
        fields += [("timestamp_granularities[]", each) for each in sorted(ask.granularities)]
    return ask.surface, _make_form(fields, sound)


def _check_plain(ask: HearingAsk) -> None:
    said = {"language": ask.language, "prompt": ask.prompt, "temperature": ask.temperature is not None}
    for name, value in said.items():
        if value:
            text = f"This model is told nothing but the sound; leave out '{name}'."
            raise EngineRefused("invalid_request", text, param=name)
    if ask.form in _TIMED:
        text = "This model says no times: 'response_format' must be json or text."
        raise EngineRefused("invalid_request", text, param="response_format")


def _make_form(fields: list[tuple[str, str]], sound: SoundFile) -> StreamedBody:
    mark = secrets.token_hex(16)
    disposition = f"--{mark}\r\nContent-Disposition: form-data; name="
    head = "".join(f'{disposition}"{name}"\r\n\r\n{value}\r\n' for name, value in fields)
    head += f'{disposition}"file"; filename="sound.{sound.extension}"\r\nContent-Type: {sound.media_type}\r\n\r\n'
    begin, end = head.encode(), f"\r\n--{mark}--\r\n".encode()

    async def make() -> AsyncIterator[bytes]:
        yield begin
        async for piece in sound.pieces():
            yield piece
        yield end

    kind = f"multipart/form-data; boundary={mark}"
    return StreamedBody(kind, len(begin) + sound.size_bytes + len(end), make)


def read_answer(data: bytes) -> Heard:
    """An upstream's answer. Raises EngineFailed."""
    try:
        body = _decode(data)
        # What a server doesn't know of a stretch it may leave out or call null.
        known = [{name: value for name, value in each.items() if value is not None} for each in body.segments or ()]
        segments = msgspec.convert(known, list[SpokenSegment])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineFailed("upstream_rubbish", f"its transcript can't be read: {error}", suspect=True) from None
    usage = body.usage or _Usage()
    duration_s = usage.seconds if body.duration is None else body.duration
    language = (body.language or "").strip()[:40]
    if body.words and segments:
        segments[0].words = body.words
    elif not segments and body.text:
        segments = [SpokenSegment(0.0, _length(duration_s) or 0.0, body.text, words=body.words)]
    return Heard(
        body.text.strip(), find_code(language) or language, segments, _length(duration_s), _count(usage.output_tokens)
    )


def _length(seconds: float | None) -> float | None:
    return seconds if seconds is not None and 0 <= seconds < 10**9 else None


def _count(tokens: int | None) -> int | None:
    return tokens if tokens is not None and tokens >= 0 else None
