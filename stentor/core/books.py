"""The first of the two interfaces to the node authority: keys, limits, balances and settlement.

Two implementations stand behind :class:`Books`: the authority itself, called in the same process, and
``stentor.control.workers.client``, which speaks to it over an inherited socketpair. One test suite runs on both.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from stentor.core.ids import InstanceId, KeyId, ModelId, RequestId
from stentor.core.principal import Principal
from stentor.core.remote import RemoteTerms

Outcome = Literal["completed", "cancelled", "failed"]


class Usage(msgspec.Struct, array_like=True):
    """Tokens of one answer. ``cached_tokens`` are part of ``input_tokens``, ``reasoning_tokens`` of the output."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    audio_ms: int = 0
    characters: int = 0
    estimated: bool = False


class Open(msgspec.Struct, frozen=True, array_like=True):
    """A request for admission: who asks, for which model, and the most it could use.

    ``input_bound`` is an upper bound of the prompt in tokens, before it is capped by the model's context;
    ``output_asked`` is what the client asked for (None: the server's default; 0: nothing is generated, and the context
    bounds each of the inputs, not their sum); ``answers`` is ``n``.
    ``needs`` are abilities that the model must have (``text``, ``image``, ``audio``, ``embedding``, …).
    ``media`` counts images and clips, which ``input_bound`` leaves out: the model says what each can cost at most.
    ``prefix_key`` identifies the start of the conversation for prefix affinity (0: none).
    ``audio_ms`` and ``characters`` bound the sound that is to be heard (or made) and the text that is to be spoken.
    ``step`` is how many models of the chain (the one asked for, then its fallbacks) aren't to be tried any more.
    ``keep_s`` is how long the model shall be kept once it is idle (None: as the operator says, inf: for ever).
    """

    request_id: RequestId
    attempt: int
    key_id: KeyId
    endpoint: str
    model: str
    input_bound: int
    output_asked: int | None = None
    answers: int = 1
    needs: tuple[str, ...] = ("text",)
    stream: bool = False
    client_request_id: str | None = None
    prefix_key: int = 0
    queue_timeout_s: float | None = None
    media: int = 0
    step: int = 0
    audio_ms: int = 0
    characters: int = 0
    keep_s: float | None = None


class Extend(msgspec.Struct, frozen=True, array_like=True):
    """The most that an open attempt could use, now that it is known: it takes the place of what ``Open`` said."""

    request_id: RequestId
    attempt: int
    output: int
    audio_ms: int = 0
    characters: int = 0
    prompt: int = 0


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """Permission to use one place of one instance: settle it with :class:`Close`, exactly once.

    ``url`` is the engine's base address (``http://127.0.0.1:4801``), ``token`` its bearer token, ``output_cap`` the
    number of output tokens per answer that was reserved and that the engine must be held to. ``upstream_model`` is the
    name the engine knows the model by, ``engine`` the field table to use (``llama``, ``command``, …), ``abilities``
    what the model can do. ``remote`` is set where another server answers; ``model`` stands at ``step`` in a chain of
    ``steps`` models.
    """

    request_id: RequestId
    attempt: int
    model: ModelId
    instance: InstanceId
    generation: int
    url: str
    token: str
    upstream_model: str
    engine: str
    output_cap: int
    context_size: int
    queued_us: int = 0
    abilities: tuple[str, ...] = ()
    remote: RemoteTerms | None = None
    step: int = 0
    steps: int = 1


class Close(msgspec.Struct, frozen=True, array_like=True):
    """The end of one attempt: what it used and how it ended. ``billable`` False books an event of cost 0.

    ``count_input`` and ``count_output`` are set where the engine gave no usage: the authority counts the tokens of
    these texts (cl100k) into ``usage``, marks it ``estimated``, and forgets the texts. ``upstream_ok`` says whether a
    remote upstream did its part (None: nobody knows), ``retry_after_s`` for how long it asked to be left alone.
    """

    request_id: RequestId
    attempt: int
    outcome: Outcome
    usage: Usage
    reason: str = ""
    billable: bool = True
    latency_us: int = 0
    first_token_us: int | None = None
    overhead_us: int | None = None
    instance_suspect: bool = False
    count_input: str = ""
    count_output: str = ""
    upstream_ok: bool | None = None
    retry_after_s: float = 0.0


class Settled(msgspec.Struct, frozen=True, array_like=True):
    """The durable result of a :class:`Close`: what was charged and absorbed (nano-USD), and what was counted."""

    cost_nano: int
    absorbed_nano: int
    usage: Usage


class Books(Protocol):
    """Keys, limits, balances and settlement."""

    async def find_principal(self, key_digest: bytes) -> Principal | None:
        """The caller behind a key's keyed hash (32 bytes), or None. Raises StoreUnavailable, never a false None."""
        ...

    async def open(self, ask: Open) -> Grant:
        """Admit, reserve the worst case, and take a place on an instance, in one step.

        Waits in the model's queue where all places are taken, at most until the queue's deadline. Raises
        :class:`~stentor.core.errors.Refused` naming the rule; a cancelled wait leaves nothing reserved.
        """
        ...

    async def extend(self, more: Extend) -> None:
        """Reserve what a request could use that was opened before that was known: how long a sound is, an engine says.

        Raises :class:`~stentor.core.errors.Refused` naming the rule; then the attempt still holds what it held, and
        has to be closed.
        """
        ...

    async def close(self, end: Close) -> Settled:
        """Replace the reservation by the actual usage and append the event; returns once that is durable.

        Closing an attempt twice returns the first result and charges nothing more. Raises StoreUnavailable when the
        commit failed: then nothing was charged and the client must not see a clean end.
        """
        ...

    async def find_problem(self) -> str | None:
        """Why the store can't be written now, for readiness; None when all is well."""
        ...

    def on_revoked(self, listener: Callable[[KeyId], None]) -> None:
        """Call ``listener`` whenever a key stops being valid or may do less (revoked, rotated out, narrowed)."""
        ...

    def on_changed(self, listener: Callable[[KeyId], None]) -> None:
        """Call ``listener`` whenever what is known of a key holds no more: also when it may do more, or for longer."""
        ...
