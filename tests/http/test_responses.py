"""The Responses API: the official client's calls, the exact row of events, and what is refused."""

import json
from collections.abc import Iterator

import openai
import pytest
from pydantic import BaseModel

from tests.http.harness import Gate, marked
from tests.http.tool_calls import CALLS
from tests.scripted_engine import DEFAULT_TEXT, script

PATH = "/v1/responses"
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


@pytest.fixture
def client(each: Gate) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=each.server.ready["base_url"], api_key=each.key, max_retries=0) as client:
        yield client


def ask(said="hi", **fields) -> dict:
    return {"model": "scripted", "input": said, **fields}


def kinds(events) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


# -- answers


def test_a_whole_answer_and_its_price(client, each):
    raw = client.responses.with_raw_response.create(**ask())
    response = raw.parse()
    assert (response.status, response.output_text, response.model) == ("completed", DEFAULT_TEXT, "scripted")
    assert response.store is False
    event = each.event(raw.headers["x-request-id"])
    assert (event["status"], event["endpoint"]) == ("completed", PATH)
    assert (event["input_tokens"], event["output_tokens"]) == (
        response.usage.input_tokens,
        response.usage.output_tokens,
    )


def test_it_costs_what_the_chat_costs(each):
    text = script({"tokens": 9}, usage={"prompt_tokens": 50, "cached_tokens": 20, "reasoning_tokens": 4})
    chat = each.event(each.chat(text).request_id)
    for stream in (False, True):
        answer = each.ask("POST", PATH, ask(text, stream=stream))
        event = each.event(answer.request_id)
        for field in ("input_tokens", "cached_tokens", "output_tokens", "cost_nano"):
            assert event[field] == chat[field]
        whole = answer.events()[-1]["response"] if stream else answer.json()
        assert whole["usage"]["input_tokens"] == 50
        assert whole["usage"]["input_tokens_details"]["cached_tokens"] == 20
        assert whole["usage"]["output_tokens"] == 9
        assert whole["usage"]["total_tokens"] == 59
        assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] == event["reasoning_tokens"] == 4


def test_every_event_of_a_text(each):
    events = each.ask("POST", PATH, ask(script({"say": "one two"}), stream=True)).events()
    assert kinds(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["response"]["status"] == events[1]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == "one two"
    assert events[6]["text"] == events[7]["part"]["text"] == "one two"
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert {event["item_id"] for event in events[3:8]} == {events[2]["item"]["id"]}


def test_the_names_of_events_are_their_types(each):
    answer = each.ask("POST", PATH, ask(CALLS, stream=True, tools=[WEATHER]))
    named = [line[7:] for line in answer.body.decode().split("\n") if line.startswith("event: ")]
    assert named == [event["type"] for event in answer.events()]


def test_a_stream_put_together_is_the_whole_answer(client):
    whole = client.responses.create(**ask(CALLS, tools=[WEATHER]))
    with client.responses.stream(**ask(CALLS, tools=[WEATHER])) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [item.type for item in whole.output] == ["reasoning", "message", *["function_call"] * 3]
    assert [call.arguments for call in whole.output[2:]] == [
        '{"city": "Gen\\u00e8ve"}',
        "{}",
        '{"city": "a \\"quoted\\" city"}',
    ]

    for mine, theirs in zip(final.output, whole.output, strict=True):
        assert mine.type == theirs.type
        if mine.type == "function_call":
            assert (mine.call_id, mine.name, mine.arguments) == (theirs.call_id, theirs.name, theirs.arguments)
        else:
            assert [part.text for part in mine.content] == [part.text for part in theirs.content]
    assert final.usage == whole.usage
    assert whole.output[0].content[0].text == "hm, well"
    added = [event.output_index for event in events if event.type == "response.output_item.added"]
    done = [event.output_index for event in events if event.type == "response.output_item.done"]
    assert added == done == [0, 1, 2, 3, 4]


def test_calls_come_one_after_the_other(each):
    events = each.ask("POST", PATH, ask(CALLS, stream=True, tools=[WEATHER])).events()
    open_items = 0
    for event in events:
        open_items += event["type"] == "response.output_item.added"
        open_items -= event["type"] == "response.output_item.done"
        assert open_items in (0, 1)


class Person(BaseModel):
    age: int
    tags: list[str]


def test_a_schema_is_kept(client):
    response = client.responses.parse(**ask("who?"), text_format=Person)
    assert response.output_parsed == Person(age=7, tags=["text"])


def test_cut_by_the_cap(client, each):
    response = client.responses.create(**ask(script({"tokens": 50}), max_output_tokens=7))
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output[0].status, response.usage.output_tokens) == ("incomplete", 7)
    events = each.ask("POST", PATH, ask(script({"tokens": 50}), max_output_tokens=7, stream=True)).events()
    assert kinds(events)[-2:] == ["output_item.done", "incomplete"]


