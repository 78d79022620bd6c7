"""Upstreams on other machines: asked through the guarded door, answered in the shape that engines have.

What a flow gets is an answer whose first meaningful frame is there already: an upstream that says 200 and then reports
an error, or nothing at all, has failed before anything was relayed, and somebody else can be asked.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext

import msgspec

from stentor.core.books import Grant
from stentor.core.errors import UNREADABLE
from stentor.core.remote import RemoteTerms
from stentor.egress.engines import EngineAnswer, EngineClient, EngineSettings, EngineUnreachable
from stentor.egress.outbound import ERROR_BODY_BYTES, Outbound, OutboundAnswer, OutboundFailed, Patience, StreamedBody
from stentor.egress.sockets import EngineSockets
from stentor.egress.targets import EgressRefused
from stentor.egress.upstreams import read_retry_after, upstream_headers, upstream_url
from stentor.flows.failure import EngineFailed, EngineRefused
from stentor.flows.frames import FrameSplitter, FrameTooLarge, frame_data
from stentor.flows.reshaping import Reshaped
from stentor.flows.upstreams.anthropic_request import to_count, to_messages
from stentor.flows.upstreams.anthropic_stream import MessageStream
from stentor.flows.upstreams.errors import read_remote_error
from stentor.flows.upstreams.pulse import Pulse

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_EVENTS = "text/event-stream"
COUNT_PATH = "/v1/chat/completions/input_tokens"
MESSAGES_COUNT_PATH = "/v1/messages/count_tokens"
# What an upstream answers that doesn't count: one that speaks Anthropic's words by its address, another in its own way.
_LACKS = {"anthropic": frozenset({404, 405, 501}), "openai": frozenset({400, 404, 405, 415, 422, 501})}
_REASONS = {"unreachable": "upstream_unreachable", "timeout": "upstream_timeout"}


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's and OpenRouter's name for it
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Frame(msgspec.Struct):
    choices: list[_Choice] | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_decode_frame = msgspec.json.Decoder(_Frame).decode


class RemoteAnswer:
    """An upstream's stream, in the shape of an engine's answer. ``release`` it at the end, whatever that is."""

    def __init__(self, answer: OutboundAnswer, translate: Callable[[bytes], bytes] | None) -> None:
        self.status = 200
        self.content_type = _EVENTS
        self._answer = answer
        self._translate = translate
        self._held: list[bytes] = []

    async def hold_first(self) -> None:
        """Return when the answer has begun to say something. Raises EngineFailed where it doesn't."""
        splitter = FrameSplitter()
        try:
            while chunk := await self._pull():
                self._held.append(chunk)
                # Every frame of the chunk is looked at: an error must be found even right behind the first word.
                if any([_says_something(frame) for frame in splitter.feed(chunk)]):
                    return
        except EngineUnreachable as error:
            raise _failed("upstream_broke_off", str(error)) from None
        except FrameTooLarge as error:
            raise _failed("upstream_rubbish", str(error)) from None
        raise _failed("upstream_broke_off", "its answer ended before it began")

    async def read(self) -> bytes:
        """What has come in, as frames of a chat completion; empty at the end. Raises EngineUnreachable."""
        if self._held:
            held, self._held = b"".join(self._held), []
            return held
        return await self._pull()

    async def _pull(self) -> bytes:
        while True:
            try:
                chunk = await self._answer.read()
            except OutboundFailed as error:
                raise EngineUnreachable(str(error), answered=True) from None
            if not chunk or self._translate is None:
                return chunk
            translated = self._translate(chunk)
            if translated:
                return translated

    async def error_body(self) -> bytes:
        """Errors never come this far."""
        return b""

    def release(self) -> None:
        """Give the connection back if the answer ended, else close it: the upstream stops working on it."""
        self._answer.release()


