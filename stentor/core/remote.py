"""What a gateway worker has to know to ask an upstream on another machine."""

from typing import Literal

import msgspec

RemoteKind = Literal["openai", "anthropic", "hf-inference"]


class RemoteTerms(msgspec.Struct, frozen=True, array_like=True):
    """How an upstream is spoken to. ``trusted``: the operator wrote its address into the settings file.

    ``first_byte_s`` is the wait for the first word of an answer, ``stall_s`` of silence within one. ``cap_field`` is
    the field by which an OpenAI-compatible upstream wants the bound of its output. ``ours``: it is another node of this
    server, so the model is priced as one of this machine.
    """

    kind: RemoteKind
    trusted: bool = False
    first_byte_s: float = 60.0
    stall_s: float = 60.0
    cap_field: str = "max_tokens"
    ours: bool = False
