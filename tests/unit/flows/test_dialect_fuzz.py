"""Requests in which one thing or another is something else: each is read, or refused in words; nothing else happens."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from stentor.core.errors import Refused
from stentor.flows.ask import Ask, engine_body, prompt_text
from stentor.flows.dialects.lmserv import read_lmserv
from stentor.flows.dialects.messages_request import read_count, read_messages
from stentor.flows.dialects.ollama_request import OllamaAsk, read_chat, read_embed, read_generate, read_old_embeddings
from stentor.flows.dialects.responses_request import read_responses
from stentor.flows.inputs import InputsAsk

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
IMAGE = {"type": "base64", "media_type": "image/png", "data": PIXEL}
ADDRESS = f"data:image/png;base64,{PIXEL}"
RESPONSES = {
    "model": "m", "instructions": "i", "stream": True, "max_output_tokens": 5, "temperature": 0.5, "top_logprobs": 1,
    "tools": [{"type": "function", **FUNCTION, "strict": True}], "tool_choice": {"type": "function", "name": "f"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}},
    "reasoning": {"effort": "low"}, "include": ["x"], "metadata": {"a": "b"},
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": ADDRESS}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "content": None},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "o"},
    ],
}  # fmt: skip
MESSAGES = {
    "model": "m", "max_tokens": 5, "system": [{"type": "text", "text": "s"}], "stop_sequences": ["x"], "top_k": 1,
    "tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "tool", "name": "f"},
    "thinking": {"type": "enabled", "budget_tokens": 1},
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image", "source": IMAGE}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "t"}, {"type": "tool_use", "id": "t", "name": "f", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}]},
        ]},
    ],
}  # fmt: skip
OLLAMA = {
    "model": "m:latest", "stream": False, "format": SCHEMA, "options": {"num_predict": 5, "stop": ["x"]},
    "think": "low", "keep_alive": "5m", "tools": [{"type": "function", "function": FUNCTION}],
    "logprobs": True, "top_logprobs": 2,
    "messages": [
        {"role": "user", "content": "x", "images": [PIXEL]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "tool_name": "f", "content": "r"},
    ],
}  # fmt: skip
GENERATE = {
    "model": "m", "prompt": "p", "system": "s", "images": [PIXEL], "raw": False, "format": "json", "options": {},
}  # fmt: skip
LMSERV = {"prompt": "p", "system_prompt": "s", "max_tokens": 5, "temperature": 1, "top_p": 0.5, "repeat_penalty": 1.1}
EMBED = {"model": "m", "input": ["a", "b"], "prompt": "p", "dimensions": 3, "truncate": True}
READERS: dict[str, tuple[Any, Callable[[bytes], Any]]] = {
    "responses": (RESPONSES, read_responses),
    "messages": (MESSAGES, read_messages),
    "count": (MESSAGES, read_count),
    "ollama chat": (OLLAMA, read_chat),
    "ollama generate": (GENERATE, read_generate),
    "ollama embed": (EMBED, read_embed),
    "ollama embeddings": (EMBED, read_old_embeddings),
    "lmserv": (LMSERV, read_lmserv),
}
ODD: list[Any] = [
    None, True, False, 0, -1, 7, 10**30, 0.5, 1e308, "", "x", "data:,", "é\u0000\n", [], {}, [None], [[]], {"a": 1},
    [{}], {"type": "text"}, {"type": "function"}, [{"role": "user"}], ["x", 7],
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += [(value, key), *places(inner)]
    return found


def spoilt(body: Any, chance: random.Random) -> Any:
    body = copy.deepcopy(body)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        container, key = chance.choice(places(body) or [({}, "x")])
        how = chance.randrange(4)
        if how == 0:
            del container[key]
        elif how == 1 and isinstance(container, dict):
            container[chance.choice(["type", "role", "content", "name", "x"])] = container[key]
        else:
            container[key] = copy.deepcopy(chance.choice(ODD))
    return body


def as_ask(found: Any) -> Ask | None:
    ask = found.ask if isinstance(found, OllamaAsk) else getattr(found, "ask", found)
    return ask if isinstance(ask, Ask) else None


@pytest.mark.parametrize("name", READERS)
def test_the_examples_themselves_are_read(name):
    body, read = READERS[name]
    assert read(json.dumps(body).encode()) is not None


@pytest.mark.parametrize("name", READERS)
def test_whatever_is_in_it(name):
    body, read = READERS[name]
    chance = random.Random(name)
    said = []
    for _ in range(1500):
        data = json.dumps(spoilt(body, chance)).encode()
        try:
            follow(as_ask(read(data)))
        except Refused as refusal:
            said.append(refusal.message)
    assert 0 < len(said) < 1500
    assert [message for message in said if not message.endswith(".")] == []


def follow(ask: Ask | None) -> None:
    """What a flow does with it."""
    if ask is not None and not isinstance(ask, InputsAsk):
        assert 0 < ask.input_bound < 10_000
        prompt_text(ask)
        json.loads(engine_body(ask, engine="llama", upstream_model="m", output_cap=5))
