"""What is known without asking anybody: a few models of the large providers, so that a closed network has prices."""

from typing import Any

SNAPSHOT_AT = "2026-11-01T00:00:00Z"
_Line = tuple[str, str, int, int, float, float, str]
# Name, title, context, longest answer, US dollars per million input and output tokens, abilities.
_MODELS: dict[str, tuple[_Line, ...]] = {
    "openai": (
        ("gpt-4o", "GPT-4o", 128_000, 16_384, 2.5, 10.0, "vision function_calling json_mode parallel_tool_calls"),
        ("gpt-4o-mini", "GPT-4o mini", 128_000, 16_384, 0.15, 0.6, "vision function_calling json_mode"),
        ("gpt-4.1", "GPT-4.1", 1_047_576, 32_768, 2.0, 8.0, "vision function_calling json_mode parallel_tool_calls"),
        ("gpt-4.1-mini", "GPT-4.1 mini", 1_047_576, 32_768, 0.4, 1.6, "vision function_calling json_mode"),
    ),
    "anthropic": (
        ("claude-opus-4", "Claude Opus 4", 200_000, 32_000, 15.0, 75.0, "vision function_calling"),
        ("claude-sonnet-4", "Claude Sonnet 4", 200_000, 64_000, 3.0, 15.0, "vision function_calling"),
        ("claude-3-5-haiku", "Claude Haiku 3.5", 200_000, 8_192, 0.8, 4.0, "vision function_calling"),
    ),
    "google": (
        ("gemini-2.5-pro", "Gemini 2.5 Pro", 1_048_576, 65_536, 1.25, 10.0, "vision function_calling json_mode"),
        ("gemini-2.5-flash", "Gemini 2.5 Flash", 1_048_576, 65_536, 0.3, 2.5, "vision function_calling json_mode"),
    ),
}
PROVIDERS = tuple(_MODELS)
_ABILITIES = ("vision", "function_calling", "json_mode", "parallel_tool_calls")


def snapshot_models(provider: str) -> dict[str, dict[str, Any]]:
    """The bundled models of a provider by ``provider:model``."""
    return {f"{provider}:{line[0]}": _model(provider, line) for line in _MODELS.get(provider, ())}


def _model(provider: str, line: _Line) -> dict[str, Any]:
    name, title, context, answer, input_usd, output_usd, abilities = line
    return {
        "provider": provider,
        "model_name": name,
        "display_name": title,
        "description": None,
        "max_input_tokens": context,
        "max_output_tokens": answer,
        **{f"supports_{ability}": ability in abilities.split() for ability in _ABILITIES},
        "tool_call_format": None,
        "dollars_per_million_tokens_input": input_usd,
        "dollars_per_million_tokens_output": output_usd,
        "is_active": True,
    }
