"""A model behind an Anthropic upstream: asked as a chat completion, streamed both ways, metered like the rest."""

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.http.harness import CHAT, Json
from tests.upstreams.anthropic_upstream import AnthropicUpstream, answer, event
from tests.upstreams.conftest import TOKEN, Wide

HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 2, 2) + bytes(9)
DOT = base64.b64encode(HEAD).decode()
PIXEL = f"data:image/png;base64,{DOT}"
PICTURE = {"type": "image_url", "image_url": {"url": PIXEL}}
TOOL = {"name": "look_up", "description": "Find it.", "parameters": {"type": "object", "properties": {"q": {}}}}


@pytest.fixture
def upstream(wide: Wide) -> Iterator[AnthropicUpstream]:
    wide.claude.reset()
    yield wide.claude
    wide.claude.reset()


def ask(wide: Wide, messages: list[Json], **fields: Any) -> Any:
    return wide.ask("POST", CHAT, {"model": "claude", "messages": messages, **fields})


def said(given: Any) -> Json:
    """The message, put together from a stream or as it is."""
    if given.headers["content-type"].startswith("application/json"):
        message: Json = given.json()["choices"][0]["message"]
        return message
    deltas = [each["choices"][0]["delta"] for each in given.events() if each != "[DONE]" and each["choices"]]
    return {name: "".join(delta.get(name) or "" for delta in deltas) for name in ("content", "reasoning_content")}


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_over_and_comes_back(wide: Wide, upstream: AnthropicUpstream, stream: bool) -> None:
    upstream.events = answer({"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Quite so."})
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, PICTURE]},
        {"role": "assistant", "content": "A dot."},
        {"role": "user", "content": "Sure?"},
    ]  # fmt: skip
    options = {"stream_options": {"include_usage": True}} if stream else {}
    given = ask(wide, messages, stream=stream, max_tokens=50, temperature=1.5, stop="X", seed=7, **options)
    assert given.status == 200, given.body
    message = said(given)
    assert (message["content"], message["reasoning_content"]) == ("Quite so. ", "Hm.")
    headers, body = upstream.seen[-1]
    assert (headers["x-api-key"], headers["anthropic-version"]) == (TOKEN, "2023-06-01")
    assert "authorization" not in headers
    assert body == {
        "path": "/v1/messages",
        "model": "claude",
        "max_tokens": 50,
        "stream": True,
        "system": "Be brief.",
        "temperature": 1,
        "stop_sequences": ["X"],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DOT}},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A dot."}]},
            {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
        ],
    }
    booked = wide.event(given.request_id)
    assert (booked["input_tokens"], booked["cached_tokens"], booked["output_tokens"]) == (25, 5, 7)
    assert (booked["engine"], booked["estimated"], booked["cost_nano"]) == ("anthropic", False, 32_000)
    usage = given.events()[-2]["usage"] if stream else given.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (25, 7)


@pytest.mark.parametrize("stream", [False, True])
def test_tools_go_over_and_calls_come_back(wide: Wide, upstream: AnthropicUpstream, stream: bool) -> None:
    blocks = [
        {"type": "text", "text": "Looking."},
        {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"q": "stentor"}},
        {"type": "tool_use", "id": "toolu_2", "name": "look_up", "input": {}},
    ]
    upstream.events = answer(*blocks, reason="tool_use")
    before = [
        {"role": "user", "content": "Find it."},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "toolu_0", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "a"}'}}]},
        {"role": "tool", "tool_call_id": "toolu_0", "content": "nothing"},
        {"role": "user", "content": "Again."},
    ]  # fmt: skip
    tools = [{"type": "function", "function": TOOL}]
    given = ask(wide, before, stream=stream, tools=tools, tool_choice="required", parallel_tool_calls=False)
    assert given.status == 200, given.body
    body = upstream.seen[-1][1]
    assert body["tools"] == [{"name": "look_up", "description": "Find it.", "input_schema": TOOL["parameters"]}]
    assert body["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert body["messages"][1]["content"] == [
        {"type": "tool_use", "id": "toolu_0", "name": "look_up", "input": {"q": "a"}}
    ]
    assert body["messages"][2] == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_0", "content": [{"type": "text", "text": "nothing"}]},
            {"type": "text", "text": "Again."},
        ],
    }
    if stream:
        deltas = [each["choices"][0]["delta"] for each in given.events()[:-1] if each["choices"]]
        pieces = [call for delta in deltas for call in delta.get("tool_calls", ())]
        texts = ["".join(p["function"]["arguments"] for p in pieces if p["index"] == index) for index in (0, 1)]
        names = [piece["function"]["name"] for piece in pieces if "id" in piece]
        assert given.events()[-2]["choices"][0]["finish_reason"] == "tool_calls"
    else:
        calls = given.json()["choices"][0]["message"]["tool_calls"]
        texts, names = [c["function"]["arguments"] for c in calls], [c["function"]["name"] for c in calls]
        assert given.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert [json.loads(text) for text in texts] == [{"q": "stentor"}, {}]
    assert names == ["look_up", "look_up"]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("end_turn", "stop"), ("max_tokens", "length"), ("stop_sequence", "stop"), ("refusal", "content_filter"),
     ("something new", "stop")],
)  # fmt: skip
def test_reasons_have_their_names(wide: Wide, upstream: AnthropicUpstream, reason: str, finish: str) -> None:
    upstream.events = answer({"type": "text", "text": "So."}, reason=reason)
    given = ask(wide, [{"role": "user", "content": "hi"}])
    assert given.json()["choices"][0]["finish_reason"] == finish


