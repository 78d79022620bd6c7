"""Ollama's API: the official client's calls, lines and counts, and what is refused."""

import base64
import datetime
import json
import time
from collections.abc import Iterator

import ollama
import pytest

from tests.http.harness import Gate, marked
from tests.scripted_engine import DEFAULT_TEXT, script
from tests.serving import Server, scripted_model

CHAT, GENERATE = "/api/chat", "/api/generate"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLS = script(
    {"think": "hm, well"},
    {"say": "Let me see."},
    {
        "calls": [
            {"call": "weather", "arguments": {"city": "Genève"}, "fragment": 1},
            {"call": "time", "arguments": "{}"},
        ]
    },
)


@pytest.fixture
def client(each: Gate) -> Iterator[ollama.Client]:
    client = ollama.Client(f"http://127.0.0.1:{each.port}", headers={"Authorization": f"Bearer {each.key}"})
    yield client
    client._client.close()


def said(text: str = "hi") -> list:
    return [{"role": "user", "content": text}]


def ask(text: str = "hi", **fields) -> dict:
    return {"model": "scripted", "messages": said(text), **fields}


def lines(answer) -> list[dict]:
    return [json.loads(line) for line in answer.body.splitlines()]


# -- answers


@pytest.mark.parametrize("name", ["scripted", "scripted:latest", "also", "also:latest"])
def test_chat(client, each, name):
    answer = client.chat(name, said())
    assert (answer.message.role, answer.message.content) == ("assistant", DEFAULT_TEXT)
    assert (answer.model, answer.done, answer.done_reason) == (name, True, "stop")
    assert answer.total_duration >= answer.eval_duration >= 0
    assert datetime.datetime.fromisoformat(answer.created_at).utcoffset() == datetime.timedelta(0)


def test_chat_streamed(client):
    *body, last = list(client.chat("scripted", said(), stream=True))
    assert "".join(part.message.content for part in body) == DEFAULT_TEXT
    assert not any(part.done for part in body)
    assert (last.done, last.done_reason, last.message.content) == (True, "stop", "")
    assert (last.prompt_eval_count, last.eval_count) == (5, 5)


def test_it_costs_what_the_chat_costs(each):
    text = script({"tokens": 9}, usage={"prompt_tokens": 50, "cached_tokens": 20})
    chat = each.event(each.chat(text).request_id)
    bodies = {
        CHAT: {"model": "scripted", "messages": said(text)},
        GENERATE: {"model": "scripted", "prompt": text},
    }
    for path, body in bodies.items():
        for stream in (False, True):
            answer = each.ask("POST", path, {**body, "stream": stream})
            event = each.event(answer.request_id)
            assert event["endpoint"] == path
            for field in ("input_tokens", "cached_tokens", "output_tokens", "cost_nano"):
                assert event[field] == chat[field]
            last = lines(answer)[-1]
            assert (last["prompt_eval_count"], last["eval_count"]) == (50, 9)


def test_a_stream_is_lines_and_the_default(each):
    answer = each.ask("POST", CHAT, ask())
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.body.endswith(b"\n")
    schema = {"$ref": "#/components/schemas/OllamaAnswer"}
    for line in lines(answer):
        each.contract.validate(schema, line)
    assert lines(answer)[-1]["done"]


def test_generate(client):
    answer = client.generate("scripted", "hi", system="Be brief.")
    assert (answer.response, answer.done_reason) == (DEFAULT_TEXT, "stop")
    parts = list(client.generate("scripted", "hi", stream=True))
    assert "".join(part.response for part in parts) == DEFAULT_TEXT


def test_generate_raw_leaves_the_template_out(client, each):
    text, mark = marked({"say": "raw words"})
    answer = client.generate("scripted", text, raw=True)
    assert answer.response == "raw words"
    assert each.engine().wait_entry(mark)["path"] == "/v1/completions"


