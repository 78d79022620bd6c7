"""One try on one instance: from the grant, over the relay, to the settlement, which happens exactly once."""

import asyncio
import contextlib
import re
from zlib import crc32

import msgspec

from stentor.core.books import Books, Close, Grant, Open, Outcome, Settled, Usage
from stentor.core.clock import us_since
from stentor.core.errors import Refused
from stentor.core.principal import Principal
from stentor.egress.engines import EngineUnreachable
from stentor.flows.answer import AnswerMeter, EngineError, EngineRubbish, usage_frame
from stentor.flows.ask import Ask, engine_body, prompt_text
from stentor.flows.assembly import Assembly
from stentor.flows.calls import Call, Interruption
from stentor.flows.client import AnswerHead, Client
from stentor.flows.failure import EngineFailed, EngineRefused, engine_error, is_the_requests_fault, refused_by_engine
from stentor.flows.fields import LLAMA_ENGINES, NODE
from stentor.flows.frames import FrameSplitter, FrameTooLarge
from stentor.flows.images import ImageFetcher
from stentor.flows.reshaping import reshape
from stentor.flows.upstreams.remote import Answer, Upstreams
from stentor.telemetry.trace import Span

SETTLE_TIMEOUT_S = 30.0
DONE_FRAME = b"data: [DONE]\n\n"
# llama-server answers this with 500, though it is the client's doing.
_TOO_LARGE = re.compile(r"input \((\d+) tokens\) is too large to process.*batch size: (\d+)")


class _WireError(msgspec.Struct):
    message: str = ""
    type: str | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _WireErrorBody(msgspec.Struct):
    error: _WireError


_decode_error = msgspec.json.Decoder(_WireErrorBody).decode


