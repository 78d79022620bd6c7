"""``/v1/audio/transcriptions`` and ``/v1/audio/translations``: what is said in an uploaded file.

The books admit the request before anybody knows how long the sound is; the engine that it is given a place on measures
it, and only then is the exact worst case reserved. The engine tells what is said a stretch at a time. An upstream
elsewhere is sent the file and tells all at once; until it says how long the sound is, the file itself is asked. A model
that hears in conversations is asked in one.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec

from stentor.core.books import Extend, Grant, Usage
from stentor.core.clock import us_since
from stentor.core.errors import UNREADABLE, Refused
from stentor.egress.engines import EngineUnreachable
from stentor.flows.answer import EngineError, EngineRubbish
from stentor.flows.ask import engine_body
from stentor.flows.attempt import Attempt, read_failure
from stentor.flows.client import MediaClient
from stentor.flows.engine_problem import read_problem
from stentor.flows.failure import EngineFailed, EngineRefused, engine_error
from stentor.flows.frames import FrameSplitter, FrameTooLarge
from stentor.flows.hearing_ask import HearingAsk
from stentor.flows.hearing_chat import hears_in_talk, read_words, write_question
from stentor.flows.hearing_elsewhere import read_answer, write_form
from stentor.flows.sound_file import NoSound, SoundFile, look_at_sound
from stentor.flows.transcripts import SpokenSegment, Transcript
from stentor.flows.upstreams.remote import Answer

PROBE_PATH, HEAR_PATH = "/v1/probe", "/v1/transcribe"
HEARING_ENGINES = frozenset({"whisper", "sense_voice"})
# Whisper writes at most 224 tokens for half a minute.
_TOKENS_PER_S = 8
_TOKENS_LEAST = 32
_LINE_MAX_BYTES = 16 << 20
# The engine's word for what is wrong with a request: our code, and the field that is to blame.
_REFUSALS = {
    "bad_audio": ("invalid_request", "file"),
    "too_long": ("invalid_request", "file"),
    "invalid_language": ("invalid_request", "language"),
    "invalid_request": ("invalid_request", None),
    "missing_ability": ("missing_ability", "model"),
}
_encode = msgspec.json.Encoder().encode


class _Segment(SpokenSegment, tag_field="event", tag="segment"):
    """A stretch of speech."""


class _Progress(msgspec.Struct, tag_field="event", tag="progress"):
    heard_s: float = 0.0


class _Done(msgspec.Struct, tag_field="event", tag="done"):
    duration_s: float
    language: str
    output_tokens: int | None


class _Failed(msgspec.Struct, tag_field="event", tag="error"):
    code: str
    message: str


class _Length(msgspec.Struct):
    duration_s: float


_Line = _Segment | _Progress | _Done | _Failed
_decode_line = msgspec.json.Decoder(_Line).decode
_decode_length = msgspec.json.Decoder(_Length).decode


class HearingAttempt(Attempt):
    """One try at a :class:`HearingAsk`."""

    _ask: HearingAsk

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._transcript = Transcript(self._ask.task, self._ask.granularities)
        self._audio_ms = 0
        self._tokens = 0
        self._guessed = False
        self._heard_ms = 0
        self._counted: Usage | None = None

    async def relay(self) -> None:
        """Have it measured, reserve, have it heard, settle, answer. Raises EngineFailed, EngineRefused, Refused."""
        grant = self._granted()
        self._overhead_us = max(0, us_since(self.client.received_s) - grant.queued_us)
        if hears_in_talk(grant):
            await self._finish_hearing(await self._ask_in_talk(grant))
            return
        if grant.remote is not None:
            await self._finish_hearing(await self._ask_elsewhere(grant))
            return
        if grant.engine not in HEARING_ENGINES:
            text = f"The engine of '{grant.model}' doesn't offer {self._ask.surface}; choose another model."
            raise EngineRefused("missing_ability", text, param="model")
        # As long as nothing was heard, nothing was used.
        self._preparing = True
        await self._measure(grant)
        self._preparing = False
        done = await self._hear(grant)
        await self._finish_hearing(done)

    async def _measure(self, grant: Grant) -> None:
        ask = self._ask
        order = {"path": ask.path, "max_s": ask.max_s}
        try:
            body = b"".join([chunk async for chunk in self._ask_engine(grant, PROBE_PATH, order)])
            duration_s = _decode_length(body).duration_s
        except UNREADABLE as error:
            raise EngineFailed("engine_rubbish", f"it can't say how long it is: {error}", suspect=True) from None
        self._audio_ms = math.ceil(duration_s * 1000)
        await self._reserve(grant, duration_s)

    async def _reserve(self, grant: Grant, most_s: float, bounds: tuple[int, int] | None = None) -> None:
        """``bounds`` are the most tokens of prompt and answer, where the model has a prompt."""
        prompt, output = bounds or (0, _tokens_in(most_s))
        audio_ms = math.ceil(most_s * 1000)
        try:
            await self._books.extend(Extend(grant.request_id, grant.attempt, output, audio_ms, prompt=prompt))
        except Refused as refusal:
            await self.settle_failed(EngineFailed(refusal.code, refusal.message, suspect=False))
            raise

    async def _ask_elsewhere(self, grant: Grant) -> _Done:
        """Have another server hear it. What it says of the sound counts as far as the file can hold so much."""
        ask = self._ask
        self._preparing = True
        sound = await self._look()
        path, body = write_form(ask, grant, sound)
        # Servers bill by whole seconds.
        most_s = float(math.ceil(min(sound.most_s, ask.max_s)))
        await self._reserve(grant, most_s)
        length_s = min(sound.duration_s, most_s)
        self._audio_ms = math.ceil(length_s * 1000)
        self._preparing = False
        heard = read_answer(await self._engines.remote.ask_whole(grant, path, body, _LINE_MAX_BYTES))
        self._note_first()
        self._guessed = heard.duration_s is None and not sound.measured
        for segment in heard.segments:
            self._transcript.add(segment)
        self._transcript.said = heard.text
        if ask.stream and heard.text:
            await self._begin_stream()
            await self.client.write(self._transcript.delta_frame(heard.text))
        tokens = None if heard.output_tokens is None else min(heard.output_tokens, _tokens_in(most_s))
        # A file that says less of itself than it holds was heard whole, and is paid so.
        duration_s = length_s if heard.duration_s is None else min(heard.duration_s, float(math.ceil(sound.most_s)))
        return _Done(duration_s, heard.language or ask.language, tokens)

    async def _ask_in_talk(self, grant: Grant) -> _Done:
        """Have a model hear it that hears in conversations."""
        self._preparing = True
        question = await asyncio.to_thread(write_question, self._ask)
        self._audio_ms = math.ceil(question.duration_s * 1000)
        # A sound takes as much of the context as the model likes.
        cap = min(_tokens_in(question.duration_s), grant.context_size // 2)
        await self._reserve(grant, question.duration_s, (grant.context_size - cap, cap))
        self._preparing = False
        chat = question.chat
        body = engine_body(chat, engine=grant.engine, upstream_model=grant.upstream_model, output_cap=cap)
        answer: Answer
        try:
            if grant.remote is None:
                answer = await self._engines.post_json(grant.url + chat.engine_path, grant.token, body)
            else:
                answer = await self._engines.remote.ask_stream(grant, chat.engine_path, body)
        except EngineUnreachable as error:
            raise EngineFailed("engine_unreachable", str(error), suspect=True) from None
        try:
            if answer.status != 200:
                raise await read_failure(answer, "file")
            await self._follow(answer)
        except EngineUnreachable as error:
            raise EngineFailed("engine_broke_off", str(error), suspect=True) from None
        except EngineError as error:
            raise engine_error("it reported an error of its own", str(error)) from error
        except (EngineRubbish, FrameTooLarge) as error:
            raise EngineFailed("engine_rubbish", str(error), suspect=True) from None
        finally:
            answer.release()
        self._counted = self._meter.usage() if self._meter.counted else None
        tokens = None if self._counted is None else self._counted.output_tokens
        return _Done(question.duration_s, self._ask.language, tokens)

    async def _follow(self, answer: Answer) -> None:
        """Read a conversation's answer to its end, and pass on its words."""
        meter, splitter = self._meter, FrameSplitter()
        while not meter.done and (chunk := await answer.read()):
            said = b"".join(meter.take(frame) or b"" for frame in splitter.feed(chunk))
            words = read_words(said)
            self._tokens += len(words)
            await self._say("".join(words))
        if not meter.finished:
            raise EngineFailed("engine_broke_off", "its answer ended before it was finished", suspect=True)

    async def _say(self, words: str) -> None:
        text = self._transcript.said or ""
        words = words if text else words.lstrip()
        if not words:
            return
        self._transcript.said = text + words
        self._note_first()
        self._heard_ms = self._audio_ms
        if self._ask.stream:
            await self._begin_stream()
            await self.client.write(self._transcript.delta_frame(words))

    async def _look(self) -> SoundFile:
        try:
            sound = await asyncio.to_thread(look_at_sound, Path(self._ask.path))
        except NoSound as problem:
            raise EngineRefused("invalid_request", f"The file {problem}.", param="file") from None
        if sound.told and not 0 < sound.duration_s <= self._ask.max_s:
            text = (
                f"The sound is {sound.duration_s:.1f} s long; it must be more than 0 and at most {self._ask.max_s:g} s."
            )
            raise EngineRefused("invalid_request", text, param="file")
        return sound

    async def _hear(self, grant: Grant) -> _Done:
        ask = self._ask
        order = {
            "path": ask.path,
            # No more than was reserved, whatever lengths the file tells; an honest one is off by some frames.
            "max_s": min(ask.max_s, self._audio_ms / 1000 * 1.01 + 1.0),
            "task": ask.task,
            "language": ask.language,
            "prompt": ask.prompt,
            "temperature": ask.temperature,
            "words": "word" in ask.granularities,
        }
        held, done = b"", None
        async for chunk in self._ask_engine(grant, HEAR_PATH, order):
            *lines, held = (held + chunk).split(b"\n")
            if len(held) > _LINE_MAX_BYTES:
                raise EngineFailed("engine_rubbish", "its line has no end", suspect=True)
            for line in lines:
                done = await self._take(line) or done
        if done is None:
            raise EngineFailed("engine_broke_off", "its answer ended before it was finished", suspect=True)
        return done

    async def _take(self, line: bytes) -> _Done | None:
        try:
            found = _decode_line(line)
        except UNREADABLE as error:
            raise EngineFailed("engine_rubbish", f"its line can't be read: {error}", suspect=True) from None
        if isinstance(found, _Done):
            return found
        if isinstance(found, _Failed):
            raise _refuse(found.code, found.message) or EngineFailed("engine_error", found.message, suspect=False)
        heard_s = found.end if isinstance(found, _Segment) else found.heard_s
        self._heard_ms = max(self._heard_ms, math.ceil(heard_s * 1000))
        if isinstance(found, _Segment):
            self._note_first()
            self._tokens += max(1, len(found.tokens))
            delta = self._transcript.add(found)
            if self._ask.stream and delta:
                await self._begin_stream()
                await self.client.write(self._transcript.delta_frame(delta))
        return None

    def _note_first(self) -> None:
        if self._first_token_us is None:
            self._first_token_us = us_since(self.client.received_s)

    async def _begin_stream(self) -> None:
        if not self.started:
            self.started = True
            await self.client.start_stream(self._head(None))

    async def _finish_hearing(self, done: _Done) -> None:
        self._call.closing = True
        transcript = self._transcript
        transcript.language, transcript.duration_s = done.language, done.duration_s
        self._audio_ms = math.ceil(done.duration_s * 1000)
        uncounted = done.output_tokens is None and transcript.text
        usage = Usage(output_tokens=done.output_tokens or 0, audio_ms=self._audio_ms, estimated=self._guessed)
        if self._counted is not None:
            usage = msgspec.structs.replace(self._counted, audio_ms=self._audio_ms)
        try:
            settled = await self._settle("completed", usage, texts=("", transcript.text if uncounted else ""))
        except Refused as refusal:
            if not self.started:
                raise
            await self.client.fail_stream(refusal)
            return
        if self._ask.stream:
            await self._begin_stream()
            await self.client.end_stream(transcript.done_frame(settled.usage))
            return
        body, media_type = transcript.render(self._ask.form)
        await cast(MediaClient, self.client).answer(self._head(settled.cost_nano), body, media_type)

    async def _ask_engine(self, grant: Grant, path: str, order: dict[str, Any]) -> AsyncIterator[bytes]:
        """The engine's answer as it comes. Raises EngineFailed, EngineRefused."""
        try:
            answer = await self._engines.post_json(grant.url + path, grant.token, _encode(order))
        except EngineUnreachable as error:
            raise EngineFailed("engine_unreachable", str(error), suspect=True) from None
        try:
            if answer.status != 200:
                raise await _read_failure(answer)
            while chunk := await answer.read():
                yield chunk
        except EngineUnreachable as error:
            raise EngineFailed("engine_broke_off", str(error), suspect=True) from None
        finally:
            answer.release()

    def _usage_so_far(self) -> Usage:
        counted = self._meter.usage_so_far()
        if counted is not None:
            return msgspec.structs.replace(counted, audio_ms=self._audio_ms)
        return Usage(output_tokens=self._tokens, audio_ms=self._audio_ms, estimated=True)

    def _relayed(self) -> tuple[Usage, str]:
        """What was heard for the text that reached the client."""
        heard_ms = min(self._audio_ms, self._heard_ms)
        return Usage(output_tokens=self._tokens, audio_ms=heard_ms, estimated=True), ""


def _tokens_in(seconds: float) -> int:
    return _TOKENS_LEAST + math.ceil(seconds * _TOKENS_PER_S)


async def _read_failure(answer: Answer) -> EngineRefused | EngineFailed:
    problem = read_problem(await answer.error_body())
    refused = _refuse(problem.code, problem.message) if answer.status < 500 else None
    return refused or EngineFailed("engine_error", f"it answered status {answer.status}", suspect=answer.status != 503)


def _refuse(code: str, message: str) -> EngineRefused | None:
    known = _REFUSALS.get(code)
    return None if known is None else EngineRefused(known[0], message[:500], param=known[1])
