"""What a dialect asks for reaches those who know it, and nobody else."""

import json
from typing import Any

import pytest

from stentor.core.errors import Refused
from stentor.core.ids import RequestId
from stentor.flows.ask import Ask, engine_body, read_chat
from stentor.flows.client import AnswerHead
from stentor.flows.dialects.lmserv import read_lmserv
from stentor.flows.dialects.messages_request import read_messages
from stentor.flows.dialects.ollama_answer import OllamaVoice
from stentor.flows.dialects.ollama_request import OllamaAsk
from stentor.flows.dialects.ollama_request import read_chat as read_ollama
from stentor.flows.dialects.responses_request import read_responses
from stentor.flows.dialects.voice import Occasion
from stentor.flows.upstreams.anthropic_request import to_messages
from tests import media

Json = dict[str, Any]
PICTURE = media.image_part(media.png())
SHOWN = PICTURE["image_url"]["url"].partition(",")[2]


def sent(ask: Ask, engine: str, cap: int = 5000) -> Json:
    body: Json = json.loads(engine_body(ask, engine=engine, upstream_model="up", output_cap=cap))
    return body


def messages(*content: Any, **fields: Any) -> Ask:
    return read_messages(
        json.dumps({"model": "m", "messages": [{"role": "user", "content": list(content)}], **fields}).encode()
    )


def text(words: str) -> Json:
    return {"type": "text", "text": words}


def result(number: int, *content: Json, **fields: Any) -> Json:
    return {"type": "tool_result", "tool_use_id": f"t{number}", "content": list(content), **fields}


def image() -> Json:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": SHOWN}}


# -- what OpenAI's API doesn't have


def test_what_openai_does_not_know_is_no_part_of_another_dialects_request() -> None:
    ollama = read_ollama(
        json.dumps(
            {
                "model": "m",
                "messages": [{"role": "user", "content": "x"}],
                "think": True,
                "options": {"temperature": 0.5, "repeat_penalty": 1.1, "mirostat": 1, "top_k": 3, "seed": 4},
            }
        ).encode()
    )
    assert isinstance(ollama, OllamaAsk)
    thinking = {"type": "enabled", "budget_tokens": 2000}
    asks = [
        read_lmserv(b'{"prompt":"x"}'),
        ollama.ask,
        messages(text("x"), temperature=0.5, top_k=4, thinking=thinking),
    ]
    known = {"model", "messages", "stream", "stream_options", "max_tokens", "temperature", "top_p", "seed"}
    for ask in asks:
        assert set(sent(ask, "openai")) <= known | {"reasoning_effort"}
        assert sent(ask, "openai")["temperature"] in (0.5, 0.8)
    for engine in ("llama", "node"):
        assert sent(asks[0], engine)["repeat_penalty"] == 1.1
        assert sent(asks[2], engine)["top_k"] == 4


def test_what_a_client_of_that_api_writes_is_passed_on() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"top_k":3,"repeat_penalty":1.2}'
    assert sent(read_chat(body), "openai")["top_k"] == 3
    assert sent(read_chat(body), "openai")["repeat_penalty"] == 1.2


# -- thinking


def test_the_budget_of_thoughts_reaches_those_who_keep_one() -> None:
    ask = messages(text("x"), thinking={"type": "enabled", "budget_tokens": 2000})
    assert sent(ask, "llama")["thinking_budget_tokens"] == 2000
    assert "thinking" not in sent(ask, "llama")
    assert not {"thinking", "thinking_budget_tokens"} & set(sent(ask, "command"))

    def told(cap: int, ask: Ask = ask) -> Any:
        return json.loads(to_messages(json.dumps(sent(ask, "anthropic", cap)).encode())).get("thinking")

    assert told(5000) == {"type": "enabled", "budget_tokens": 2000}
    assert told(1500) == {"type": "enabled", "budget_tokens": 1499}
    assert told(1024) is None
    assert told(1024, messages(text("x"), thinking={"type": "disabled"})) == {"type": "disabled"}
    assert told(5000, messages(text("x"))) is None


def test_within_a_turn_of_calls_anthropic_is_not_asked_to_think() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result(1, text("y"))]},
    ]
    body = {"model": "m", "messages": turns, "thinking": {"type": "enabled", "budget_tokens": 2000}}
    asked = sent(read_messages(json.dumps(body).encode()), "anthropic")
    assert "thinking" not in json.loads(to_messages(json.dumps(asked).encode()))


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(Refused, match="at least 1") as refused:
        messages(text("x"), thinking={"type": "enabled", "budget_tokens": 0})
    assert refused.value.param == "thinking.budget_tokens"


# -- results of tools


def test_a_result_that_is_an_error_says_so() -> None:
    ask = messages(result(1, text("no clock"), is_error=True), result(2, text("noon"), is_error=False))
    assert [message["content"] for message in sent(ask, "llama")["messages"]] == ["Error: no clock", "noon"]


def test_what_results_show_comes_after_the_last_of_them() -> None:
    ask = messages(result(1, text("a"), image()), result(2, image()), text("Well?"))
    first, second, shown = sent(ask, "llama")["messages"]
    assert [(each["role"], each["tool_call_id"]) for each in (first, second)] == [("tool", "t1"), ("tool", "t2")]
    assert shown == {"role": "user", "content": [PICTURE, PICTURE, text("Well?")]}
    assert ask.media == 2


def test_responses_may_show_what_a_function_put_out() -> None:
    def output(number: int, value: Any) -> Json:
        return {"type": "function_call_output", "call_id": f"c{number}", "output": value}

    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": PICTURE["image_url"]["url"]}]
    items = [output(1, parts), output(2, "b"), {"type": "message", "role": "user", "content": "Well?"}]
    for given in (items, items[:2]):
        ask = read_responses(json.dumps({"model": "m", "input": given}).encode()).ask
        first, second, shown, *rest = sent(ask, "llama")["messages"]
        assert (first["content"], second["content"]) == ("a", "b")
        assert shown == {"role": "user", "content": [PICTURE]}
        assert [message["content"] for message in rest] == ["Well?"] * (len(given) - 2)
        assert ask.needs == ("text", "image")


# -- images by address


def test_an_image_by_address_is_one_to_be_fetched() -> None:
    def named(url: str) -> Json:
        return {"type": "image", "source": {"type": "url", "url": url}}

    ask = messages(named("https://example.org/a.png"))
    assert ([image.url for image in ask.images], ask.media) == (["https://example.org/a.png"], 1)
    for url in ("http://example.org/a.png", "file:///etc/passwd"):
        with pytest.raises(Refused):
            messages(named(url))


# -- Ollama's calls


def test_ollamas_calls_are_numbered_and_have_their_ids() -> None:
    def call(number: int) -> Json:
        return {"id": f"c{number}", "type": "function", "function": {"name": f"f{number}", "arguments": "{}"}}

    message = {"role": "assistant", "content": None, "tool_calls": [call(0), call(1)]}
    body = json.dumps({"choices": [{"index": 0, "finish_reason": "tool_calls", "message": message}]}).encode()
    head = AnswerHead("m", "m#0", 0, None)
    said = json.loads(OllamaVoice(Occasion(RequestId("r"), 0.0), "m", chat=True).whole(head, body))
    assert said["message"]["tool_calls"] == [
        {"id": f"c{number}", "function": {"index": number, "name": f"f{number}", "arguments": {}}}
        for number in range(2)
    ]