def test_nothing_said_is_an_empty_message(each):
    response = each.ask("POST", PATH, ask(script())).json()
    assert [part["text"] for part in response["output"][0]["content"]] == [""]


def test_logprobs(client):
    response = client.responses.create(**ask(), include=["message.output_text.logprobs"], top_logprobs=1)
    assert "".join(entry.token for entry in response.output[0].content[0].logprobs) == DEFAULT_TEXT
    events = list(client.responses.create(**ask(), top_logprobs=1, stream=True))
    told = [entry.token for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert "".join(told) == DEFAULT_TEXT


def test_the_request_is_repeated(each):
    fields = {
        "instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0.5, "tools": [WEATHER],
        "tool_choice": "auto", "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"},
    }  # fmt: skip
    response = each.ask("POST", PATH, ask(**fields)).json()
    assert {name: response[name] for name in fields} == fields


# -- what reaches the engine


def engine_body(gate: Gate, fields: dict) -> dict:
    text, mark = marked()
    fields = {"input": text, **fields} if "input" not in fields else fields
    if isinstance(fields["input"], list):
        fields["input"] = [*fields["input"], {"role": "user", "content": text}]
    assert gate.ask("POST", PATH, {"model": "scripted", **fields}).status == 200
    body: dict = gate.engine().wait_entry(mark)["body"]
    return body


