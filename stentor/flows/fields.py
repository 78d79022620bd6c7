"""Which of a client's fields reach an engine: one table per endpoint, one column per family of engines.

``pass``: byte-exact. ``set``: Stentor writes it. ``strip``: accepted and left out (it means nothing to the engine).
``refuse``: it would change what a request costs, or let one tenant reach another's state. ``lack``, ``llama_lacks``:
without it the answer would be another than the one asked for, so it isn't left out unsaid where it can't be done.
``llama`` and ``anthropic``: what only these understand.
A name that isn't in the table is stripped for our own engines and for remote upstreams, and passed to operators'
commands, which may know more than we do.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from stentor.core.errors import Refused

_decode_any = msgspec.json.Decoder().decode
Rule = Literal["pass", "set", "strip", "refuse", "lack", "llama_lacks", "llama", "anthropic"]

_SAMPLING: tuple[str, ...] = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "top_n_sigma", "seed", "stop", "logit_bias",
    "presence_penalty", "frequency_penalty", "repeat_penalty", "repeat_last_n", "n",
    "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers",
    "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent",
    "mirostat", "mirostat_tau", "mirostat_eta", "samplers", "min_keep",
    "response_format", "json_schema", "logprobs",
)  # fmt: skip
_SET: tuple[str, ...] = (
    "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "timings_per_token", "return_progress",
    "ttl",
)  # fmt: skip
_UNKNOWN_TO_OPENAI = frozenset(_SAMPLING) - {
    "temperature", "top_p", "seed", "stop", "logit_bias", "presence_penalty", "frequency_penalty", "n",
    "response_format", "logprobs",
} | {"chat_template_kwargs", "enable_thinking", "reasoning_format"}  # fmt: skip
_BOOKKEEPING: tuple[str, ...] = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "cache_prompt", "verbosity",
)  # fmt: skip
# Cost (n_predict, ignore_eos …), isolation (id_slot, slot files, lora), or programs: a template; a grammar, of
# which two hundred bytes can keep an engine busy for ever. What JSON an answer has to be is said by a schema.
_REFUSED: tuple[str, ...] = (
    "id_slot", "slot_id", "n_predict", "n_keep", "n_discard", "n_indent", "n_cache_reuse", "ignore_eos",
    "t_max_predict_ms", "t_max_prompt_ms", "lora", "chat_template", "return_tokens", "n_cmpl", "best_of",
    "prompt_truncate", "truncate", "action", "filename", "grammar", "grammar_lazy", "grammar_triggers",
)  # fmt: skip

# What an engine turns into memory or work before the first token, bounded: a field over it can take an engine and
# everybody on it down (a schema of 20,000 properties does, and so does a window of two thousand million tokens).
_MOST_BYTES: Mapping[str, int] = {
    "json_schema": 32 * 1024,
    "response_format": 32 * 1024,
    "tools": 512 * 1024,
    "logit_bias": 64 * 1024,
    "stop": 16 * 1024,
    "samplers": 1024,
    "dry_sequence_breakers": 512,
}
_MOST: Mapping[str, int] = {
    "repeat_last_n": 2**20,
    "dry_penalty_last_n": 2**20,
    "top_logprobs": 20,
    "logprobs": 20,
}


def _table(passed: tuple[str, ...]) -> dict[str, Rule]:
    table: dict[str, Rule] = dict.fromkeys(_SAMPLING + passed, "pass")
    table.update(dict.fromkeys(_SET, "set"))
    table.update(dict.fromkeys(_BOOKKEEPING, "strip"))
    table.update(dict.fromkeys(_REFUSED, "refuse"))
    return table


CHAT_FIELDS: Mapping[str, Rule] = {
    **_table(
        (
            "messages", "tools", "tool_choice", "parallel_tool_calls", "top_logprobs", "reasoning_effort",
            "reasoning_format", "chat_template_kwargs", "enable_thinking",
        )
    ),
    **dict.fromkeys(("functions", "function_call", "modalities", "audio", "web_search_options"), "lack"),
    "thinking_budget_tokens": "llama",
    "thinking": "anthropic",
}  # fmt: skip
# llama.cpp answers these two with 500, as if it were broken.
COMPLETION_FIELDS: Mapping[str, Rule] = {
    **_table(("prompt",)), "suffix": "llama_lacks", "echo": "llama_lacks"
}  # fmt: skip
# What isn't listed is for operators' commands, which may know more (an input type, a task).
_OF_INPUTS: tuple[str, ...] = ("model", "stream", "stream_options", "max_tokens", "ttl")
EMBEDDING_FIELDS: Mapping[str, Rule] = {
    **dict.fromkeys((*_OF_INPUTS, "input", "encoding_format", "dimensions"), "set"),
    **dict.fromkeys(_BOOKKEEPING, "strip"),
    **dict.fromkeys((*_REFUSED, "embd_normalize"), "refuse"),
}
RERANK_FIELDS: Mapping[str, Rule] = {
    **dict.fromkeys((*_OF_INPUTS, "query", "documents", "texts", "top_n", "return_documents"), "set"),
    **dict.fromkeys(_BOOKKEEPING, "strip"),
    **dict.fromkeys(_REFUSED, "refuse"),
}

LLAMA_ENGINES = frozenset({"llama", "llama-server"})
# What asks for nothing that isn't done anyway.
_NOTHING_ASKED: Mapping[str, tuple[object, ...]] = {
    "modalities": (None, [], ["text"]),
    "function_call": (None, "auto", "none"),
    "functions": (None, []),
    "suffix": (None, ""),
    "echo": (None, False),
}
# A stranger's upstream may sell under names that nobody here has heard of, so what isn't known isn't sent there.
# Another node of this server reads what it gets as we do.
NODE = "node"
_STRICT_ENGINES = LLAMA_ENGINES | {"openai", "anthropic", NODE}
_FOR_ALONE: Mapping[str, frozenset[str]] = {
    "llama": LLAMA_ENGINES | {NODE},
    "anthropic": frozenset({"anthropic", NODE}),
}
_LACKED_BY: Mapping[str, frozenset[str]] = {"lack": _STRICT_ENGINES - {NODE}, "llama_lacks": LLAMA_ENGINES}


def apply_fields(
    table: Mapping[str, Rule], engine: str, fields: Mapping[str, msgspec.Raw]
) -> dict[str, bytes | msgspec.Raw]:
    """The fields that go on, raw. Raises Refused (400) for one that must not."""
    default: Rule = "strip" if engine in _STRICT_ENGINES else "pass"
    out: dict[str, bytes | msgspec.Raw] = {}
    for name, value in fields.items():
        rule = table.get(name, default)
        if rule == "pass" or (rule in _FOR_ALONE and engine in _FOR_ALONE[rule]):
            _check_size(name, value)
            out[name] = value
        elif rule in _LACKED_BY:
            if engine in _LACKED_BY[rule]:
                _check_lack(name, value)
            else:
                out[name] = value
        elif rule == "refuse" and bytes(value) != b"null":
            raise Refused(
                "unsupported_parameter",
                f"'{name}' can't be set through this server: it could change what a request costs or whose memory it "
                "uses, or stop the engine for everybody. Leave it out.",
                param=name,
            )
    return out


def drop_unknown_to_openai(fields: dict[str, bytes | msgspec.Raw]) -> None:
    """Take out what OpenAI's API doesn't have, of a request that was made in other words: strict servers refuse it.

    What a client of that API writes beyond it is meant for the upstream it knows, and passed on.
    """
    for name in _UNKNOWN_TO_OPENAI.intersection(fields):
        del fields[name]


def _check_lack(name: str, value: msgspec.Raw) -> None:
    """Raises Refused (400) for a value that asks for what the model's engine doesn't do."""
    if _decode_any(value) not in _NOTHING_ASKED.get(name, (None,)):
        raise Refused(
            "unsupported_parameter",
            f"'{name}' is something that this model's engine doesn't do, and without it the answer would be another "
            "than the one asked for. Leave it out.",
            param=name,
        )


def _check_size(name: str, value: msgspec.Raw) -> None:
    """Raises Refused (400) for a value that is more than an engine should have to bear."""
    most_bytes = _MOST_BYTES.get(name)
    if most_bytes is not None and len(bytes(value)) > most_bytes:
        raise Refused(
            "invalid_request",
            f"'{name}' has {len(bytes(value))} bytes of JSON; at most {most_bytes} are accepted.",
            param=name,
        )
    most = _MOST.get(name)
    if most is None:
        return
    number = _decode_any(value)
    if isinstance(number, int | float) and number > most:
        raise Refused("invalid_request", f"'{name}' is {number}; it must be at most {most}.", param=name)
