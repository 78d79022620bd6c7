"""A body is read once, checked, bounded, and written again for the engine."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stentor.core.errors import Refused
from stentor.flows.ask import engine_body, prompt_text, read_chat, read_completion
from tests import media

HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def chat(**fields: Any) -> bytes:
    return json.dumps({**HELLO, **fields}).encode()


def sent(body: bytes, *, engine: str = "llama", cap: int = 7) -> dict[str, Any]:
    text = engine_body(read_chat(body), engine=engine, upstream_model="up", output_cap=cap)
    decoded: dict[str, Any] = json.loads(text)
    return decoded


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b"[]", None, "must be a JSON object"),
        (b"[" * 5000 + b"]" * 5000, None, "must be a JSON object"),
        (b'{"model":"m","messages":' + b"[" * 5000 + b"]" * 5000 + b"}", None, "nested too deeply"),
        (b'{"model":"m","x\xff":1}', None, "not valid JSON"),
        (chat(model=5), "model", "'model' must be a model's name"),
        (chat(messages="hi"), "messages", "must be a list of messages"),
        (chat(messages=[]), "messages", "is empty"),
        (chat(messages=[{"content": "no role"}]), "messages", "role"),
        (chat(messages=[{"role": "user", "content": 5}]), "messages[0].content", "text or a list of parts"),
        (chat(messages=[{"role": "user", "content": [{"type": "video"}]}]), "messages[0].content", "'video'"),
        (b'{"model":"m"}', "messages", "is missing"),
        (chat(stream="yes"), "stream", "true or false"),
        (chat(stream_options={"include_usage": True}), "stream_options", "only allowed together"),
        (chat(max_tokens=0), "max_tokens", "at least 1"),
        (chat(max_tokens="many"), "max_tokens", "whole number"),
        (chat(max_completion_tokens=-3), "max_completion_tokens", "at least 1"),
        (chat(n=17), "n", "at most 16"),
    ],
)
def test_refuses_a_bad_body_naming_the_field(body: bytes, param: str | None, says: str) -> None:
    with pytest.raises(Refused) as refused:
        read_chat(body)
    assert refused.value.code == "invalid_request"
    assert refused.value.param == param
    assert says in refused.value.message


def test_an_image_that_was_not_brought_in_never_reaches_an_engine() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    ask = read_chat(json.dumps({"model": "m", "messages": [{"role": "user", "content": [part, part]}]}).encode())
    assert {image.url for image in ask.images} == {"https://example.org/a.png"}
    assert (ask.media, ask.needs) == (2, ("text", "image"))
    with pytest.raises(Refused, match="fetches none"):
        engine_body(ask, engine="llama", upstream_model="m", output_cap=1)


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", "HTTPS://example.org/a.png", "file:///etc/passwd", "DATA:image/png;base64,", ""]
)
def test_never_lets_an_engine_fetch_an_image(url: str) -> None:
    # Escapes must not hide the part from the check.
    part = json.dumps([{"type": "image_url", "image_url": {"url": url}}]).replace("image_url", "image\\u005furl")
    with pytest.raises(Refused, match=r"fetches none|must be a .data:image"):
        read_chat(b'{"model":"m","messages":[{"role":"user","content":' + part.encode() + b"}]}")


def test_says_which_abilities_a_request_needs() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        media.image_part(media.png()),
        media.audio_part(media.wav(0.1)),
    ]
    assert read_chat(chat(messages=[{"role": "user", "content": parts}])).needs == ("text", "image", "audio")
    assert read_chat(chat()).needs == ("text",)


def test_sets_what_the_books_decided() -> None:
    body = sent(chat(max_tokens=500, stream_options=None, temperature=0.5))
    assert body["model"] == "up"
    assert body["max_tokens"] == 7
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["temperature"] == 0.5


def test_a_cap_under_another_name_never_reaches_the_engine() -> None:
    assert "max_completion_tokens" not in sent(chat(max_completion_tokens=9000))


@pytest.mark.parametrize(
    "field", ["id_slot", "n_predict", "lora", "chat_template", "ignore_eos", "best_of", "n_cmpl", "grammar"]
)
@pytest.mark.parametrize("engine", ["llama", "command"])
def test_refuses_fields_that_change_cost_or_isolation(field: str, engine: str) -> None:
    with pytest.raises(Refused) as refused:
        sent(chat(**{field: 1}), engine=engine)
    assert refused.value.code == "unsupported_parameter"
    assert refused.value.param == field
    assert field not in sent(chat(**{field: None}), engine=engine)


def test_unknown_fields_reach_operators_commands_alone() -> None:
    assert "novel" not in sent(chat(novel=1), engine="llama")
    assert sent(chat(**{'no"vel': 1}), engine="command")['no"vel'] == 1


def test_the_last_of_two_equal_keys_counts_in_both_places() -> None:
    body = b'{"model":"a","model":"m","max_tokens":1,"max_tokens":3,"messages":[{"role":"user","content":"x"}]}'
    ask = read_chat(body)
    assert ask.model == "m"
    assert ask.output_asked == 3
    text = engine_body(ask, engine="llama", upstream_model="up", output_cap=3)
    assert text.count(b'"max_tokens"') == 1
    assert text.count(b'"model"') == 1


@given(st.text(max_size=200), st.lists(st.text(max_size=50), max_size=5))
def test_the_bound_is_never_below_the_bytes_of_the_text(text: str, more: list[str]) -> None:
    messages = [{"role": "user", "content": part} for part in [text, *more]]
    ask = read_chat(json.dumps({"model": "m", "messages": messages}, ensure_ascii=False).encode("utf-8", "replace"))
    assert ask.input_bound >= len(text.encode("utf-8", "replace")) + 64 * len(messages)


@pytest.mark.parametrize("prompt", ["Hello", ["Hello"], [1, 2, 3], [[1, 2, 3]]])
def test_reads_every_form_of_one_prompt(prompt: Any) -> None:
    ask = read_completion(json.dumps({"model": "m", "prompt": prompt}).encode())
    body = json.loads(engine_body(ask, engine="llama", upstream_model="up", output_cap=3))
    assert body["prompt"] == (prompt[0] if isinstance(prompt[0], list) or prompt == ["Hello"] else prompt)


@pytest.mark.parametrize("prompt", [None, "", [], ["a", "b"], ["a", 1], {"a": 1}, 5])
def test_refuses_what_is_no_prompt(prompt: Any) -> None:
    with pytest.raises(Refused) as refused:
        read_completion(json.dumps({"model": "m", "prompt": prompt}).encode())
    assert refused.value.param == "prompt"


def test_finds_the_text_to_count() -> None:
    parts = [{"type": "text", "text": "two"}, media.image_part(media.png())]
    body = chat(messages=[{"role": "system", "content": "one"}, {"role": "user", "content": parts}])
    assert prompt_text(read_chat(body)) == "one\ntwo"


def test_media_are_counted_apart_from_the_text() -> None:
    parts = [{"type": "text", "text": "what is it?"}, media.image_part(media.png() + b"\0" * 40_000)]
    ask = read_chat(chat(messages=[{"role": "user", "content": parts}] * 2))
    assert ask.media == 2
    assert 2 * 64 < ask.input_bound < 5_000
    assert read_chat(chat()).media == 0


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


TOOLS = [tool("weather"), tool("time"), tool("news")]


@pytest.mark.parametrize("engine", ["llama", "llama-server"])
@pytest.mark.parametrize(
    ("choice", "word", "tools"),
    [
        (named("time"), "required", ["time"]),
        (allowed("required", "news", "weather"), "required", ["weather", "news"]),
        (allowed("auto", "news"), "auto", ["news"]),
        ("required", "required", ["weather", "time", "news"]),
        (None, None, ["weather", "time", "news"]),
    ],
)
def test_a_chosen_tool_is_the_only_one_that_our_engines_see(
    engine: str, choice: Any, word: str, tools: list[str]
) -> None:
    body = sent(chat(tools=TOOLS, tool_choice=choice), engine=engine)
    assert body["tool_choice"] == word
    assert body["tools"] == [tool(name) for name in tools]


@pytest.mark.parametrize("engine", ["openai", "command"])
def test_others_choose_tools_themselves(engine: str) -> None:
    for choice in (named("time"), allowed("auto", "news"), {"type": "custom", "custom": {"name": "x"}}):
        body = sent(chat(tools=TOOLS, tool_choice=choice), engine=engine)
        assert (body["tool_choice"], body["tools"]) == (choice, TOOLS)


@pytest.mark.parametrize(
    ("tools", "choice", "says"),
    [
        (TOOLS, named("tide"), "names the tool 'tide'"),
        (TOOLS, allowed("auto", "time", "tide"), "names the tool 'tide'"),
        (None, named("time"), "names the tool 'time'"),
        (TOOLS, {"type": "function"}, "must have a 'function'"),
        (TOOLS, {"type": "allowed_tools", "allowed_tools": {"mode": "often", "tools": []}}, "can't be read"),
        (5, named("time"), "can't be read"),
        (TOOLS, {}, "can't be read"),
    ],
)
def test_refuses_a_choice_of_tools_that_can_not_be_made(tools: Any, choice: Any, says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        read_chat(chat(tools=tools, tool_choice=choice))
    assert (refused.value.code, refused.value.param) == ("invalid_request", "tool_choice")


@pytest.mark.parametrize("choice", ["sometimes", 5, {"type": "custom", "custom": {"name": "x"}}])
def test_a_choice_that_our_engines_would_misread_is_refused(choice: Any) -> None:
    with pytest.raises(Refused) as refused:
        sent(chat(tools=TOOLS, tool_choice=choice))
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tool_choice")


def completion(engine: str, **fields: Any) -> dict[str, Any]:
    ask = read_completion(json.dumps({"model": "m", "prompt": "x", **fields}).encode())
    body: dict[str, Any] = json.loads(engine_body(ask, engine=engine, upstream_model="up", output_cap=3))
    return body


@pytest.mark.parametrize(("field", "value"), [("suffix", "end"), ("echo", True)])
def test_what_llama_takes_for_its_own_failure_is_refused_before(field: str, value: Any) -> None:
    with pytest.raises(Refused) as refused:
        completion("llama", **{field: value})
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", field)
    assert completion("openai", **{field: value})[field] == value
    assert completion("command", **{field: value})[field] == value


@pytest.mark.parametrize(("field", "value"), [("suffix", None), ("suffix", ""), ("echo", False), ("echo", None)])
def test_what_asks_for_nothing_is_left_out_for_llama(field: str, value: Any) -> None:
    assert field not in completion("llama", **{field: value})


@pytest.mark.parametrize("engine", ["llama", "openai", "anthropic"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "weather"}]),
        ("function_call", {"name": "weather"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("web_search_options", {}),
    ],
)
def test_what_would_change_the_answer_is_not_left_out_unsaid(engine: str, field: str, value: Any) -> None:
    with pytest.raises(Refused) as refused:
        sent(chat(**{field: value}), engine=engine)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", field)
    assert field not in sent(chat(**{field: None}), engine=engine)
    assert sent(chat(**{field: value}), engine="command")[field] == value


def test_the_ordinary_modality_is_no_wish() -> None:
    assert "modalities" not in sent(chat(modalities=["text"], function_call="auto"))