def test_items_become_messages(gate: Gate):
    items = [
        {"role": "developer", "content": "Second."},
        {"role": "user", "content": [{"type": "input_text", "text": "What's "}, {"type": "input_text", "text": "up?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "Wait.", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": '{"a":1}'},
        {"type": "function_call", "call_id": "c2", "name": "time", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
    ]  # fmt: skip
    body = engine_body(gate, {"input": items, "instructions": "First.", "tools": [WEATHER]})
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    assert body["messages"][:-1] == [
        {"role": "system", "content": "First.\n\nSecond."},
        {"role": "user", "content": "What's up?"},
        {"role": "assistant", "content": "Wait.", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "content": "noon"},
    ]
    assert body["stream"] is True


def test_settings_reach_the_engine(gate: Gate):
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    body = engine_body(
        gate,
        {
            "temperature": 0.25, "top_p": 0.5, "max_output_tokens": 33, "parallel_tool_calls": False,
            "tools": [WEATHER, {**WEATHER, "name": "time"}], "tool_choice": {"type": "function", "name": "time"},
            "text": {"format": schema}, "reasoning": {"effort": "high"},
        },
    )  # fmt: skip
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["reasoning_effort"]) == (0.25, 0.5, 33, "high")
    assert body["parallel_tool_calls"] is False
    assert ([tool["function"]["name"] for tool in body["tools"]], body["tool_choice"]) == (["time"], "required")
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }


# -- refusals and failures

WRONG = {
    "no input": ({"model": "scripted"}, "input"),
    "a number as input": (ask(7), "input"),
    "an empty list": (ask([]), "input"),
    "no role": (ask([{"content": "hi"}]), "input[0].role"),
    "a strange role": (ask([{"role": "king", "content": "hi"}]), "input[0].role"),
    "no content": (ask([{"role": "user"}]), "input[0].content"),
    "a strange item": (ask([{"type": "web_search_call"}]), "input[0].type"),
    "a reference": (ask([{"type": "item_reference", "id": "msg_1"}]), "input[0].type"),
    "a strange part": (ask([{"role": "user", "content": [{"type": "input_file"}]}]), "input[0].content[0].type"),
    "an image by file": (ask([{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]),
                         "input[0].content[0]"),
    "a call without a name": (ask([{"type": "function_call", "call_id": "c"}]), "input[0]"),
    "a tool of theirs": (ask(tools=[{"type": "web_search"}]), "tools[0].type"),
    "a tool without a name": (ask(tools=[{"type": "function"}]), "tools[0].name"),
    "a choice of nothing": (ask(tools=[WEATHER], tool_choice={"type": "function", "name": "x"}), "tool_choice"),
    "a strange choice": (ask(tools=[WEATHER], tool_choice="maybe"), "tool_choice"),
    "a strange format": (ask(text={"format": {"type": "yaml"}}), "text.format"),
    "a schema without a schema": (ask(text={"format": {"type": "json_schema", "name": "x"}}), "text.format"),
    "no tokens": (ask(max_output_tokens=0), "max_output_tokens"),
    "tokens as text": (ask(max_output_tokens="many"), "max_output_tokens"),
    "stream as text": (ask(stream="yes"), "stream"),
    "memory": (ask(previous_response_id="resp_1"), "previous_response_id"),
    "keeping": (ask(store=True), "store"),
    "in the background": (ask(background=True), "background"),
    "a conversation": (ask(conversation="conv_1"), "conversation"),
    "a prompt": (ask(prompt={"id": "pmpt_1"}), "prompt"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "param"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(gate: Gate, body, param):
    answer = gate.ask("POST", PATH, body)
    error = answer.json()["error"]
    assert (answer.status, error["param"]) == (400, param), error
    assert error["code"] in ("invalid_request", "unsupported_parameter")
    assert error["message"].endswith(".")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{", b"[" * 5000, b'{"input":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"input":"\xff"}',
        b'{"input":"\\ud800"}',
        b'{"model":"scripted","input":"hi","tools":[{"type":"function","name":"f","parameters":'
        + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}]}",
    ],
)  # fmt: skip
def test_bodies_that_can_not_be_read(gate: Gate, data):
    assert gate.ask("POST", PATH, data).status in (200, 400)
    assert gate.ask("POST", PATH, ask()).status == 200


def test_an_engine_that_fails_before_the_first_word(client, each):
    with pytest.raises(openai.InternalServerError) as failed:
        client.responses.create(**ask(script(status=500)))
    assert (failed.value.status_code, failed.value.code) == (502, "engine_failed")


def test_an_engine_that_fails_after_the_first_word(client, each):
    text = script({"say": "so far"}, {"heard": True}, {"error": "out of memory"})
    raw = client.responses.with_raw_response.create(**ask(text), stream=True)
    events = list(raw.parse())
    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed"
    assert "engine failed" in events[-1].response.error.message
    assert "out of memory" not in events[-1].response.error.message
    event = each.event(raw.headers["x-request-id"])
    assert (event["status"], event["input_tokens"], event["output_tokens"]) == ("failed", 0, 2)


def test_a_schema_of_the_stream(each):
    """The response objects inside events are those of the document."""
    schema = {"$ref": "#/components/schemas/ResponseObject"}
    for text in (CALLS, script({"say": "a"}, {"heard": True}, {"error": "x"}), script({"tokens": 9}, finish="length")):
        for event in each.ask("POST", PATH, ask(text, stream=True, tools=[WEATHER])).events():
            if "response" in event:
                each.contract.validate(schema, json.loads(json.dumps(event["response"])))
