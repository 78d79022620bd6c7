"""What an operator says about a model that another server runs."""

from typing import Annotated, Literal

import msgspec

from stentor.core.remote import RemoteKind, RemoteTerms
from stentor.egress.targets import EgressRefused, check_base

_USD = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
_SECONDS = Annotated[float, msgspec.Meta(gt=0, le=3600)]
_NANO = 1_000_000_000
_MILLION = 1_000_000


class RemotePrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """USD per million tokens, per million characters spoken, per second heard or spoken, and per request.

    Any of the last three stands alone where tokens have none.
    """

    input: _USD | None = None
    output: _USD | None = None
    cached: _USD | None = None
    request: _USD | None = None
    characters: _USD | None = None
    audio_second: _USD | None = None

    def amounts(self) -> dict[str, int | None]:
        """Nano-USD per million units, by the price list's names."""
        return {
            "input_nano": round((self.input or 0) * _NANO),
            "output_nano": round((self.output or 0) * _NANO),
            "cached_nano": None if self.cached is None else round(self.cached * _NANO),
            "request_nano": round((self.request or 0) * _NANO * _MILLION),
            "character_nano": round((self.characters or 0) * _NANO),
            "audio_second_nano": round((self.audio_second or 0) * _NANO * _MILLION),
        }


class RemoteSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a remote model is and what it costs.

    ``provider`` names an entry of the vault (kind, address, credential); a ``base_url`` given here counts instead of
    its own. ``health_s`` is the time
    between two looks at its list of models, 0 for none. ``trusted`` is set for what stands in the settings file.
    """

    price: RemotePrice
    kind: RemoteKind = "openai"
    base_url: str = ""
    provider: str = ""
    first_byte_s: _SECONDS = 60.0
    stall_s: _SECONDS = 60.0
    cap_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    health_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    trusted: bool = False

    @property
    def is_trusted(self) -> bool:
        """Whether the operator wrote the address itself into the settings file."""
        return self.trusted and bool(self.base_url)

    def terms(self) -> RemoteTerms:
        """The same, as a worker has to know it."""
        return RemoteTerms(self.kind, self.is_trusted, self.first_byte_s, self.stall_s, self.cap_field)


def find_remote_problem(remote: RemoteSpec) -> str | None:
    """What is wrong with the definition, as the end of «Model 'x': …», or None."""
    if not remote.base_url and not remote.provider:
        return "remote names neither base_url nor provider, so nobody knows where to ask."
    if remote.base_url:
        try:
            check_base(remote.base_url)
        except EgressRefused as refusal:
            return f"remote.base_url can't be used. {refusal.message}"
    price = remote.price
    whole = (price.request, price.characters, price.audio_second)
    if all(part is None for part in whole) and (price.input is None or price.output is None):
        return (
            "remote.price must say input and output in USD per million tokens, or request in USD per request (for "
            "speech also characters in USD per million, or audio_second in USD): what a request costs must be known "
            "before it is sent (0 is a price, too)."
        )
    return None
