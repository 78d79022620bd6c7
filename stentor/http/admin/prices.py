"""Prices: wire types and routes."""

import msgspec

from stentor.http.route import Route, admin, listing


class Price(msgspec.Struct):
    """A price from ``effective_us`` on, nano-USD per million units. ``*`` is every local model without its own.

    ``cached_nano`` null: cached input costs what other input does.
    """

    model: str
    effective_us: int
    version: int
    input_nano: int
    output_nano: int
    cached_nano: int | None
    audio_second_nano: int
    character_nano: int
    request_nano: int


class PricePage(msgspec.Struct):
    """A page of prices."""

    data: list[Price]
    next: str | None


class SetPriceRequest(msgspec.Struct, omit_defaults=True):
    """A price from now, or from a later moment on; versions are never changed, only followed."""

    model: str
    input_nano: int
    output_nano: int
    cached_nano: int | None = None
    audio_second_nano: int = 0
    character_nano: int = 0
    request_nano: int = 0
    effective_us: int | None = None


ROUTES: tuple[Route, ...] = (
    listing("/pricing", "list_prices", "What each model costs now, by model.", PricePage),
    admin("POST", "/pricing", "set_price", "Give a model a price.", SetPriceRequest, Price),
    admin("GET", "/pricing/{model}", "list_price_history", "All prices of a model, the latest first.", None, PricePage),
)
