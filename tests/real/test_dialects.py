"""Every dialect with the real model, by its own official client: the same words, and the same tokens, as the chat."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.kinds.models import CACHE, STARTER, fetch
from tests.real.test_starter_model import SURE
from tests.serving import Server

QUESTION = SURE
TURNS: Any = [{"role": "user", "content": QUESTION}]
CAP = 12
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    fetch(STARTER)
    with Server(tmp_path_factory.mktemp("dialects"), "", MODEL_CACHE=str(CACHE), DEFAULT_THREADS="1") as running:
        yield running


class Reference:
    """What the chat says to the question, and what it uses."""

    def __init__(self, text: str, input_tokens: int, output_tokens: int) -> None:
        self.text = text
        self.tokens = (input_tokens, output_tokens)


@pytest.fixture(scope="module")
def chat(server: Server) -> Reference:
    answer = server.chat(QUESTION, temperature=0, max_tokens=CAP).json()
    usage = answer["usage"]
    return Reference(answer["choices"][0]["message"]["content"], usage["prompt_tokens"], usage["completion_tokens"])


def booked(server: Server, request_id: str) -> tuple[int, int]:
    event = server.event(request_id)
    assert event["status"] == "completed"
    return event["input_tokens"], event["output_tokens"]


def test_responses(server: Server, chat: Reference) -> None:
    with openai.OpenAI(base_url=server.ready["base_url"], api_key=server.key, max_retries=0) as client:
        asked: dict[str, Any] = {"model": server.ready["model"], "input": QUESTION, "temperature": 0}
        raw = client.responses.with_raw_response.create(**asked, max_output_tokens=CAP)
        whole = raw.parse()
        assert whole.usage is not None
        assert whole.output_text == chat.text
        assert (whole.usage.input_tokens, whole.usage.output_tokens) == chat.tokens
        assert booked(server, raw.headers["x-request-id"]) == chat.tokens
        with client.responses.stream(**asked, max_output_tokens=CAP) as stream:
            assert stream.get_final_response().output_text == chat.text
        wanted: Any = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}}
        place = client.responses.create(**asked, max_output_tokens=60, text=wanted)
        assert set(json.loads(place.output_text)) == {"city"}


def test_messages(server: Server, chat: Reference) -> None:
    address = f"http://127.0.0.1:{server.port}"
    with anthropic.Anthropic(base_url=address, api_key=server.key, max_retries=0) as client:
        asked: dict[str, Any] = {"model": server.ready["model"], "messages": TURNS, "max_tokens": CAP}
        asked["extra_body"] = {"temperature": 0}
        raw = client.messages.with_raw_response.create(**asked)
        whole = raw.parse()
        assert whole.content[0].text == chat.text
        usage = whole.usage
        assert (usage.input_tokens + (usage.cache_read_input_tokens or 0), usage.output_tokens) == chat.tokens
        assert booked(server, raw.headers["x-request-id"]) == chat.tokens
        with client.messages.stream(**asked) as stream:
            first = next(event for event in stream if event.type == "message_start").message.usage
            final = stream.get_final_message()
        assert final.content[0].text == chat.text
        # The engine says how long the prompt is before its first word.
        assert first.input_tokens + (first.cache_read_input_tokens or 0) == chat.tokens[0]
        counted = client.messages.count_tokens(model=server.ready["model"], messages=TURNS)
        assert counted.input_tokens == chat.tokens[0]
        stopped = client.messages.create(**{**asked, "stop_sequences": [chat.text[1:3]]})
        assert stopped.content[0].text == chat.text[:1]


def test_ollama(server: Server, chat: Reference) -> None:
    client = ollama.Client(f"http://127.0.0.1:{server.port}", headers={"Authorization": f"Bearer {server.key}"})
    model = server.ready["model"] + ":latest"
    options = {"temperature": 0, "num_predict": CAP}
    whole = client.chat(model, TURNS, options=options)
    assert (whole.message.content, whole.prompt_eval_count, whole.eval_count) == (chat.text, *chat.tokens)
    assert whole.total_duration >= whole.prompt_eval_duration + whole.eval_duration > 0
    *parts, last = client.generate(model, QUESTION, options=options, stream=True)
    assert "".join(part.response for part in parts) == chat.text
    assert (last.prompt_eval_count, last.eval_count) == chat.tokens
    assert set(json.loads(client.generate(model, "Paris.", format=SCHEMA).response)) == {"city"}
    raw = client.generate(model, "Once upon a time", raw=True, options=options)
    assert raw.response.strip()
    assert raw.prompt_eval_count < chat.tokens[0]
    assert model in {known.model for known in client.ps().models}
    client._client.close()


def plain_text(server: Server, **fields: Any) -> list[str]:
    """The chunks of LMServ's answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/chat", json.dumps({"prompt": QUESTION, **fields}), {"X-API-Key": server.key})
    response = connection.getresponse()
    assert response.status == 200
    chunks = []
    while chunk := response.read1():
        chunks.append(chunk.decode())
    connection.close()
    return chunks


def test_lmserv(server: Server, chat: Reference) -> None:
    said = "".join(plain_text(server, temperature=0, repeat_penalty=1, max_tokens=CAP))
    assert said == chat.text


def test_lmserv_every_parameter_changes_the_answer(server: Server) -> None:
    fixed: dict[str, Any] = {"prompt": "Tell me about apples.", "temperature": 0, "max_tokens": 24, "repeat_penalty": 1}
    plain = "".join(plain_text(server, **fixed))
    assert "".join(plain_text(server, **fixed)) == plain
    for other in (
        {"repeat_penalty": 2},
        {"max_tokens": 5},
        {"system_prompt": "You are a pirate who talks of nothing but the sea."},
    ):
        assert "".join(plain_text(server, **{**fixed, **other})) != plain, other
    hot = {"".join(plain_text(server, **{**fixed, "temperature": 2, "top_p": 1})) for _ in range(3)}
    assert len(hot) > 1
    # However hot: of the likeliest words alone, the likeliest is left.
    assert "".join(plain_text(server, **{**fixed, "temperature": 2, "top_p": 0})) == plain
