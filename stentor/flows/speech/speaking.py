"""One try at a speech: the engine's events in, sound out as it is made, settled before the last of it goes out.

An engine says with each piece how many characters of the text are spoken and how long the sound is; what was spoken
until a client left, or an engine failed, is known by that. An upstream elsewhere, or an operator's own program, says
neither: its sound is passed on as it comes, and its text counts as spoken from the first byte on.
"""

import base64
import binascii

import msgspec

from stentor.core.books import Grant, Usage
from stentor.core.clock import us_since
from stentor.core.errors import UNREADABLE, Refused
from stentor.egress.engines import EngineAnswer, EngineUnreachable
from stentor.egress.outbound import OutboundAnswer, OutboundFailed
from stentor.flows.attempt import Attempt
from stentor.flows.engine_problem import read_problem
from stentor.flows.failure import EngineFailed, EngineRefused
from stentor.flows.frames import FrameSplitter, FrameTooLarge, frame_data
from stentor.flows.speech.delivery import AsJson, make_way
from stentor.flows.speech.inference import choose_form, inference_request
from stentor.flows.speech.request import PATH, SpeechAsk

# About six minutes: a whole answer is held, copied and written as base64 at once, while other requests wait.
WHOLE_MAX_BYTES = 16 * 1024 * 1024
SOUND_TYPES = ("audio/", "application/octet-stream")


class _Event(msgspec.Struct):
    type: str
    audio: str = ""
    characters: int = 0
    audio_ms: int = 0


_decode_event = msgspec.json.Decoder(_Event).decode