class Attempt:
    """One try on one instance, from the grant to the settlement."""

    def __init__(self, books: Books, engines: Upstreams, ask: Ask, client: Client, call: Call, span: Span) -> None:
        self.client = client
        self._span = span
        self.grant: Grant | None = None
        self.started = False
        self._books = books
        self._engines = engines
        self._ask = ask
        self._call = call
        self._meter = AnswerMeter(answers=ask.answers, include_usage=ask.include_usage)
        self._assembly = None if ask.stream else Assembly(ask.kind)
        self._frames: list[bytes] = []
        self._keep_frames = False
        self._overhead_us = 0
        self._first_token_us: int | None = None
        self._settled = False
        self._retry_after_s = 0.0
        self._preparing = False
        self._is_free = False

    async def open(self, principal: Principal, number: int, label: str | None, step: int = 0) -> None:
        ask = self._ask
        wanted = Open(
            request_id=self.client.request_id,
            attempt=number,
            key_id=principal.key_id,
            endpoint=ask.endpoint,
            model=ask.model,
            input_bound=ask.input_bound,
            output_asked=ask.output_asked,
            answers=ask.answers,
            needs=ask.needs,
            stream=ask.stream,
            client_request_id=label,
            prefix_key=crc32(principal.project_id.encode(), ask.prefix),
            media=ask.media,
            step=step,
            audio_ms=ask.audio_ms,
            characters=ask.characters,
            keep_s=ask.keep_s,
        )
        try:
            self.grant = await self._books.open(wanted)
        except Refused as refusal:
            self._span.refuse(refusal.code)
            raise
        except asyncio.CancelledError:
            self._span.refuse("client_left")
            raise

    async def fetch_images(self, images: ImageFetcher) -> None:
        """Bring in what the request names, before an engine hears of it. Raises EngineRefused."""
        self._preparing = True
        await images.inline(self._ask)
        self._preparing = False

    async def relay(self) -> None:
        """Ask the engine and pass its answer on. Raises EngineFailed, EngineRefused."""
        grant = self._granted()
        body = self._body(grant)
        self._keep_frames = grant.engine not in LLAMA_ENGINES
        self._overhead_us = max(0, us_since(self.client.received_s) - grant.queued_us)
        path = self._ask.engine_path
        answer: Answer
        try:
            if grant.remote is None:
                said = await self._engines.post_json(grant.url + path, grant.token, body)
                answer = reshape(self._ask, grant.engine, said)
            else:
                answer = await self._engines.remote.ask_stream(grant, path, body)
        except EngineUnreachable as error:
            raise EngineFailed("engine_unreachable", str(error), suspect=True) from None
        try:
            await _check_head(answer)
            held = await self._relay_frames(answer)
        finally:
            answer.release()
        await self._finish(held)

    def _granted(self) -> Grant:
        assert self.grant is not None
        return self.grant

    def _body(self, grant: Grant) -> bytes:
        engine = NODE if grant.remote is not None and grant.remote.ours else grant.engine
        try:
            return engine_body(
                self._ask, engine=engine, upstream_model=grant.upstream_model, output_cap=grant.output_cap
            )
        except Refused as refusal:
            raise EngineRefused(refusal.code, refusal.message, param=refusal.param) from None

    async def _relay_frames(self, answer: Answer) -> list[bytes]:
        """Relay, or collect, until the answer is finished; returns the frames that were held back."""
        meter = self._meter
        held: list[bytes] = []
        try:
            if self._assembly is not None:
                await self._collect(answer, self._assembly)
            else:
                await self._relay_stream(answer, held)
        except EngineUnreachable as error:
            # A finished and counted answer is whole, even if the engine died before the last line feed.
            if not (meter.finished and meter.counted):
                raise EngineFailed("engine_broke_off", str(error), suspect=True) from None
        except EngineError as error:
            raise engine_error("it reported an error of its own", str(error)) from error
        except (EngineRubbish, FrameTooLarge) as error:
            raise EngineFailed("engine_rubbish", str(error), suspect=True) from None
        if not meter.finished:
            raise EngineFailed("engine_broke_off", "its answer ended before it was finished", suspect=True)
        return held

    async def _collect(self, answer: Answer, assembly: Assembly) -> None:
        try:
            while not assembly.done:
                chunk = await answer.read()
                if not chunk:
                    break
                if self._first_token_us is None:
                    self._first_token_us = us_since(self.client.received_s)
                assembly.feed(chunk)
        except EngineUnreachable:
            # What came before the end may be a whole answer.
            assembly.read(self._meter)
            raise
        assembly.read(self._meter)

    async def _relay_stream(self, answer: Answer, held: list[bytes]) -> None:
        meter = self._meter
        splitter = FrameSplitter()
        while not meter.done:
            chunk = await answer.read()
            if not chunk:
                break
            out: list[bytes] = []
            try:
                for frame in splitter.feed(chunk):
                    relayed = meter.take(frame)
                    if relayed is not None:
                        (held if meter.finished or meter.done else out).append(relayed)
            except (EngineError, EngineRubbish):
                # What came in the same read before the engine failed belongs to an answer that has begun.
                if out and self.started:
                    await self._pass_on(out)
                raise
            if out:
                await self._pass_on(out)

    async def _pass_on(self, frames: list[bytes]) -> None:
        if not self.started:
            self.started = True
            self._first_token_us = us_since(self.client.received_s)
            await self.client.start_stream(self._head(None))
        if self._keep_frames:
            self._frames += frames
        await self.client.write(b"".join(frames))

    async def _finish(self, held: list[bytes]) -> None:
        """Settle, and only then let the client have the end."""
        self._call.closing = True
        meter = self._meter
        if self._keep_frames:
            self._frames += held
        usage = meter.usage() if meter.counted else None
        try:
            settled = await self._settle("completed", usage, texts=self._uncounted(usage))
        except Refused as refusal:
            if self.started:
                await self.client.fail_stream(refusal)
                return
            raise
        if self._assembly is not None:
            await self.client.answer(self._head(settled.cost_nano), self._assembly.body(settled.usage))
            return
        if not meter.done:
            held.append(meter.closing_frames(DONE_FRAME))
        if self._ask.include_usage and not meter.usage_frame:
            held.insert(len(held) - 1, usage_frame(held[0], settled.usage))
        if not self.started:
            self.started = True
            await self.client.start_stream(self._head(None))
        await self.client.end_stream(b"".join(held))

    def _usage_so_far(self) -> Usage | None:
        """What a cut answer used: read from what came in."""
        if self._assembly is not None:
            # What was counted up to a broken frame is what there is.
            with contextlib.suppress(EngineError, EngineRubbish, FrameTooLarge):
                for frame in self._assembly.frames():
                    self._meter.take(frame)
        return self._meter.usage_so_far()

    def _head(self, cost_nano: int | None) -> AnswerHead:
        grant = self._granted()
        return AnswerHead(grant.model, grant.instance, self._overhead_us, cost_nano, self._meter.progress)

    async def settle_failed(self, failure: EngineFailed) -> None:
        """Not the client's fault: nothing before the first relayed byte, after it only the output that was relayed."""
        self._call.closing = True
        self._retry_after_s = failure.retry_after_s
        usage, text = self._relayed() if self.started else (Usage(), "")
        try:
            await self._settle(
                "failed",
                usage,
                texts=("", text),
                reason=failure.reason,
                billable=self.started,
                suspect=failure.suspect,
            )
        except Refused:
            # The store can't book a failed attempt: it is charged nothing, and the failure itself is answered.
            return

    def _relayed(self) -> tuple[Usage, str]:
        """The output that reached the client: counted by the engine, or its text to be counted."""
        usage = self._usage_so_far()
        if usage is not None:
            return Usage(output_tokens=usage.output_tokens, estimated=usage.estimated), ""
        if self._keep_frames:
            return Usage(estimated=True), self._generated_text()
        return Usage(output_tokens=self._meter.content_frames, estimated=True), ""

    def _uncounted(self, usage: Usage | None) -> tuple[str, str]:
        """The texts to be counted where the engine gave no numbers."""
        return ("", "") if usage is not None else (prompt_text(self._ask), self._generated_text())

    @property
    def is_open(self) -> bool:
        """Whether it holds a grant that nobody has settled."""
        return self.grant is not None and not self._settled

    async def abandon(self) -> None:
        """A defect of this server cut it short: nothing is charged, and nothing stays reserved."""
        self._call.closing = True
        with contextlib.suppress(Refused):
            await self._settle("failed", Usage(), texts=("", ""), reason="internal_error", billable=False)

    async def settle_interrupted(self, reason: Interruption) -> None:
        """The client left: the prompt in full and the output so far. The server's own doing: what was relayed."""
        if reason == "server_shutdown":
            await self.settle_failed(EngineFailed(reason, reason, suspect=False))
            return
        try:
            # No engine has begun while images are on their way: then nothing was used.
            billable = not (self._preparing or self._is_free)
            usage = self._usage_so_far() if billable else Usage()
            await self._settle("cancelled", usage, texts=self._uncounted(usage), reason=reason, billable=billable)
        except Refused:
            # Nobody is there to be told; the reservation is given back uncharged.
            return

    async def _settle(
        self,
        outcome: Outcome,
        usage: Usage | None,
        *,
        texts: tuple[str, str],
        reason: str = "",
        billable: bool = True,
        suspect: bool = False,
    ) -> Settled:
        if self._settled:
            raise AssertionError("an attempt is settled once")
        self._settled = True
        grant = self._granted()
        end = Close(
            request_id=grant.request_id,
            attempt=grant.attempt,
            outcome=outcome,
            usage=usage or Usage(estimated=True),
            reason=reason,
            billable=billable,
            latency_us=us_since(self.client.received_s),
            first_token_us=self._first_token_us,
            overhead_us=self._overhead_us,
            instance_suspect=suspect,
            count_input=texts[0],
            count_output=texts[1],
        )
        if grant.remote is not None:
            ok = True if outcome == "completed" else False if suspect else None
            end = msgspec.structs.replace(end, upstream_ok=ok, retry_after_s=self._retry_after_s)
        self._call.expire_in(SETTLE_TIMEOUT_S)
        try:
            settled = await self._books.close(end)
        except Refused as refusal:
            self._span.refuse(refusal.code)
            raise
        except asyncio.CancelledError:
            self._span.refuse("store_unavailable")
            if not self._call.take_expiry():
                raise
            raise Refused(
                "store_unavailable",
                f"The answer could not be booked within {SETTLE_TIMEOUT_S:.0f} s; try again shortly.",
                retry_after_s=5.0,
            ) from None
        finally:
            self._call.stay()
        self._span.end(grant, end, settled)
        return settled

    def _generated_text(self) -> str:
        """All that the engine made, for counting where it gave no numbers."""
        whole = self._assembly
        if whole is None:
            whole = Assembly(self._ask.kind)
            for frame in self._frames:
                whole.feed(frame)
        return whole.text()


