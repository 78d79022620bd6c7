"""The Anthropic Messages API: the official client's calls, the exact row of events, and what is refused."""

import json
from collections.abc import Iterator

import anthropic
import pytest

from tests.http.harness import Gate, marked, until
from tests.http.tool_calls import CALLS
from tests.scripted_engine import DEFAULT_TEXT, script

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
WEATHER = {"name": "weather", "description": "Looks out.", "input_schema": {"type": "object"}}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def client(each: Gate) -> Iterator[anthropic.Anthropic]:
    address = f"http://127.0.0.1:{each.port}"
    with anthropic.Anthropic(base_url=address, api_key=each.key, max_retries=0) as client:
        yield client


def ask(said="hi", **fields) -> dict:
    messages = said if isinstance(said, list) else [{"role": "user", "content": said}]
    return {"model": "scripted", "max_tokens": 100, "messages": messages, **fields}


# -- answers


def test_a_whole_answer_and_its_price(client, each):
    raw = client.messages.with_raw_response.create(**ask())
    message = raw.parse()
    assert [block.text for block in message.content] == [DEFAULT_TEXT]
    assert (message.stop_reason, message.role, message.model) == ("end_turn", "assistant", "scripted")
    event = each.event(raw.headers["x-request-id"])
    assert (event["status"], event["endpoint"]) == ("completed", PATH)
    assert (event["input_tokens"], event["output_tokens"]) == (message.usage.input_tokens, message.usage.output_tokens)


def test_it_costs_what_the_chat_costs(each):
    text = script({"tokens": 9}, usage={"prompt_tokens": 50, "cached_tokens": 20})
    chat = each.event(each.chat(text).request_id)
    for stream in (False, True):
        answer = each.ask("POST", PATH, ask(text, stream=stream))
        event = each.event(answer.request_id)
        for field in ("input_tokens", "cached_tokens", "output_tokens", "cost_nano"):
            assert event[field] == chat[field]
        usage = answer.events()[-2]["usage"] if stream else answer.json()["usage"]
        assert usage == {
            "input_tokens": 30,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 20,
            "output_tokens": 9,
        }


def test_every_event_of_a_text(each):
    answer = each.ask("POST", PATH, ask(script({"say": "one two"}), stream=True))
    events = answer.events()
    assert [event["type"] for event in events] == [
        "message_start", "ping", "content_block_start", "content_block_delta", "content_block_delta",
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    named = [line[7:] for line in answer.body.decode().split("\n") if line.startswith("event: ")]
    assert named == [event["type"] for event in events]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    assert events[2] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert "".join(event["delta"]["text"] for event in events[3:5]) == "one two"
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_blocks_come_one_after_the_other(each):
    events = each.ask("POST", PATH, ask(CALLS, stream=True, tools=[WEATHER])).events()
    live = None
    for event in events:
        if event["type"] == "content_block_start":
            assert live is None
            live = event["index"]
        elif event["type"].startswith("content_block"):
            assert event["index"] == live
            live = None if event["type"] == "content_block_stop" else live
    assert live is None
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use", "tool_use", "tool_use"]


def test_a_stream_put_together_is_the_whole_answer(client):
    whole = client.messages.create(**ask(CALLS, tools=[WEATHER]))
    with client.messages.stream(**ask(CALLS, tools=[WEATHER])) as stream:
        final = stream.get_final_message()
    assert whole.stop_reason == final.stop_reason == "tool_use"
    assert [block.input for block in whole.content[2:]] == [{"city": "Genève"}, {}, {"city": 'a "quoted" city'}]
    assert whole.content[0].thinking == "hm, well"
    assert whole.usage.output_tokens == final.usage.output_tokens
    for mine, theirs in zip(final.content, whole.content, strict=True):
        assert mine.model_dump(exclude={"parsed_output"}) == theirs.model_dump()


def test_cut_by_the_cap(client):
    message = client.messages.create(**ask(script({"tokens": 50}), max_tokens=7))
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 7)


def test_a_call_that_was_cut_is_not_mistaken_for_one(client):
    text = script({"call": "weather", "arguments": {"city": "Genève"}})
    message = client.messages.create(**ask(text, tools=[WEATHER], max_tokens=2))
    assert message.stop_reason == "max_tokens"
    assert list(message.content[0].input) == ["unreadable_arguments"]


def test_nothing_said(each):
    message = each.ask("POST", PATH, ask(script())).json()
    assert (message["content"], message["stop_reason"]) == ([], "end_turn")


def test_a_key_in_either_header(each):
    assert each.ask("POST", PATH, ask(), key="", X_Api_Key=each.key, Anthropic_Version="2023-06-01").status == 200
    assert each.ask("POST", PATH, ask()).status == 200