def test_calls(client):
    whole = client.chat("scripted", said(CALLS), tools=[WEATHER], think=True)
    calls = [(call.function.name, dict(call.function.arguments)) for call in whole.message.tool_calls]
    assert calls == [("weather", {"city": "Genève"}), ("time", {})]
    assert (whole.message.thinking, whole.message.content) == ("hm, well", "Let me see.")
    parts = [part.message for part in client.chat("scripted", said(CALLS), tools=[WEATHER], stream=True)]
    streamed = [call for part in parts for call in part.tool_calls or ()]
    assert [(call.function.name, dict(call.function.arguments)) for call in streamed] == calls
    assert "".join(part.thinking or "" for part in parts) == "hm, well"


def test_a_call_that_was_cut_is_none(client):
    text = script({"call": "weather", "arguments": {"city": "Genève"}})
    answer = client.chat("scripted", said(text), tools=[WEATHER], options={"num_predict": 2})
    assert (answer.done_reason, answer.message.tool_calls) == ("length", None)


def test_a_schema_is_kept(client):
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    assert json.loads(client.chat("scripted", said("who?"), format=schema).message.content) == {"age": 7}
    assert json.loads(client.chat("scripted", said("who?"), format="json").message.content) == {"answer": "yes"}


def test_logprobs(each):
    answer = each.ask("POST", CHAT, ask(logprobs=True, top_logprobs=1))
    told = [entry["token"] for line in lines(answer) for entry in line.get("logprobs", ())]
    assert "".join(told) == DEFAULT_TEXT
    whole = each.ask("POST", CHAT, ask(logprobs=True, stream=False)).json()
    assert [entry["token"] for entry in whole["logprobs"]] == told


def test_preloading_asks_nothing(client, each):
    def asked() -> int:
        """Requests for answers, without those of the server's own that only look whether the engine is well."""
        return len([entry for entry in each.engine().log() if entry["body"].get("stream")])

    before = asked()
    assert client.generate("scripted").done_reason == "load"
    assert client.chat("scripted", [], keep_alive=-1).done_reason == "load"
    assert asked() == before
    with pytest.raises(ollama.ResponseError):
        client.generate("nothing-like-it")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_preloading_loads_and_unloads(tmp_path, workers):
    """A request without a prompt is how Ollama's clients load a model, and with ``keep_alive`` 0 unload it."""
    model = scripted_model("lazy", preload=False)
    settings = {"GATEWAY_WORKERS": workers, "IDLE_UNLOAD_S": "600", "KEEP_ALIVE_MAX_S": "1800"}
    with Server(tmp_path, model, "--admin-key", slots=3, **settings) as server:
        gate = Gate(server)
        client = ollama.Client(f"http://127.0.0.1:{gate.port}", headers={"Authorization": f"Bearer {gate.key}"})

        def running() -> list[str]:
            return [each.model for each in client.ps().models]

        keep_as_asked(gate, client)
        assert running() == []
        assert client.generate("lazy", keep_alive="10m").done_reason == "load"
        assert running() == ["lazy:latest"]
        event = gate.admin("GET", "/usage")["data"][0]
        assert (event["endpoint"], event["status"], event["cost_nano"]) == (GENERATE, "completed", 0)
        assert client.generate("lazy", keep_alive=0).done_reason == "unload"
        assert running() == []
        assert [row["action"] for row in gate.admin("GET", "/audit")["data"]].count("model_stop") == 1
        assert client.chat("lazy", said()).message.content == DEFAULT_TEXT
        assert client.chat("lazy", [], keep_alive=0).done_reason == "unload"
        assert client._request_raw("GET", "/api/version").json()["version"]
        assert running() == []
        client._client.close()


