"""What usage costs. Pure: integers in, integers out, one rounding up for each event."""

import msgspec

from stentor.core.books import Usage

PER_MILLION = 1_000_000
# Audio is measured in milliseconds and priced by the second: everything is counted in thousandths of a millionth.
_SCALE = 1000 * PER_MILLION


class Price(msgspec.Struct, frozen=True):
    """Nano-USD per million units. ``cached_nano`` None: cached input costs what other input does."""

    version: int
    input_nano: int
    output_nano: int
    cached_nano: int | None = None
    audio_second_nano: int = 0
    character_nano: int = 0
    request_nano: int = 0

    def highest_input_nano(self) -> int:
        """The dearer of cached and other input, for upper bounds."""
        return self.input_nano if self.cached_nano is None else max(self.input_nano, self.cached_nano)


def price_usage(price: Price, usage: Usage) -> int:
    """Cost in nano-USD: (input - cached)·p_in + cached·p_cached + output·p_out + the rest, rounded up once.

    ``input`` includes ``cached`` and ``output`` includes reasoning, so neither is counted twice.
    """
    cached = usage.cached_tokens
    cost = (
        (usage.input_tokens - cached) * price.input_nano
        + cached * (price.input_nano if price.cached_nano is None else price.cached_nano)
        + usage.output_tokens * price.output_nano
        + usage.characters * price.character_nano
        + price.request_nano
    ) * 1000 + usage.audio_ms * price.audio_second_nano
    return -(-cost // _SCALE)


class Bounds(msgspec.Struct, frozen=True):
    """The most that one request can use: prompt tokens, output tokens per answer, answers, and the model's context.

    ``audio_ms`` are milliseconds of sound to hear, ``characters`` those of a text to speak.
    """

    prompt: int
    output: int
    answers: int
    context: int
    audio_ms: int = 0
    characters: int = 0


def bound_tokens(bounds: Bounds) -> int:
    """The most tokens, input and output together; each answer and its prompt fit in the context."""
    prompt = min(bounds.prompt, bounds.context - bounds.output)
    return prompt + bounds.output * bounds.answers


def price_bounds(price: Price, bounds: Bounds) -> int:
    """The highest cost in nano-USD of any usage within ``bounds``.

    Cost is linear in prompt and output, and both share the context, so the dearest usage is one of two corners: the
    longest prompt, or the longest answer.
    """
    room = bounds.context - bounds.prompt
    cost = _corner(price, bounds.prompt, min(bounds.output, max(room, 0)) * bounds.answers)
    if room < bounds.output:
        cost = max(cost, _corner(price, bounds.context - bounds.output, bounds.output * bounds.answers))
    return cost + _price_sound(price, bounds) if bounds.audio_ms or bounds.characters else cost


def _price_sound(price: Price, bounds: Bounds) -> int:
    cost = bounds.audio_ms * price.audio_second_nano + bounds.characters * price.character_nano * 1000
    return -(-cost // _SCALE)


def _corner(price: Price, prompt: int, output: int) -> int:
    cost = prompt * price.highest_input_nano() + output * price.output_nano + price.request_nano
    return -(-cost // PER_MILLION)
