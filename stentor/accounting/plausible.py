"""Usage that no answer can have had: an engine's numbers are its own, and some engines count wrong."""

from stentor.core.books import Usage

_MOST = 2**40  # tokens, milliseconds or characters that no single answer can have


def is_plausible(usage: Usage) -> bool:
    """Whether the parts are within their wholes, and nothing is negative or absurd."""
    return (
        0 <= usage.cached_tokens <= usage.input_tokens < _MOST
        and 0 <= usage.reasoning_tokens <= usage.output_tokens < _MOST
        and 0 <= usage.audio_ms < _MOST
        and 0 <= usage.characters < _MOST
    )


def correct_usage(usage: Usage, context_size: int, answers: int) -> Usage:
    """The nearest usage that ``answers`` answers of a model with ``context_size`` tokens can have had."""
    input_tokens = _clamp(usage.input_tokens, context_size)
    output_tokens = _clamp(usage.output_tokens, context_size * answers)
    return Usage(
        input_tokens,
        _clamp(usage.cached_tokens, input_tokens),
        output_tokens,
        _clamp(usage.reasoning_tokens, output_tokens),
        _clamp(usage.audio_ms, _MOST),
        _clamp(usage.characters, _MOST),
        usage.estimated,
    )


def _clamp(value: int, most: int) -> int:
    return max(0, min(value, most))