class SpeechAttempt(Attempt):
    """One try at a :class:`SpeechAsk`."""

    _ask: SpeechAsk
    _spoken = (0, 0)  # characters, milliseconds
    _is_blind = False  # nobody says how far in the text the sound is

    async def relay(self) -> None:
        """Have it spoken, pass it on, settle, end it. Raises EngineFailed, EngineRefused."""
        grant = self._granted()
        self._ask.form = self._ask.said["response_format"]  # whoever was asked before may have had its own
        self._overhead_us = max(0, us_since(self.client.received_s) - grant.queued_us)
        self._way = make_way(self._ask.delivery)
        last = await (self._relay_engine(grant) if grant.remote is None else self._relay_remote(grant))
        await self._end(last)

    async def _relay_engine(self, grant: Grant) -> bytes:
        body = self._ask.engine_body(grant.upstream_model)
        try:
            answer = await self._engines.post_json(grant.url + PATH, grant.token, body)
        except EngineUnreachable as error:
            raise EngineFailed("engine_unreachable", str(error), suspect=True) from None
        try:
            if answer.status != 200:
                raise await _read_failure(answer, grant)
            if grant.engine == "command" and answer.content_type != "text/event-stream":
                return await self._relay_sound(answer)
            return await self._relay_events(answer)
        except EngineUnreachable as error:
            raise EngineFailed("engine_broke_off", str(error), suspect=True) from None
        except (FrameTooLarge, binascii.Error, *UNREADABLE) as error:
            raise EngineFailed("engine_rubbish", f"its speech can't be read: {error}", suspect=True) from None
        finally:
            answer.release()

    async def _relay_events(self, answer: EngineAnswer) -> bytes:
        """Pass on what is spoken; returns the last of it, which is held back."""
        splitter = FrameSplitter()
        while chunk := await answer.read():
            out: list[bytes] = []
            for frame in splitter.feed(chunk):
                data = frame_data(frame)
                if data is None:
                    continue
                event = _decode_event(data)
                sound = base64.b64decode(event.audio, validate=True)
                if event.type == "speech.audio.done":
                    await self._pass(out)
                    self._count(event)
                    return sound
                self._count(event)
                out.append(sound)
            await self._pass(out)
        raise EngineFailed("engine_broke_off", "its speech ended before it was whole", suspect=True)

    def _count(self, event: _Event) -> None:
        characters, audio_ms = self._spoken
        self._spoken = (characters + max(0, event.characters), audio_ms + max(0, event.audio_ms))

    async def _relay_remote(self, grant: Grant) -> bytes:
        ask = self._ask
        if grant.engine == "hf-inference":
            path, body = inference_request(ask, grant.upstream_model)
        else:
            path, body = PATH, ask.engine_body(grant.upstream_model)
        answer = await self._engines.remote.ask_sound(grant, path, body)
        try:
            if grant.engine == "hf-inference":
                ask.form = choose_form(ask, answer.content_type)
                if isinstance(self._way, AsJson):
                    self._way.form = ask.form
            return await self._relay_sound(answer)
        except OutboundFailed as error:
            raise EngineFailed("upstream_broke_off", str(error), suspect=True) from None
        finally:
            answer.release()

    async def _relay_sound(self, answer: EngineAnswer | OutboundAnswer) -> bytes:
        """Pass on the sound itself; returns the last of it, which is held back."""
        if not answer.content_type.startswith(SOUND_TYPES):
            kind = answer.content_type[:60] or "nothing"
            raise EngineFailed("engine_rubbish", f"it answered {kind}, not sound", suspect=True)
        self._is_blind = True
        held = b""
        while chunk := await answer.read():
            self._spoken = (len(self._ask.text), 0)
            await self._pass([held])
            held = chunk
        if not held:
            raise EngineFailed("engine_rubbish", "it answered without any sound", suspect=True)
        return held

    async def _pass(self, sounds: list[bytes]) -> None:
        data = b"".join(self._way.piece(sound) for sound in sounds)
        if isinstance(self._way, AsJson) and self._way.size > WHOLE_MAX_BYTES:
            raise EngineRefused(
                "invalid_request",
                f"This speech is over {WHOLE_MAX_BYTES // 2**20} MiB, too much for one JSON answer. Send less text, or "
                "leave out 'Accept: application/json' to have the sound streamed as it is made.",
                param="input",
            )
        if not data:
            return
        if not self.started:
            await self._start()
        await self.client.write(data)

    async def _start(self) -> None:
        self.started = True
        self._first_token_us = us_since(self.client.received_s)
        await self.client.start_stream(self._head(None))

    async def _end(self, last: bytes) -> None:
        self._call.closing = True
        self._spoken = (len(self._ask.text), self._spoken[1])
        usage = self._usage_so_far()
        try:
            settled = await self._settle("completed", usage, texts=self._uncounted(usage))
        except Refused as refusal:
            if not self.started:
                raise
            await self.client.fail_stream(refusal)
            return
        data = self._way.end(last, settled.usage)
        if isinstance(self._way, AsJson):
            await self.client.answer(self._head(settled.cost_nano), data)
            return
        if not self.started:
            await self._start()
        await self.client.end_stream(data)

    def _usage_so_far(self) -> Usage:
        return Usage(characters=self._spoken[0], audio_ms=self._spoken[1])

    def _uncounted(self, usage: Usage | None) -> tuple[str, str]:
        return self._ask.text, ""

    def _relayed(self) -> tuple[Usage, str]:
        usage = self._usage_so_far()
        # How far such a one came in the text before it failed, nobody knows.
        return (Usage(audio_ms=usage.audio_ms) if self._is_blind else usage), ""


async def _read_failure(answer: EngineAnswer, grant: Grant) -> EngineRefused | EngineFailed:
    body = await answer.error_body()
    if answer.status in (404, 405, 501):
        text = f"The engine of '{grant.model}' doesn't offer {PATH}; choose another model."
        return EngineRefused("missing_ability", text, param="model")
    problem = read_problem(body)
    if 400 <= answer.status < 500 and answer.status not in (401, 403, 408, 429):
        param = problem.code if problem.code in ("voice", "response_format") else None
        return EngineRefused("invalid_request", problem.message[:1000] or "The engine gave no reason.", param=param)
    return EngineFailed("engine_error", f"it answered status {answer.status}", suspect=answer.status >= 500)