def keep_as_asked(gate: Gate, client: ollama.Client) -> None:
    """``keep_alive``, by an administrator's ``client`` and one with an ordinary key; the model is cold afterwards."""
    key = gate.make_key()["key"]
    ordinary = ollama.Client(f"http://127.0.0.1:{gate.port}", headers={"Authorization": f"Bearer {key}"})

    def left_s() -> float:
        (model,) = ordinary.ps().models
        return (model.expires_at - datetime.datetime.now(datetime.UTC)).total_seconds()

    def wait_unloaded(by: ollama.Client) -> str:
        deadline_s = time.monotonic() + 60
        while by.ps().models:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        (row,) = gate.admin("GET", "/models")["data"]
        return row["reason"]

    ordinary.chat("lazy", said())
    assert left_s() == pytest.approx(600, abs=60)
    ordinary.chat("lazy", said(), keep_alive="20m")
    assert left_s() == pytest.approx(1200, abs=60)
    list(ordinary.generate("lazy", "hi", stream=True, keep_alive=900))
    assert left_s() == pytest.approx(900, abs=60)
    ordinary.generate("lazy", keep_alive=-1)
    assert left_s() == pytest.approx(1800, abs=60)
    body = {"model": "lazy", "messages": said(), "max_tokens": 2, "ttl": 700}  # as LM Studio's clients say it
    assert gate.ask("POST", "/v1/chat/completions", body, key=key).status == 200
    assert left_s() == pytest.approx(700, abs=60)
    refused = gate.ask("POST", "/v1/chat/completions", {**body, "ttl": "5m"}, key=key)
    assert (refused.status, refused.json()["error"]["param"]) == (400, "ttl")
    client.chat("lazy", said(), keep_alive=-1)
    assert left_s() > 1e9
    ordinary.chat("lazy", said(), keep_alive=0)
    assert left_s() > 1e9  # an administrator asked to keep it
    with pytest.raises(ollama.ResponseError, match="keep_alive"):
        ordinary.chat("lazy", said(), keep_alive="soon")
    answer = gate.ask("POST", CHAT, {"model": "lazy", "messages": said(), "keep_alive": 0, "stream": False})
    assert wait_unloaded(client) == f"unloaded: keep_alive 0 of request {answer.request_id}"
    # Nothing is loaded to be unloaded.
    assert ordinary.generate("lazy", keep_alive=0).done_reason == "unload"
    assert ordinary.ps().models == []
    ordinary.chat("lazy", said())
    assert ordinary.chat("lazy", [], keep_alive="0s").done_reason == "unload"
    assert wait_unloaded(ordinary).startswith("unloaded: keep_alive 0 of request ")
    ordinary._client.close()


async def test_the_asynchronous_client(each):
    client = ollama.AsyncClient(f"http://127.0.0.1:{each.port}", headers={"X-API-Key": each.key})
    text = "".join([part.message.content async for part in await client.chat("scripted", said(), stream=True)])
    assert text == DEFAULT_TEXT
    await client._client.aclose()


# -- what there is


def test_the_models(client, each):
    listed = {model.model: model for model in client.list().models}
    assert {"scripted:latest", "narrow:latest"} <= set(listed)
    assert listed["scripted:latest"].digest != listed["narrow:latest"].digest
    running = {model.model: model for model in client.ps().models}
    assert running["scripted:latest"].context_length == 8192
    shown = client.show("scripted:latest")
    assert "completion" in shown.capabilities
    assert shown.modelinfo["stentor.context_length"] == 8192
    with pytest.raises(ollama.ResponseError, match="nothing-like-it"):
        client.show("nothing-like-it")


def test_a_narrow_key_sees_its_models_alone(each):
    key = each.make_key(models=["narrow"])["key"]
    assert [model["name"] for model in each.ask("GET", "/api/tags", key=key).json()["models"]] == ["narrow:latest"]
    assert [model["name"] for model in each.ask("GET", "/api/ps", key=key).json()["models"]] == ["narrow:latest"]
    assert each.ask("POST", "/api/show", {"model": "scripted"}, key=key).status == 404
    assert each.ask("POST", GENERATE, {"model": "scripted"}, key=key).status == 404


def test_the_version_is_open(each):
    assert each.ask("GET", "/api/version", key="").json()["version"]


# -- what reaches the engine


def engine_body(gate: Gate, path: str = CHAT, **fields) -> dict:
    text, mark = marked()
    body = {"model": "scripted", "stream": False, **fields}
    if path == CHAT:
        body["messages"] = [*fields.get("messages", []), {"role": "user", "content": text}]
    else:
        body["prompt"] = text
    answer = gate.ask("POST", path, body)
    assert answer.status == 200, answer.body
    found: dict = gate.engine().wait_entry(mark)["body"]
    return found


