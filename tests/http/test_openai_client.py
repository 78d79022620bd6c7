"""The official Python client of OpenAI, as people use it."""

import json
from collections.abc import Iterator

import openai
import pytest

from tests.http.harness import Gate
from tests.scripted_engine import DEFAULT_TEXT, script


@pytest.fixture
def client(each: Gate) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=each.server.ready["base_url"], api_key=each.key, max_retries=0) as client:
        yield client


def ask(text: str) -> list:
    return [{"role": "user", "content": text}]


def test_chat(client, each):
    answer = client.chat.completions.with_raw_response.create(model="scripted", messages=ask("hi"))
    whole = answer.parse()
    assert whole.choices[0].message.content == DEFAULT_TEXT
    assert whole.choices[0].finish_reason == "stop"
    event = each.event(answer.headers["x-request-id"])
    assert (event["status"], event["input_tokens"], event["output_tokens"]) == (
        "completed",
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )


def test_stream_without_usage(client):
    chunks = list(client.chat.completions.create(model="scripted", messages=ask("hi"), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == DEFAULT_TEXT
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_stream_with_usage(client):
    options = {"include_usage": True}
    stream = client.chat.completions.create(model="scripted", messages=ask("hi"), stream=True, stream_options=options)
    *body, last = list(stream)
    assert all(chunk.usage is None for chunk in body)
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 5)


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ONE_CALL = script({"call": "weather", "arguments": {"city": "Genève", "days": 3}})
THREE_CALLS = script(
    {"say": "Let me see."},
    {
        "calls": [
            {"call": "weather", "arguments": {"city": "Oslo"}, "fragment": 1},
            {"call": "time", "arguments": "{}"},
            {"call": "weather", "arguments": {"city": 'a "quoted" city'}, "fragment": 3},
        ]
    },
)


@pytest.mark.parametrize(("text", "count"), [(ONE_CALL, 1), (THREE_CALLS, 3)])
def test_streamed_tool_calls_put_together_are_those_of_the_whole_answer(client, text, count):
    whole = client.chat.completions.create(model="scripted", messages=ask(text), tools=[WEATHER])
    (choice,) = whole.choices
    assert choice.finish_reason == "tool_calls"
    assert len(choice.message.tool_calls) == count
    with client.chat.completions.stream(model="scripted", messages=ask(text), tools=[WEATHER]) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert [(call.id, call.function.name, call.function.arguments) for call in final.message.tool_calls] == [
        (call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls
    ]
    assert all(isinstance(json.loads(call.function.arguments), dict) for call in choice.message.tool_calls)


def test_a_json_schema_reaches_the_engine(client):
    schema = {"type": "object", "properties": {"age": {"type": "integer"}, "tags": {"type": "array"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model="scripted", messages=ask("who?"), response_format=wanted)
    assert json.loads(answer.choices[0].message.content) == {"age": 7, "tags": [None]}


def test_logprobs(client):
    whole = client.chat.completions.create(model="scripted", messages=ask("hi"), logprobs=True, top_logprobs=1)
    entries = whole.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == DEFAULT_TEXT
    assert entries[0].top_logprobs[0].logprob == -0.25


def test_two_answers_at_once(client, each):
    text = script({"say": "one two three"})
    raw = client.chat.completions.with_raw_response.create(model="scripted", messages=ask(text), n=2)
    whole = raw.parse()
    assert [(choice.index, choice.message.content) for choice in whole.choices] == [
        (0, "one two three"),
        (1, "one two three"),
    ]
    assert whole.usage.completion_tokens == 6
    assert each.event(raw.headers["x-request-id"])["output_tokens"] == 6
    chunks = list(client.chat.completions.create(model="scripted", messages=ask(text), n=2, stream=True))
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["one two three"] * 2


def test_completions(client):
    whole = client.completions.create(model="scripted", prompt="Once")
    assert (whole.choices[0].text, whole.object) == (DEFAULT_TEXT, "text_completion")
    chunks = list(client.completions.create(model="scripted", prompt="Once", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == DEFAULT_TEXT


def test_a_completion_of_token_numbers(client):
    assert client.completions.create(model="scripted", prompt=[1, 2, 3]).choices[0].text == DEFAULT_TEXT


def test_reasoning_is_passed_on(client):
    text = script({"think": "hm, well"}, {"say": "yes"})
    message = client.chat.completions.create(model="scripted", messages=ask(text)).choices[0].message
    assert (message.reasoning_content, message.content) == ("hm, well", "yes")


def test_max_tokens_cuts_the_answer(client):
    text = script({"tokens": 50})
    cut = client.chat.completions.create(model="scripted", messages=ask(text), max_completion_tokens=7)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 7)


def test_models_are_listed_and_found(client):
    listed = {model.id: model for model in client.models.list()}
    assert {"scripted", "narrow"} <= set(listed)
    for name in ("scripted", "also", "repo.name", "SCRIPT"):
        assert client.models.retrieve(name).id == "scripted"
    assert listed["scripted"].context_size == 8192
    assert listed["scripted"].state == "ready"


def test_errors_are_the_clients_own_exceptions(client, each):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nothing-like-it", messages=ask("hi"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing-like-it")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="scripted", messages=[])
    assert bad.value.param == "messages"
    with pytest.raises(openai.AuthenticationError) as wrong:
        client.with_options(api_key="sk-wrong").models.list()
    assert wrong.value.code == "invalid_api_key"
    poor = each.make_key(limits={"token_limit": 1})
    with pytest.raises(openai.RateLimitError) as quota:
        client.with_options(api_key=poor["key"]).chat.completions.create(model="scripted", messages=ask("hi"))
    assert quota.value.code == "quota_exceeded"
    unscoped = each.make_key(scopes=["ring"])
    with pytest.raises(openai.PermissionDeniedError) as forbidden:
        client.with_options(api_key=unscoped["key"]).models.list()
    assert forbidden.value.code == "insufficient_scope"
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model="scripted", messages=ask(script(status=500)))
    assert (failed.value.status_code, failed.value.code) == (502, "engine_failed")


def test_an_error_within_a_stream_is_raised(client):
    stream = client.chat.completions.create(
        model="scripted",
        messages=ask(script({"say": "so far"}, {"heard": True}, {"error": "out of memory"})),
        stream=True,
    )
    texts = []
    with pytest.raises(openai.APIError, match="engine failed") as failed:
        texts.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert failed.value.code == "engine_failed"
    assert "".join(texts) == "so far"


async def test_the_asynchronous_client(each):
    async with openai.AsyncOpenAI(base_url=each.server.ready["base_url"], api_key=each.key) as client:
        stream = await client.chat.completions.create(model="scripted", messages=ask("hi"), stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == DEFAULT_TEXT
