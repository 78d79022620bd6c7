"""Requests that read and generate nothing: embeddings, rankings, tokens. One whole answer, in steps.

They are admitted, reserved, tried and settled as conversations are; what differs is here. A request with many inputs
goes to the engine in steps of a few: no engine can be stopped in the middle of such work, so a client that leaves, or
a key that is revoked, ends it after the step, and other requests get their turn between two of them.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from stentor.core.books import Grant, Usage
from stentor.core.clock import us_since
from stentor.core.errors import Refused
from stentor.egress.engines import EngineUnreachable
from stentor.flows.answer import EngineRubbish
from stentor.flows.ask import Ask
from stentor.flows.attempt import Attempt, read_failure
from stentor.flows.failure import EngineFailed, EngineRefused

STEP_ANSWER_MAX_BYTES = 64 * 1024 * 1024


class Step(NamedTuple):
    """One question to the engine."""

    path: str
    body: bytes


class Work(Protocol):
    """One try at a request: what to ask the engine, and what came back of it."""

    input_tokens: int
    is_free: bool

    def steps(self) -> Iterable[Step]:
        """What to ask, in this order. Raises Refused for a field that must not reach an engine."""
        ...

    def take(self, answer: bytes) -> None:
        """The engine's answer to the last step. Raises EngineRubbish, and Refused where it can't serve the request."""
        ...

    def body(self, usage: Usage) -> bytes:
        """The whole answer for the client."""
        ...


class InputsAsk(Ask):
    """A checked request without output. ``param`` is the field that holds the inputs; ``can_estimate``: where nobody
    counts what they are, an estimate will do."""

    __slots__ = ("begin", "can_estimate", "param", "surface", "text")

    begin: Callable[[Grant], Work]
    text: Callable[[], str]
    param: str

    def __init__(self, path: str, needs: tuple[str, ...], param: str) -> None:
        self.surface = path
        self.kind = "completion"
        self.needs = needs
        self.param = param
        self.stream = self.include_usage = self.can_estimate = False
        self.output_asked = 0
        self.answers = 1
        self.media = 0
        self.prefix = 0
        self.images = ()
        self.keep_s = None

    @property
    def endpoint(self) -> str:
        return self.surface


class InputsAttempt(Attempt):
    """One try at an :class:`InputsAsk`."""

    _ask: InputsAsk

    async def relay(self) -> None:
        """Ask the engine, step by step, settle, and answer. Raises EngineFailed, EngineRefused."""
        grant = self._granted()
        self._overhead_us = max(0, us_since(self.client.received_s) - grant.queued_us)
        work = self._ask.begin(grant)
        self._is_free = work.is_free
        counts = await self._work(grant, work)
        self._call.closing = True
        # An upstream that doesn't say what it read isn't free for that.
        counted = counts and (work.input_tokens or work.is_free)
        usage = Usage(input_tokens=work.input_tokens) if counted else None
        settled = await self._settle("completed", usage, texts=self._uncounted(usage), billable=not self._is_free)
        await self.client.answer(self._head(settled.cost_nano), work.body(settled.usage))

    async def _work(self, grant: Grant, work: Work) -> bool:
        """Do the work; False where the engine can't, and an estimate will do. Raises EngineFailed, EngineRefused."""
        try:
            for step in work.steps():
                work.take(await self._ask_engine(grant, step))
        except EngineRubbish as error:
            raise EngineFailed("engine_rubbish", str(error), suspect=True) from None
        except EngineRefused as refusal:
            if refusal.code == "missing_ability" and self._ask.can_estimate and not self._ask.media:
                return False
            raise
        except Refused as refusal:
            raise EngineRefused(refusal.code, refusal.message, param=refusal.param) from None
        return True

    async def _ask_engine(self, grant: Grant, step: Step) -> bytes:
        if grant.remote is not None:
            return await self._engines.remote.ask_whole(grant, step.path, step.body, STEP_ANSWER_MAX_BYTES)
        try:
            answer = await self._engines.post_json(grant.url + step.path, grant.token, step.body)
        except EngineUnreachable as error:
            raise EngineFailed("engine_unreachable", str(error), suspect=True) from None
        parts: list[bytes] = []
        size = 0
        try:
            if answer.status in (404, 501):
                text = f"The engine of '{grant.model}' doesn't offer {step.path}; choose another model."
                raise EngineRefused("missing_ability", text, param="model")
            if answer.status != 200:
                raise await read_failure(answer, self._ask.param)
            while chunk := await answer.read():
                size += len(chunk)
                if size > STEP_ANSWER_MAX_BYTES:
                    raise EngineFailed("engine_rubbish", f"it answered over {size} bytes", suspect=True)
                parts.append(chunk)
        except EngineUnreachable as error:
            raise EngineFailed("engine_broke_off", str(error), suspect=True) from None
        finally:
            answer.release()
        return b"".join(parts)

    def _usage_so_far(self) -> Usage | None:
        return None

    def _uncounted(self, usage: Usage | None) -> tuple[str, str]:
        return ("", "") if usage is not None else (self._ask.text(), "")
