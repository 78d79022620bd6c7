"""Chat completions as Anthropic's messages: whatever a client sends becomes a request or a refusal, never a defect."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stentor.flows.failure import EngineRefused
from stentor.flows.upstreams.anthropic_request import to_messages

NAMES = st.sampled_from(
    ["type", "text", "function", "name", "arguments", "id", "role", "content", "image_url", "url", "schema"]
)
PLAIN = st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats(-9, 9) | st.text(max_size=8)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "messages", "tools", "tool_choice", "response_format", "stop", "temperature", "n", "logprobs", "reasoning_effort",
    "parallel_tool_calls", "top_k", "top_p", "seed", "unknown",
]  # fmt: skip


def body(**fields: Any) -> bytes:
    plain = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    return json.dumps({**plain, **fields}).encode()


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
def test_anything_becomes_a_request_or_a_refusal(fields: dict[str, Any]) -> None:
    try:
        out = json.loads(to_messages(body(**fields)))
    except EngineRefused:
        return
    assert (out["model"], out["max_tokens"], out["stream"]) == ("m", 5, True)


@given(st.lists(VALUES, max_size=4))
def test_any_messages_too(messages: list[Any]) -> None:
    odd = [{"role": "assistant", "content": value, "tool_calls": value} for value in messages]
    for given_messages in (messages, odd):
        try:
            to_messages(body(messages=given_messages))
        except EngineRefused:
            continue


@pytest.mark.parametrize("arguments", ["{", "[1]", "5", '"x"'])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(EngineRefused, match="aren't a JSON object"):
        to_messages(body(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}]))


def test_deep_nesting_is_refused_in_words() -> None:
    with pytest.raises(EngineRefused):
        to_messages(('{"model":"m","max_tokens":1,"messages":[],"tools":[{"function":{"name":"f","parameters":'
                     + '{"a":' * 30_000 + "1" + "}" * 30_000 + "}}]}").encode())  # fmt: skip