class RemoteClient:
    """Asks upstreams elsewhere."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._pulse = Pulse(outbound)

    async def ask_stream(self, grant: Grant, path: str, body: bytes) -> RemoteAnswer:
        """POST a chat or text completion; returns when its first word is there.

        ``body`` is written as for an OpenAI-compatible engine. Raises EngineFailed, EngineRefused.
        """
        terms = _terms(grant)
        answer: RemoteAnswer | None = None
        try:
            async with asyncio.timeout(terms.first_byte_s), self._watched(grant, terms):
                answer = await self._begin(grant, terms, path, body)
                await answer.hold_first()
        except TimeoutError:
            if answer is not None:
                answer.release()
            raise _failed("upstream_timeout", f"no word of it came within {terms.first_byte_s:g} s") from None
        except BaseException:  # a cancelled request too must close its connection, or the upstream works on
            if answer is not None:
                answer.release()
            raise
        return answer

    def _watched(self, grant: Grant, terms: RemoteTerms) -> AbstractAsyncContextManager[None]:
        """A wait for the grant's upstream that ends if it is a node that has stopped. Raises EngineFailed."""
        return self._pulse.beside(grant.url) if terms.ours else nullcontext()

    async def _begin(self, grant: Grant, terms: RemoteTerms, path: str, body: bytes) -> RemoteAnswer:
        translate: Callable[[bytes], bytes] | None = None
        if terms.kind == "anthropic":
            if path != "/v1/chat/completions":
                raise EngineRefused("missing_ability", f"The model '{grant.model}' answers conversations alone.")
            path, body, translate = "/v1/messages", to_messages(body), MessageStream(str(grant.model)).feed
        else:
            body = _cap_under(terms.cap_field, body)
        answer = await self._send(grant, terms, path, body)
        if answer.content_type != _EVENTS:
            answer.release()
            raise _failed("upstream_rubbish", f"it answered {answer.content_type[:60] or 'nothing'}, not a stream")
        return RemoteAnswer(answer, translate)

    async def ask_whole(self, grant: Grant, path: str, body: bytes | StreamedBody, limit_bytes: int) -> bytes:
        """POST something that is answered whole; returns the answer. Raises EngineFailed, EngineRefused."""
        terms = _terms(grant)
        lacks: frozenset[int] = frozenset()
        if path == COUNT_PATH and isinstance(body, bytes):
            # Counting has no OpenAI shape that all speak; servers that count at all know Anthropic's.
            path, body, lacks = MESSAGES_COUNT_PATH, to_count(body), _LACKS[terms.kind]
        elif terms.kind == "anthropic":
            raise EngineRefused("missing_ability", f"The model '{grant.model}' answers conversations alone.")
        async with self._watched(grant, terms):
            answer = await self._send(grant, terms, path, body, lacks)
        parts: list[bytes] = []
        size = 0
        try:
            while chunk := await answer.read():
                size += len(chunk)
                if size > limit_bytes:
                    raise _failed("upstream_rubbish", f"it answered over {limit_bytes} bytes")
                parts.append(chunk)
        except OutboundFailed as error:
            raise _failed("upstream_broke_off", str(error)) from None
        finally:
            answer.release()
        return b"".join(parts)

    async def ask_sound(self, grant: Grant, path: str, body: bytes) -> OutboundAnswer:
        """POST something that is answered with sound; returns when it begins. Raises EngineFailed, EngineRefused."""
        terms = _terms(grant)
        if terms.kind == "anthropic":
            raise EngineRefused("missing_ability", f"The model '{grant.model}' answers conversations alone.")
        answer = await self._send(grant, terms, path, body)
        if not answer.content_type.startswith(("audio/", "application/octet-stream")):
            answer.release()
            raise _failed("upstream_rubbish", f"it answered {answer.content_type[:60] or 'nothing'}, not sound")
        return answer

    async def _send(
        self,
        grant: Grant,
        terms: RemoteTerms,
        path: str,
        body: bytes | StreamedBody,
        lacks: frozenset[int] = frozenset(),
    ) -> OutboundAnswer:
        """``lacks`` are the statuses of an upstream that has no such path."""
        try:
            answer = await self._outbound.send(
                "POST",
                upstream_url(terms.kind, grant.url, path),
                headers={"Content-Type": "application/json", **upstream_headers(terms.kind, grant.token)},
                body=body,
                patience=Patience(terms.first_byte_s, terms.stall_s),
                trusted=terms.trusted,
            )
        except EgressRefused as refusal:
            raise _failed("upstream_not_allowed", refusal.message) from None
        except OutboundFailed as error:
            raise _failed(_REASONS.get(error.trouble, "upstream_broke_off"), str(error)) from None
        if answer.status == 200:
            return answer
        try:
            text = await answer.read_at_most(ERROR_BODY_BYTES)
        finally:
            answer.release()
        if answer.status in lacks:
            problem = f"The upstream of '{grant.model}' doesn't offer {path}; choose another model."
            raise EngineRefused("missing_ability", problem, param="model")
        raise read_remote_error(grant, answer.status, text, read_retry_after(answer))


Answer = EngineAnswer | Reshaped | RemoteAnswer


class Upstreams(EngineClient):
    """The engines of this machine, asked directly, and beside them the upstreams of others."""

    def __init__(self, settings: EngineSettings, remote: RemoteClient) -> None:
        super().__init__(settings)
        self.remote = remote
        self.sockets = EngineSockets()

    async def close(self) -> None:
        """Close every connection."""
        await super().close()
        await self.sockets.close()


def _terms(grant: Grant) -> RemoteTerms:
    assert grant.remote is not None
    return grant.remote


def _says_something(frame: bytes) -> bool:
    data = frame_data(frame)
    if data is None or data == b"null":
        return False
    if data == b"[DONE]":
        return True
    try:
        parts = _decode_frame(data)
    except UNREADABLE as error:
        raise _failed("upstream_rubbish", f"it sent a frame that can't be read: {error}") from None
    if bytes(parts.error) != b"null":
        raise _failed("upstream_error", "it reported an error of its own")
    return any(_choice_says(choice) for choice in parts.choices or ())


def _choice_says(choice: _Choice) -> bool:
    delta = choice.delta
    if choice.finish_reason or choice.text:
        return True
    if delta is None:
        return False
    return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.refusal or delta.tool_calls)


def _cap_under(field: str, body: bytes) -> bytes:
    if field == "max_tokens":
        return body
    fields = _decode_fields(body)
    fields[field] = fields.pop("max_tokens")
    return _encode(fields)


def _failed(reason: str, problem: str) -> EngineFailed:
    return EngineFailed(reason, problem, suspect=True)
