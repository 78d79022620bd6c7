"""Chat and text completions: open, relay, close.

The way of a request, in this order: the books admit it, reserve the worst case and give it a place on an instance; the
engine's stream is relayed frame by frame, or assembled; what makes the answer finished is held back until the books
are settled. Each try is an :class:`~stentor.flows.attempt.Attempt`; here is decided what happens after it.
"""

import asyncio

from stentor.core.books import Books, Grant
from stentor.core.errors import Refused
from stentor.core.principal import Principal
from stentor.flows.ask import Ask
from stentor.flows.attempt import Attempt
from stentor.flows.calls import Call, Interruption
from stentor.flows.client import Client, Labels
from stentor.flows.failure import EngineFailed, EngineRefused
from stentor.flows.images import ImageFetcher, check_images
from stentor.flows.upstreams.remote import Upstreams
from stentor.telemetry.trace import Tracer

ATTEMPTS_MAX = 2
_NOT_TRIED_AGAIN = frozenset({"upstream_busy", "upstream_timeout", "upstream_credential", "upstream_not_allowed"})

_INTERRUPTIONS: dict[Interruption, Refused] = {
    "key_revoked": Refused("invalid_api_key", "The API key was revoked while this request was running."),
    "server_shutdown": Refused(
        "server_shutdown", "The server is shutting down; try again in a moment.", retry_after_s=5.0
    ),
    "server_restarting": Refused(
        "server_restarting", "The server is restarting; try again in a moment.", retry_after_s=2.0
    ),
}


class ChatFlow:
    """Serves one kind of request for a whole worker."""

    def __init__(
        self,
        books: Books,
        engines: Upstreams,
        tracer: Tracer,
        attempt: type[Attempt] = Attempt,
        images: ImageFetcher | None = None,
    ) -> None:
        """``attempt`` is how one try is made: an answer that is relayed as it comes, unless said otherwise.

        ``images`` fetches what requests name instead of sending it; None: nobody does.
        """
        self._images = images
        self._attempt = attempt
        self._books = books
        self._engines = engines
        self._tracer = tracer

    async def run(self, principal: Principal, ask: Ask, client: Client, call: Call, labels: Labels) -> None:
        """Answer ``ask``. Raises Refused as long as nothing was sent; afterwards all is said within the stream."""
        if ask.images:
            check_images(self._images, ask)
        number = step = 0
        failed: Refused | None = None
        while step >= 0:
            number += 1
            span = self._tracer.start(ask.endpoint, ask.model, stream=ask.stream, traceparent=labels.traceparent)
            attempt = self._attempt(self._books, self._engines, ask, client, call, span)
            try:
                await attempt.open(principal, number, labels.client_request_id, step)
                if ask.images and self._images is not None:
                    await attempt.fetch_images(self._images)
                await attempt.relay()
            except EngineFailed as failure:
                step, failed = await self._after_failure(attempt, failure, number, call)
            except EngineRefused as refusal:
                await attempt.settle_failed(EngineFailed("engine_refused", refusal.message, suspect=False))
                raise
            except Refused as refusal:
                # Where nobody else can take over, what went wrong first is told.
                raise (failed if failed is not None and attempt.grant is None else refusal) from None
            except asyncio.CancelledError:
                await self._interrupted(attempt, call.take_interruption())
                return
            else:
                return
            finally:
                if attempt.is_open:
                    await attempt.abandon()

    async def _after_failure(
        self, attempt: Attempt, failure: EngineFailed, number: int, call: Call
    ) -> tuple[int, Refused]:
        """Settle it; which model of the chain is tried next (below 0: it is over), and what it means if none is.

        Raises Refused where nothing was sent and nobody is left to ask.
        """
        await attempt.settle_failed(failure)
        failed = failure.refusal or _engine_failed(str(failure))
        if attempt.started:
            await attempt.client.fail_stream(_engine_failed(str(failure)))
            return -1, failed
        step = plan_next_step(attempt.grant, failure, number)
        if step < 0:
            raise failed from None
        missed = call.reopen()
        if missed is not None:
            await self._interrupted(attempt, missed)
            return -1, failed
        return step, failed

    async def _interrupted(self, attempt: Attempt, reason: Interruption) -> None:
        if attempt.is_open and reason != "server_restarting":
            await attempt.settle_interrupted(reason)
        refusal = _INTERRUPTIONS.get(reason)
        if refusal is None:
            return
        if not attempt.started:
            raise refusal
        await attempt.client.fail_stream(refusal)


def plan_next_step(grant: Grant | None, failure: EngineFailed, number: int) -> int:
    """Which model of the chain is tried after ``number`` tries, by its step; -1 for none.

    The next one where there is one; else a second try, unless the upstream asked for a rest or took its time.
    """
    assert grant is not None
    if grant.step + 1 < grant.steps:
        return grant.step + 1
    if number >= ATTEMPTS_MAX or failure.reason in _NOT_TRIED_AGAIN:
        return -1
    return grant.step


def _engine_failed(problem: str) -> Refused:
    return Refused(
        "engine_failed",
        f"The model's engine failed: {problem}. Nothing after the last sent word was charged; try again.",
        retry_after_s=1.0,
    )