def test_what_agents_send_beside_it_is_no_reason_to_refuse(client, each):
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    tool = {**WEATHER, "cache_control": {"type": "ephemeral"}, "eager_input_streaming": True}
    fields = {
        "thinking": {"type": "enabled", "budget_tokens": 1024}, "metadata": {"user_id": "x"}, "system": system,
        "context_management": {"edits": []}, "service_tier": "auto", "tools": [tool],
    }  # fmt: skip
    for path in (PATH, COUNT):
        assert each.ask("POST", f"{path}?beta=true", ask(**fields), Anthropic_Beta="a,b").status == 200
    message = client.beta.messages.create(**ask(), betas=["x"])
    assert message.content[0].text == DEFAULT_TEXT


def test_the_client_knows_its_request(client, each):
    message = client.messages.create(**ask())
    assert each.event(message._request_id)["endpoint"] == PATH


async def test_the_asynchronous_client(each):
    address = f"http://127.0.0.1:{each.port}"
    async with (
        anthropic.AsyncAnthropic(base_url=address, api_key=each.key, max_retries=0) as client,
        client.messages.stream(**ask()) as stream,
    ):
        text = "".join([piece async for piece in stream.text_stream])
    assert text == DEFAULT_TEXT


# -- what reaches the engine


def engine_body(gate: Gate, messages: list | None = None, **fields) -> dict:
    text, mark = marked()
    assert gate.ask("POST", PATH, ask([*(messages or []), {"role": "user", "content": text}], **fields)).status == 200
    body: dict = gate.engine().wait_entry(mark)["body"]
    return body


def test_turns_become_messages(gate: Gate):
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "What's up?", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "Wait."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"a": 1}},
            {"type": "tool_use", "id": "t2", "name": "time", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"},
            {"type": "tool_result", "tool_use_id": "t2", "is_error": True,
             "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "clock"}]},
            {"type": "text", "text": "Well?"},
        ]},
        {"role": "assistant", "content": "Yes."},
    ]  # fmt: skip
    body = engine_body(gate, turns, system=[{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}])
    calls = [
        {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}},
        {"id": "t2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    assert body["messages"][:-1] == [
        {"role": "system", "content": "Be\nbrief."},
        {"role": "user", "content": "What's up?"},
        {"role": "assistant", "content": "Wait.", "tool_calls": calls, "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no\nclock"},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": "Yes."},
    ]


def test_settings_reach_the_engine(gate: Gate):
    body = engine_body(
        gate, temperature=0.25, top_p=0.5, top_k=7, max_tokens=33, stop_sequences=["END"],
        tools=[WEATHER, {**WEATHER, "name": "time"}],
        tool_choice={"type": "tool", "name": "time", "disable_parallel_tool_use": True},
        thinking={"type": "disabled"},
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
    )  # fmt: skip
    assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (0.25, 0.5, 7, 33)
    assert (body["stop"], body["parallel_tool_calls"]) == (["END"], False)
    assert ([tool["function"]["name"] for tool in body["tools"]], body["tool_choice"]) == (["time"], "required")
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(("theirs", "ours"), [("any", "required"), ("auto", "auto"), ("none", "none")])
def test_choices_of_tools(gate: Gate, theirs, ours):
    assert engine_body(gate, tools=[WEATHER], tool_choice={"type": theirs})["tool_choice"] == ours


def test_an_image_needs_a_model_that_sees(gate: Gate):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    answer = gate.ask("POST", PATH, ask([{"role": "user", "content": [image, {"type": "text", "text": "What?"}]}]))
    assert answer.status == 400
    assert "image" in answer.json()["error"]["message"]


# -- counting


def test_counting_is_exact_and_free(client, each):
    fields = ask("one two three", system="Be brief.")
    raw = client.messages.with_raw_response.count_tokens(
        model="scripted", messages=fields["messages"], system="Be brief."
    )
    counted = raw.parse().input_tokens
    assert counted == client.messages.create(**fields).usage.input_tokens
    event = each.event(raw.headers["x-request-id"])
    assert (event["endpoint"], event["cost_nano"], event["output_tokens"]) == (COUNT, 0, 0)


# -- refusals and failures

WRONG = {
    "no messages": ({"model": "scripted", "max_tokens": 1}, "messages"),
    "empty messages": (ask([]), "messages"),
    "messages as text": ({"model": "scripted", "messages": "hi"}, "messages"),
    "no role": (ask([{"content": "hi"}]), "role"),
    "a strange role": (ask([{"role": "king", "content": "hi"}]), "messages[0].role"),
    "no content": (ask([{"role": "user"}]), "content"),
    "a strange block": (ask([{"role": "user", "content": [{"type": "video"}]}]), "messages[0].content[0].type"),
    "an image of a file": (
        ask([{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "x"}}]}]),
        "messages[0].content[0].source",
    ),
    "a pdf": (
        ask([{"role": "user", "content": [{"type": "document", "source": {"type": "base64", "data": "x"}}]}]),
        "messages[0].content[0].type",
    ),
    "a result of nothing": (ask([{"role": "user", "content": [{"type": "tool_result"}]}]), "tool_use_id"),
    "a call without a name": (
        ask([{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "tool_use", "id": "t"}]}]),
        "messages[1].content[0]",
    ),
    "a system of images": (ask(system=[{"type": "image"}]), "system[0].type"),
    "a tool of theirs": (ask(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "tools[0].type"),
    "a tool without a name": (ask(tools=[{"input_schema": {}}]), "name"),
    "a choice of nothing": (ask(tools=[WEATHER], tool_choice={"type": "tool", "name": "x"}), "tool_choice"),
    "a strange choice": (ask(tools=[WEATHER], tool_choice={"type": "maybe"}), "tool_choice.type"),
    "a strange format": (ask(output_config={"format": {"type": "yaml"}}), "output_config.format"),
    "no tokens": (ask(max_tokens=0), "max_tokens"),
    "tokens as text": (ask(max_tokens="many"), "max_tokens"),
    "stream as text": (ask(stream="yes"), "stream"),
    "stop as a number": (ask(stop_sequences=[7]), "stop_sequences"),
    "servers": (ask(mcp_servers=[{"url": "https://x"}]), "mcp_servers"),
}


