"""What llama.cpp itself answers, in the shapes of OpenAI's API."""

import json
from typing import Any

import pytest

from tests.http.harness import CHAT, COMPLETIONS, Gate, chat_body

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("look", "listen")
]


def asked(**fields: Any) -> dict[str, Any]:
    return {**chat_body("hi"), "model": "tiny", "max_tokens": 4, **fields}


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_has_log_probabilities_in_the_legacy_shape(gate: Gate, stream: bool) -> None:
    body = {"model": "tiny", "prompt": "once", "max_tokens": 4, "logprobs": 2, "stream": stream, "seed": 1}
    answer = gate.ask("POST", COMPLETIONS, body)
    assert answer.status == 200
    events = [event for event in answer.events() if event != "[DONE]"] if stream else [answer.json()]
    choices = [event["choices"][0] for event in events if event["choices"]]
    said = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    assert len([token for each in said for token in each["tokens"]]) == 4
    assert all(set(each) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"} for each in said)
    assert all(len(top) == 2 for each in said for top in each["top_logprobs"])


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_beside_tools(gate: Gate, stream: bool) -> None:
    answer = gate.ask("POST", CHAT, asked(tools=TOOLS, logprobs=True, stream=stream))
    assert answer.status == 200
    if not stream:
        assert len(answer.json()["choices"][0]["logprobs"]["content"]) == 4
    else:
        assert b'"logprobs":{"content":[{' in answer.body
    event = gate.event(answer.request_id)
    assert (event["status"], event["output_tokens"], event["estimated"]) == ("completed", 4, False)


def test_a_named_tool_is_the_only_one_that_is_called(gate: Gate) -> None:
    choice = {"type": "function", "function": {"name": "listen"}}
    answer = gate.ask("POST", CHAT, asked(tools=TOOLS, tool_choice=choice, max_tokens=60))
    assert answer.status == 200
    calls = answer.json()["choices"][0]["message"].get("tool_calls") or []
    assert {call["function"]["name"] for call in calls} <= {"listen"}
    assert b'"look"' not in answer.body


@pytest.mark.parametrize("fields", [{"echo": True}, {"suffix": "end"}])
def test_what_the_engine_would_break_on_never_gets_there(gate: Gate, fields: dict[str, Any]) -> None:
    answer = gate.ask("POST", COMPLETIONS, {"model": "tiny", "prompt": "once", "max_tokens": 2, **fields})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
    harmless = {"model": "tiny", "prompt": "once", "max_tokens": 2, "suffix": None, "echo": False}
    assert gate.ask("POST", COMPLETIONS, json.dumps(harmless).encode()).status == 200


def test_what_a_models_template_refuses_is_said_in_its_words(gate: Gate) -> None:
    hello, hi = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}
    fine = {"model": "picky", "messages": [hello, hi, hello], "max_tokens": 2}
    assert gate.ask("POST", CHAT, fine).status == 200
    wrong = {**fine, "messages": [hello, hello]}
    words = "The model's chat template refuses this conversation: Conversation roles must alternate user/assistant/"
    answer = gate.ask("POST", CHAT, wrong)
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "invalid_request", "messages")
    assert error["message"].startswith(words)
    event = gate.event(answer.request_id)
    assert (event["attempt"], event["cost_nano"]) == (1, 0)
    message = {"model": "picky", "messages": [hello, hello], "max_tokens": 2}
    for path, body in (("/v1/messages", message), ("/v1/messages/count_tokens", message), ("/api/chat", wrong)):
        answer = gate.ask("POST", path, body)
        assert answer.status == 400, path
        assert words.encode() in answer.body, path
    assert gate.ask("POST", CHAT, fine).status == 200
    (card,) = [card for card in gate.admin("GET", "/models")["data"] if card["id"] == "picky"]
    assert card["state"] == "ready"
    assert [slot["restarts"] for slot in gate.admin("GET", "/slots")["data"] if slot["model"] == "picky"] == [0]


def test_ollamas_clients_are_told_what_a_models_file_says(gate: Gate) -> None:
    assert gate.ask("POST", CHAT, asked(max_tokens=1)).status == 200
    tags = {tag["name"]: tag for tag in gate.ask("GET", "/api/tags").json()["models"]}
    size_bytes = (gate.server.folder / "tiny.gguf").stat().st_size
    assert tags["tiny:latest"]["size"] == size_bytes
    assert tags["eyes:latest"]["size"] > size_bytes  # with its projector
    details = tags["tiny:latest"]["details"]
    assert (details["format"], details["family"], details["parameter_size"]) == ("gguf", "llama", "74.4K")
    assert tags["eyes:latest"]["details"]["families"] == ["llama", "clip"]
    shown = gate.ask("POST", "/api/show", {"model": "tiny"}).json()
    assert shown["details"] == details
    info = shown["model_info"]
    assert (info["general.architecture"], info["llama.context_length"]) == ("llama", 512)
    assert info["llama.embedding_length"] == 64
    assert 70_000 < info["general.parameter_count"] < 80_000
    assert gate.ask("POST", "/api/show", {"model": "minilm"}).json()["model_info"]["bert.embedding_length"] == 384
    (running,) = [model for model in gate.ask("GET", "/api/ps").json()["models"] if model["name"] == "tiny:latest"]
    assert running["details"] == details


def test_a_slot_says_its_models_type_whatever_else_it_can(gate: Gate) -> None:
    body = {"model": "shortened", "input": "a"}
    assert gate.ask("POST", "/v1/embeddings", body).status == 200
    (slot,) = [slot for slot in gate.admin("GET", "/slots")["data"] if slot["model"] == "shortened"]
    assert slot["model_type"] == "embedding"