def test_a_schema_goes_over_and_what_cannot_be_said_is_refused(wide: Wide, upstream: AnthropicUpstream) -> None:
    hello = [{"role": "user", "content": "hi"}]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    assert ask(wide, hello, response_format=schema, reasoning_effort="high").status == 200
    assert upstream.seen[-1][1]["output_config"] == {
        "format": {"type": "json_schema", "schema": {"type": "object"}},
        "effort": "high",
    }
    asked = len(upstream.seen)
    for fields in ({"n": 2}, {"logprobs": True}, {"response_format": {"type": "json_object"}}):
        refused = ask(wide, hello, **fields)
        assert (refused.status, refused.json()["error"]["code"]) == (400, "unsupported_parameter")
        assert wide.event(refused.request_id)["cost_nano"] == 0
    assert wide.ask("POST", "/v1/completions", {"model": "claude", "prompt": "once"}).status == 400
    assert len(upstream.seen) == asked


def chained(wide: Wide, **fields: Any) -> Any:
    return wide.chat("hello", model="claude-chain", **fields)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_word_falls_back(wide: Wide, upstream: AnthropicUpstream, stream: bool) -> None:
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": f"Overloaded {TOKEN}"}}
    upstream.status, upstream.body = 529, overloaded
    assert chained(wide, stream=stream).headers["x-stentor-model"] == "spare"
    upstream.reset()
    started = answer({"type": "text", "text": "x"})[0]
    for events in ([started, ("error", overloaded)], [started], [("error", overloaded)], [event("message_start")]):
        upstream.events = events
        given = chained(wide, stream=stream)
        assert given.headers["x-stentor-model"] == "spare"
        assert TOKEN not in given.body.decode()
        upstream.reset()
        assert chained(wide, stream=stream).headers["x-stentor-model"] == "claude-chain"


def test_an_error_after_the_first_word_ends_the_stream(wide: Wide, upstream: AnthropicUpstream) -> None:
    events = answer({"type": "text", "text": "one two three"})
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": f"Overloaded {TOKEN}"}}
    upstream.events, upstream.pause_s = [*events[:5], ("error", overloaded)], 0.1
    given = chained(wide, stream=True)
    assert "error" in given.events()[-1]
    assert TOKEN not in given.body.decode()
    booked = wide.event(given.request_id)
    assert (booked["status"], booked["input_tokens"]) == ("failed", 0)
    assert booked["output_tokens"] > 0


def test_a_request_that_is_wrong_is_told_in_our_words(wide: Wide, upstream: AnthropicUpstream) -> None:
    upstream.status = 400
    text = "prompt is too long: 9000 tokens > 8000 maximum"
    upstream.body = {"type": "error", "error": {"type": "invalid_request_error", "message": text}}
    given = ask(wide, [{"role": "user", "content": "hi"}])
    assert (given.status, given.json()["error"]["code"]) == (400, "context_length_exceeded")
    given = ask(wide, [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}])
    assert given.status == 400