@pytest.mark.parametrize("path", [PATH, COUNT])
@pytest.mark.parametrize(("body", "word"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(gate: Gate, body, word, path):
    answer = gate.ask("POST", path, body)
    if path == COUNT and answer.status == 200:
        return  # what doesn't belong to a prompt isn't looked at
    error = answer.json()
    assert (answer.status, error["type"], error["error"]["type"]) == (400, "error", "invalid_request_error")
    assert word in error["error"]["message"]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{", b"[" * 5000, b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"messages":[{"role":"user","content":"\xff"}]}', b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"user","content":"x"}],"tools":[{"name":"f","input_schema":'
        + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}]}",
        b'{"messages":[{"role":"user","content":' + b'[{"type":"tool_result","tool_use_id":"x","content":' * 3000
        + b'"x"' + b"}]" * 3000 + b"}]}",
    ],
)  # fmt: skip
def test_bodies_that_can_not_be_read(gate: Gate, data):
    assert gate.ask("POST", PATH, data).status in (200, 400)
    assert gate.ask("POST", PATH, ask()).status == 200


def test_errors_are_the_clients_own_exceptions(client, each):
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**{**ask(), "model": "nothing-like-it"})
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.AuthenticationError) as wrong:
        client.with_options(api_key="sk-wrong").messages.create(**ask())
    assert wrong.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.PermissionDeniedError) as forbidden:
        client.with_options(api_key=each.make_key(scopes=["ring"])["key"]).messages.create(**ask())
    assert forbidden.value.body["error"]["type"] == "permission_error"
    with pytest.raises(anthropic.RateLimitError) as quota:
        client.with_options(api_key=each.make_key(limits={"token_limit": 1})["key"]).messages.create(**ask())
    assert quota.value.body["error"]["type"] == "rate_limit_error"
    with pytest.raises(anthropic.InternalServerError) as failed:
        client.messages.create(**ask(script(status=500)))
    assert (failed.value.status_code, failed.value.body["error"]["type"]) == (502, "api_error")


def test_poverty_has_a_type_of_its_own(each):
    user = each.make_user(tier="payg", balance_nano=1)
    answer = each.ask("POST", PATH, ask(), key=each.make_key(user["id"])["key"])
    assert (answer.status, answer.json()["error"]["type"]) == (402, "billing_error")


def test_a_full_queue_is_an_overload(client, each):
    def hang():
        ask_to_hang = ask(script({"hang": True}), model="narrow", stream=True)
        return each.send(ask_to_hang, path=PATH, key=each.make_key()["key"])

    hanging = [hang()]
    try:
        until(each.running, lambda count: count == 1)
        hanging += [hang() for _ in range(4)]
        until(lambda: each.metric("stentor_queue_depth"), lambda depth: depth == 4)
        with pytest.raises(anthropic.OverloadedError) as full:
            client.messages.create(**ask(model="narrow"))
        assert (full.value.status_code, full.value.body["error"]["type"]) == (529, "overloaded_error")
        assert int(full.value.response.headers["retry-after"]) >= 1
    finally:
        for connection in hanging:
            connection.close()


@pytest.mark.parametrize(("method", "path", "status"), [("GET", PATH, 405), ("POST", PATH + "/batches", 404)])
def test_the_envelope_where_there_is_nothing(each, method, path, status):
    answer = each.ask(method, path, None if method == "GET" else {})
    assert (answer.status, answer.json()["type"]) == (status, "error")


def test_an_engine_that_fails_after_the_first_word(client, each):
    text = script({"say": "so far"}, {"heard": True}, {"error": "out of memory"})
    texts = []
    with client.messages.stream(**ask(text)) as stream, pytest.raises(anthropic.APIStatusError) as failed:
        texts.extend(piece for piece in stream.text_stream)
    assert "".join(texts) == "so far"
    assert failed.value.body["error"]["type"] == "api_error"
    assert "out of memory" not in json.dumps(failed.value.body)
    event = each.event(stream.response.headers["x-request-id"])
    assert (event["status"], event["input_tokens"], event["output_tokens"]) == ("failed", 0, 2)