def test_options_reach_the_engine(gate: Gate):
    options = {
        "temperature": 0.25, "top_k": 7, "top_p": 0.5, "min_p": 0.1, "seed": 5, "stop": ["END"], "repeat_penalty": 1.3,
        "repeat_last_n": 64, "presence_penalty": 0.1, "frequency_penalty": 0.2,
    }  # fmt: skip
    for path in (CHAT, GENERATE):
        body = engine_body(gate, path, options={**options, "num_predict": 33, "num_ctx": 99, "num_gpu": 1})
        assert {name: body[name] for name in options} == options
        assert body["max_tokens"] == 33
        assert not {"num_ctx", "num_gpu", "num_predict"} & set(body)
    assert engine_body(gate, options={"num_predict": -1})["max_tokens"] > 33


@pytest.mark.parametrize(("think", "kwargs"), [(True, True), (False, False), ("low", True)])
def test_thinking_is_a_matter_of_the_template(gate: Gate, think, kwargs):
    body = engine_body(gate, think=think)
    assert body["chat_template_kwargs"] == {"enable_thinking": kwargs}
    assert body.get("reasoning_effort") == (think if think == "low" else None)


def test_turns_become_messages(gate: Gate):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What's up?"},
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
            {"function": {"name": "weather", "arguments": {"a": 1}}},
            {"function": {"name": "time", "arguments": {}}},
        ]},
        {"role": "tool", "tool_name": "time", "content": "noon"},
        {"role": "tool", "content": "sunny"},
    ]  # fmt: skip
    body = engine_body(gate, messages=turns, tools=[WEATHER])
    calls = [
        {"id": "call_2_0", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}},
        {"id": "call_2_1", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    assert body["messages"][:-1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What's up?"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_2_1", "content": "noon"},
        {"role": "tool", "tool_call_id": "call_2_0", "content": "sunny"},
    ]
    assert body["tools"] == [WEATHER]


def test_a_picture_needs_a_model_that_sees(client, each):
    with pytest.raises(ollama.ResponseError, match="image") as failed:
        client.chat("scripted", [{"role": "user", "content": "What?", "images": [base64.b64decode(PIXEL)]}])
    assert failed.value.status_code == 400
    assert each.ask("POST", GENERATE, {"model": "scripted", "prompt": "x", "images": [PIXEL]}).status == 400


# -- refusals and failures

WRONG = {
    "messages as text": (CHAT, {"model": "scripted", "messages": "hi"}, "messages"),
    "no role": (CHAT, {"model": "scripted", "messages": [{"content": "x"}]}, "role"),
    "a strange role": (CHAT, {"model": "scripted", "messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    "a number as content": (CHAT, {"model": "scripted", "messages": [{"role": "user", "content": 7}]}, "content"),
    "a strange format": (CHAT, ask(format="yaml"), "format"),
    "options as a list": (CHAT, ask(options=[1]), "options"),
    "predict as text": (CHAT, ask(options={"num_predict": "many"}), "num_predict"),
    "stream as text": (CHAT, ask(stream="yes"), "stream"),
    "a template": (GENERATE, {"model": "scripted", "prompt": "x", "template": "{{ x }}"}, "template"),
    "a gap": (GENERATE, {"model": "scripted", "prompt": "x", "suffix": "y"}, "suffix"),
    "memory": (GENERATE, {"model": "scripted", "prompt": "x", "context": [1, 2]}, "context"),
    "a raw picture": (GENERATE, {"model": "scripted", "prompt": "x", "raw": True, "images": [PIXEL]}, "images"),
    "a prompt as a list": (GENERATE, {"model": "scripted", "prompt": ["x"]}, "prompt"),
    "no name": ("/api/show", {}, "model"),
    "no input": ("/api/embed", {"model": "scripted"}, "input"),
    "no prompt": ("/api/embeddings", {"model": "scripted"}, "input"),
    "no vectors": ("/api/embed", {"model": "scripted", "input": "x"}, "embedding"),
}


@pytest.mark.parametrize(("path", "body", "word"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(gate: Gate, path, body, word):
    answer = gate.ask("POST", path, body)
    assert answer.status == 400
    assert word in answer.json()["error"]


@pytest.mark.parametrize("path", [CHAT, GENERATE, "/api/show", "/api/embed", "/api/embeddings"])
@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{", b"[" * 5000, b'{"model":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"model":"\xff"}',
        b'{"model":"\\ud800","prompt":"x"}',
        b'{"model":"scripted","messages":[{"role":"user","content":"x"}],"prompt":"x","format":'
        + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
    ],
)  # fmt: skip
def test_bodies_that_can_not_be_read(gate: Gate, path, data):
    assert gate.ask("POST", path, data).status in (200, 400, 404)
    assert gate.ask("POST", CHAT, ask()).status == 200


def test_errors_are_the_clients_own(client, each):
    with pytest.raises(ollama.ResponseError) as missing:
        client.chat("nothing-like-it", said())
    assert (missing.value.status_code, "nothing-like-it" in missing.value.error) == (404, True)
    stranger = ollama.Client(f"http://127.0.0.1:{each.port}")
    with pytest.raises(ollama.ResponseError) as nobody:
        stranger.chat("scripted", said())
    assert nobody.value.status_code == 401
    assert "Authorization" in nobody.value.error
    stranger._client.close()
    with pytest.raises(ollama.ResponseError) as failed:
        client.chat("scripted", said(script(status=500)))
    assert failed.value.status_code == 502


def test_an_engine_that_fails_after_the_first_word(client, each):
    text = script({"say": "so far"}, {"heard": True}, {"error": "out of memory"})
    texts: list[str] = []
    with pytest.raises(ollama.ResponseError, match="engine failed") as failed:
        texts.extend(part.message.content for part in client.chat("scripted", said(text), stream=True))
    assert "".join(texts) == "so far"
    assert "out of memory" not in failed.value.error
    answer = each.ask("POST", CHAT, ask(text))
    event = each.event(answer.request_id)
    assert (event["status"], event["input_tokens"], event["output_tokens"]) == ("failed", 0, 2)


def test_what_isnt_ollamas_keeps_its_own_envelope(each):
    answer = each.ask("POST", "/api/nothing", {"model": "x"})
    assert (answer.status, set(answer.json())) == (404, {"detail", "code"})


def test_who_wants_to_pull_is_told_who_does_it_here(each):
    answer = each.ask("POST", "/api/pull", {"model": "x"})
    assert (answer.status, answer.json()["code"]) == (404, "not_found")
    assert "`stentor models`" in answer.json()["error"]


# -- llama-swap's words for what is loaded


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_llama_swaps_clients_ask_of_models(tmp_path, workers):
    models = "\n".join(scripted_model(name, preload=False) for name in ("one", "two", "three"))
    settings = {"GATEWAY_WORKERS": workers, "IDLE_UNLOAD_S": "600"}
    with Server(tmp_path, models, "--admin-key", slots=4, **settings) as server:
        gate = Gate(server)
        key = gate.make_key(models=["two"])["key"]

        def running(by: str = gate.key) -> dict[str, str]:
            rows = gate.ask("GET", "/running", key=by).json()["running"]
            assert all(0 < row["ttl"] <= 600 and row["cmd"] == "" for row in rows)
            return {row["model"]: row["state"] for row in rows}

        assert running() == {}
        for model in ("one", "two", "three"):
            assert gate.ask("POST", "/v1/chat/completions", {"model": model, "messages": said()}).status == 200
        assert running() == {"one": "ready", "two": "ready", "three": "ready"}
        assert running(key) == {"two": "ready"}
        for method, path in (("GET", "/unload"), ("POST", "/api/models/unload"), ("POST", "/api/models/unload/two")):
            assert gate.ask(method, path, key=key).status == 403
        answer = gate.ask("POST", "/api/models/unload/two")
        assert (answer.status, answer.body) == (200, b"OK")
        assert running() == {"one": "ready", "three": "ready"}
        assert gate.ask("POST", "/api/models/unload/nothing-like-it").status == 404
        assert gate.ask("GET", "/unload").body == b"OK"
        assert running() == {}
        assert gate.ask("POST", "/api/models/unload").status == 200
        assert [row["action"] for row in gate.admin("GET", "/audit")["data"]].count("model_stop") == 3
        assert gate.ask("POST", "/v1/chat/completions", {"model": "one", "messages": said()}).status == 200
