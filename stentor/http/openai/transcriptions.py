"""Uploads of sound: from a form that is read as it comes to a file in the spool, and on to the flow."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from stentor.core.errors import Refused
from stentor.core.principal import Principal
from stentor.core.units import MIB
from stentor.flows.ask import bad_request
from stentor.flows.hearing_ask import HearingAsk
from stentor.flows.languages import find_code
from stentor.http.connection import Connection
from stentor.http.multipart import MultipartReader, PartEnd, PartHead
from stentor.http.openai.text import TextEndpoints
from stentor.http.pace import keep_pace
from stentor.http.spool import Spool, Upload

FIELD_MAX_BYTES = 64 * 1024
FORMS = ("json", "text", "srt", "vtt", "verbose_json")
# Room for the fields and boundaries around a file that is as large as it may be.
_FORM_BYTES = MIB
_GRANULARITIES = ("word", "segment")
_NOT_OFFERED = {
    "include": "the engines tell no log probabilities of tokens",
    "known_speaker_names": "nobody tells speakers apart here",
    "known_speaker_references": "nobody tells speakers apart here",
}
Fields = Mapping[str, list[str]]


class UploadBounds(NamedTuple):
    """The most that a file may hold, in bytes and in seconds of sound, and how slowly it may come."""

    max_bytes: int
    max_s: float
    least_bytes_per_s: int


class TranscriptionEndpoints:
    """``spool`` is where an upload lies while it is heard."""

    def __init__(self, text: TextEndpoints, spool: Spool, bounds: UploadBounds) -> None:
        self._text = text
        self._spool = spool
        self._bounds = bounds

    async def transcription(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /v1/audio/transcriptions"""
        await self._serve(connection, principal, "transcribe")

    async def translation(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /v1/audio/translations"""
        await self._serve(connection, principal, "translate")

    async def _serve(
        self, connection: Connection, principal: Principal, task: Literal["transcribe", "translate"]
    ) -> None:
        async with self._spool.open() as upload:
            fields = await self._receive(connection, upload)
            ask = HearingAsk(connection.exchange.path, task, str(upload.path), self._bounds.max_s)
            fill(ask, fields)
            await self._text.answer(connection, principal, ask, connection)

    async def _receive(self, connection: Connection, upload: Upload) -> Fields:
        """The form's fields; its file goes to ``upload``. Raises Refused."""
        form = _Form(upload, self._bounds.max_bytes)
        reader = MultipartReader(connection.header(b"content-type"))
        body = connection.iterate_body(self._bounds.max_bytes + _FORM_BYTES, "STENTOR_AUDIO_MAX_MB")
        async for data in keep_pace(body, self._bounds.least_bytes_per_s):
            for event in reader.feed(data):
                await form.take(event)
        reader.finish()
        await upload.flush()
        if not form.has_file:
            raise bad_request("The form has no file; send the sound in the field 'file'.", "file")
        if upload.size_bytes == 0:
            raise bad_request("The file is empty.", "file")
        return form.fields


class _Form:
    """What came of a form."""

    def __init__(self, upload: Upload, max_bytes: int) -> None:
        self.fields: dict[str, list[str]] = {}
        self.has_file = False
        self._upload = upload
        self._max_bytes = max_bytes
        self._name = ""
        self._in_file = False
        self._value = b""

    async def take(self, event: PartHead | PartEnd | bytes) -> None:
        if isinstance(event, PartHead):
            self._begin(event)
        elif isinstance(event, PartEnd):
            self._end()
        elif self._in_file:
            if self._upload.size_bytes + len(event) > self._max_bytes:
                raise Refused(
                    "body_too_large",
                    f"The file is over the limit of {self._max_bytes // MIB} MiB. Send less, or have the operator "
                    "raise STENTOR_AUDIO_MAX_MB.",
                    param="file",
                )
            await self._upload.write(event)
        else:
            self._value += event
            if len(self._value) > FIELD_MAX_BYTES:
                raise bad_request(f"'{self._name}' is over {FIELD_MAX_BYTES // 1024} KiB.", self._name)

    def _begin(self, head: PartHead) -> None:
        self._name, self._in_file, self._value = head.name, head.is_file or head.name == "file", b""
        if not self._in_file:
            return
        if head.name != "file":
            raise bad_request(f"'{head.name}' is a file; the sound goes into the field 'file', alone.", head.name)
        if self.has_file:
            raise bad_request("There is more than one file; send one a request.", "file")
        self.has_file = True

    def _end(self) -> None:
        if self._in_file:
            return
        try:
            self.fields.setdefault(self._name, []).append(self._value.decode())
        except UnicodeDecodeError:
            raise bad_request(f"'{self._name}' is not UTF-8.", self._name) from None


def fill(ask: HearingAsk, fields: Fields) -> None:
    """Read the fields of a form into an ask. Raises Refused naming the field."""
    ask.model = _last(fields, "model")
    ask.form = _last(fields, "response_format") or "json"
    if ask.form not in FORMS:
        raise bad_request(
            f"'response_format' is '{ask.form[:40]}'; it must be one of {', '.join(FORMS)}.", "response_format"
        )
    ask.prompt = _read_prompt(fields)
    ask.temperature = _read_temperature(_last(fields, "temperature"))
    ask.language = _read_language(fields)
    ask.stream = _read_switch(_last(fields, "stream"), "stream")
    if ask.stream and ask.form not in ("json", "text"):
        raise bad_request("A stream has text alone: 'response_format' must be json or text.", "response_format")
    for name, why in _NOT_OFFERED.items():
        if _all(fields, name):
            raise bad_request(f"'{name}' is not offered: {why}.", name)
    _check_chunking(fields)
    _read_granularities(ask, fields)


def _all(fields: Fields, name: str) -> list[str]:
    """What a list has, in either way of writing one."""
    return [*fields.get(name, ()), *fields.get(f"{name}[]", ())]


def _read_prompt(fields: Fields) -> str:
    """The prompt, and the words that newer clients send apart from it."""
    prompt, words = _last(fields, "prompt"), [*_all(fields, "keywords"), *_all(fields, "hotwords")]
    listed = ", ".join(word.strip() for word in words if word.strip())
    return f"{prompt} {listed}".strip() if listed else prompt


def _check_chunking(fields: Fields) -> None:
    """Sound is always cut at its silences; a client may say so."""
    name = "chunking_strategy"
    said = _last(fields, name) or _last(fields, f"{name}[type]")
    if said not in ("", "auto", "server_vad") and '"server_vad"' not in said:
        raise bad_request(f"'{name}' is '{said[:40]}'; it must be 'auto' or of type 'server_vad'.", name)


def _last(fields: Fields, name: str) -> str:
    return fields.get(name, [""])[-1].strip() if name != "prompt" else fields.get(name, [""])[-1]


def _read_temperature(text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise bad_request(f"'temperature' is '{text[:40]}'; it must be a number from 0 to 1.", "temperature")
    return value


def _read_language(fields: Fields) -> str:
    text, possible = _last(fields, "language"), _all(fields, "languages")
    if not text and len(possible) == 1:
        text = possible[0].strip()
    if text.lower() in ("", "auto"):
        return ""
    code = find_code(text)
    if code is None:
        raise bad_request(f"'language' is '{text[:40]}'; write it by its code, such as en or de.", "language")
    return code


def _read_switch(text: str, name: str) -> bool:
    if text.lower() in ("", "false", "0"):
        return False
    if text.lower() in ("true", "1"):
        return True
    raise bad_request(f"'{name}' is '{text[:40]}'; it must be true or false.", name)


def _read_granularities(ask: HearingAsk, fields: Fields) -> None:
    name = "timestamp_granularities"
    said = [part.strip() for each in _all(fields, name) for part in each.split(",") if part.strip()]
    wrong = [each for each in said if each not in _GRANULARITIES]
    if wrong:
        raise bad_request(f"'{name}' has '{wrong[0][:40]}'; it may have word and segment.", name)
    if said and ask.form != "verbose_json":
        raise bad_request(f"'{name}' needs response_format verbose_json.", name)
    if said:
        ask.granularities = frozenset(said)