async def _check_head(answer: Answer) -> None:
    """Let a stream through; make an error of the rest. Raises EngineRefused, EngineFailed."""
    if answer.status == 200:
        if answer.content_type != "text/event-stream":
            raise EngineFailed("engine_rubbish", f"it answered {answer.content_type}, not a stream", suspect=True)
        return
    raise await read_failure(answer)


async def read_failure(answer: Answer, param: str = "messages") -> EngineRefused | EngineFailed:
    """What an engine's error answer means: the request's fault, or the engine's. ``param`` is what may be too long."""
    body = await answer.error_body()
    try:
        error = _decode_error(body).error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        error = _WireError()
    if error.type == "exceed_context_size_error":
        return _too_long(error.n_prompt_tokens, error.n_ctx, param)
    batch = _TOO_LARGE.match(error.message) if answer.status == 500 else None
    if batch is not None:
        return _too_long(int(batch[1]), int(batch[2]), param)
    unread = answer.status == 500 and is_the_requests_fault(error.message)
    if unread or (400 <= answer.status < 500 and answer.status not in (401, 403, 404, 408, 429)):
        return refused_by_engine(error.message)
    return engine_error(f"it answered status {answer.status}", error.message, is_server_error=answer.status >= 500)


def _too_long(tokens: int | None, context_size: int | None, param: str) -> EngineRefused:
    return EngineRefused(
        "context_length_exceeded",
        f"This prompt has {tokens} tokens; the model's context is {context_size} tokens per request. "
        "Shorten the prompt or choose a model with a longer context.",
        param=param,
        details={"prompt_tokens": tokens, "context_size": context_size},
    )
