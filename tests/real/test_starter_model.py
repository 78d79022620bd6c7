"""The first command with the real model, spoken to as its users do: curl's bytes, and the official Python client."""

import http.client
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.kinds.models import CACHE, STARTER, fetch
from tests.serving import Server, free_ports

# Of each token of its answer the model is sure: no other is near. What it is unsure of may be said otherwise the next
# time, as the last digits of its numbers depend on what is computed at a time, and on the processor.
SURE = "What is the capital of France? Answer: Paris. Repeat the answer."
QUESTION = [{"role": "user", "content": SURE}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    fetch(STARTER)
    with Server(tmp_path_factory.mktemp("real"), "", MODEL_CACHE=str(CACHE), DEFAULT_THREADS="1") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.ready["base_url"], api_key=server.key, max_retries=0) as made:
        yield made


def test_says_how_to_reach_it(server: Server) -> None:
    assert server.ready["base_url"] == f"http://127.0.0.1:{server.port}/v1"
    assert server.ready["api_key"].startswith("sk-")
    assert server.ready["admin_user"] == "admin"
    assert server.ready["admin_password"]
    assert server.ready["model"] == "smollm2-135m-instruct"


def test_chats_and_books_what_it_said_it_used(server: Server, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=server.ready["model"], messages=QUESTION, temperature=0, max_tokens=12
    )
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    event = server.event(raw.headers["x-request-id"])
    assert event["status"] == "completed"
    assert event["input_tokens"] == answer.usage.prompt_tokens
    assert event["output_tokens"] == answer.usage.completion_tokens
    # 0.0001 USD per 1k prompt tokens, 0.0002 per 1k generated ones.
    assert event["cost_nano"] == 100 * answer.usage.prompt_tokens + 200 * answer.usage.completion_tokens
    assert int(float(raw.headers["x-stentor-cost"]) * 1e9 + 0.5) == event["cost_nano"]


def test_streams_the_same_words_as_a_whole_answer(server: Server, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": server.ready["model"], "messages": QUESTION, "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert words == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_answers_in_a_json_schema(server: Server, client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "country": {"type": "string", "maxLength": 20}},
        "required": ["city", "country"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=server.ready["model"],
        messages=[{"role": "user", "content": "Paris is in France. Give city and country."}],
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}},
        max_tokens=80,
        temperature=0,
    )
    place = json.loads(answer.choices[0].message.content or "")
    assert set(place) == {"city", "country"}


def test_continues_a_text(server: Server, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=server.ready["model"], prompt="Once upon a time", max_tokens=8, temperature=0
    )
    assert answer.choices[0].text.strip()
    chunks = list(
        client.completions.create(
            model=server.ready["model"], prompt="Once upon a time", max_tokens=8, temperature=0, stream=True
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_too_long_a_prompt_names_both_numbers(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model=server.ready["model"], messages=[{"role": "user", "content": "word " * 20_000}]
        )
    assert error.value.code == "context_length_exceeded"
    context = client.models.retrieve(server.ready["model"]).model_extra["context_size"]  # type: ignore[index]
    assert str(context) in error.value.message
    assert "20" in error.value.message


def _without_chance(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in ("id", "created", "timings", "usage")}


@pytest.fixture(scope="module")
def starter_engine(server: Server) -> Iterator[tuple[int, str]]:
    """The embedded engine with the same weights, started directly: (port, token)."""
    weights = fetch(STARTER)
    port, token = free_ports(1), "a-token-of-this-test"
    config = {
        "model_path": str(weights), "alias": server.ready["model"], "port": port, "token": token,
        "ctx": 2048, "parallel": 2, "threads": 1,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "stentor.engines.llama"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(config).encode() + b"\n")
    process.stdin.flush()
    try:
        wait_healthy(port)
        yield port, token
    finally:
        process.stdin.close()
        process.terminate()
        process.wait(15)


def wait_healthy(port: int) -> None:
    """Until an engine is ready."""
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            assert time.monotonic() < end, "the engine did not come up"
            time.sleep(0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": True, "top_logprobs": 2},
        {"n": 2},
        {"stop": ["."]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
    ],
)
def test_an_assembled_answer_equals_the_engines_own(
    server: Server, starter_engine: tuple[int, str], fields: dict[str, Any]
) -> None:
    """Field by field, at temperature 0: Stentor assembles a stream, the engine on the other side answers whole."""
    asked = {"messages": QUESTION, "temperature": 0, "max_tokens": 10, "seed": 1, **fields}
    assembled = server.ask("POST", "/v1/chat/completions", {"model": server.ready["model"], **asked}).json()
    own = ask_engine(starter_engine, asked)
    if "logprobs" in fields:
        # Asked whole, the engine also lists the token that ended the answer, which is no part of its text.
        entries = own["choices"][0]["logprobs"]["content"]
        told = assembled["choices"][0]["logprobs"]["content"]
        assert "".join(entry["token"] for entry in told) == assembled["choices"][0]["message"]["content"]
        assert len(entries) - len(told) in (0, 1)
        del entries[len(told) :]
    assert _without_chance(assembled) == _without_chance(own)
    assert assembled["usage"]["prompt_tokens"] == own["usage"]["prompt_tokens"]
    if "n" not in fields:  # the engine counts the first answer alone
        assert assembled["usage"]["completion_tokens"] == own["usage"]["completion_tokens"]


def ask_engine(engine: tuple[int, str], body: dict[str, Any]) -> dict[str, Any]:
    """The engine's own answer, asked directly."""
    port, token = engine
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request(
            "POST", "/v1/chat/completions", json.dumps({"model": "smollm2-135m-instruct", **body}), headers
        )
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


def test_stops_the_engine_when_the_client_leaves(server: Server) -> None:
    connection = server.connect()
    # Counting goes on for as long as it may.
    body = {"model": server.ready["model"], "prompt": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,"}
    body |= {"stream": True, "max_tokens": 3000, "temperature": 0}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Authorization": f"Bearer {server.key}"})
    response = connection.getresponse()
    request_id = response.headers["x-request-id"]
    for _ in range(12):
        response.readline()
    connection.close()
    response.close()
    event = server.event(request_id)
    assert event["status"] == "cancelled"
    assert event["reason"] == "client_left"
    assert event["input_tokens"] > 20
    assert 1 <= event["output_tokens"] < 500
    assert not event["estimated"]
    end = time.monotonic() + 60
    while any(row["running"] for row in json.loads(server.cli("models", "slots", "--json"))):
        assert time.monotonic() < end
        time.sleep(0.05)
