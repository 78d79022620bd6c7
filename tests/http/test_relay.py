"""What the engine says is what the client gets: every frame, in order, however it was cut on its way."""

import json
from pathlib import Path

import pytest

from tests.http.harness import CHAT, COMPLETIONS, Gate, chat_body, check_quick, marked
from tests.scripted_engine import DEFAULT_TEXT, script

ODD_FRAMES = [
    '{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"a\\u00e9\\n\\"quoted\\""}}],"zzz":1e400}',
    '{ "choices" : [ { "finish_reason" : null, "index" : 0, "delta" : { "content" : "spaced" } } ] }',
    '{"choices":[{"index":0,"delta":{"content":"no reason at all"}}],"big":123456789012345678901234567890}',
    '{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"\\"finish_reason\\":\\"stop\\" data: [DONE]"}}]}',
    '{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Привет 👋","content":"twice"}}]}',
    '{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"\\"usage\\":{} \\"error\\":1"}}],"usage":null}',
]
CUTS = {
    "bytewise": {"piece": 1},
    "in sevens": {"piece": 7},
    "at once": {"whole": True},
    "crlf": {"crlf": True},
    "crlf bytewise": {"crlf": True, "piece": 1},
    "crlf at once": {"crlf": True, "whole": True},
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_frames_arrive_byte_for_byte(each: Gate, cut):
    end = "\r\n\r\n" if cut.get("crlf") else "\n\n"
    raws = [{"raw": f"data: {frame}{end}"} for frame in ODD_FRAMES]
    answer = each.chat(script({"ping": 2}, *raws, {"ping": 1}, {"say": "the end"}, **cut), stream=True)
    sent = answer.body.decode().split("\n\n")
    assert sent[1:7] == [f"data: {frame}" for frame in ODD_FRAMES]
    assert sent[-3:] == [sent[-3], "data: [DONE]", ""]
    assert json.loads(sent[-3][6:])["choices"][0]["finish_reason"] == "stop"
    assert b"\r" not in answer.body
    assert b"ping" not in answer.body


@pytest.mark.parametrize("more", [{}, {"piece": 50_000}, {"whole": True}], ids=["plain", "pieces", "whole"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole answer"])
def test_a_frame_of_a_megabyte(each: Gate, stream, more):
    answer = each.chat(script({"huge": 1_000_000}, {"say": "end"}, **more), stream=stream)
    if stream:
        contents = [event["choices"][0]["delta"].get("content") for event in answer.events()[:-1]]
        assert contents == [None, "x" * 1_000_000, "end", None]
    else:
        assert answer.json()["choices"][0]["message"]["content"] == "x" * 1_000_000 + "end"


def test_a_long_stream_keeps_its_order(each: Gate):
    answer = each.chat(script({"tokens": 2000}, ignore_cap=True), stream=True)
    texts = [event["choices"][0]["delta"].get("content") or "" for event in answer.events()[:-1]]
    assert "".join(texts) == "".join(f"t{number} " for number in range(2000))
    assert each.event(answer.request_id)["output_tokens"] == 2000


def test_each_word_comes_when_it_was_said(each: Gate, tmp_path: Path):
    stream = each.open(script({"say": "first"}, {"until": str(tmp_path / "go")}, {"say": "second"}))
    assert stream.content() == "first"
    assert each.running() == 1
    (tmp_path / "go").touch()
    assert stream.content() == "second"
    assert stream.rest().endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("asked", [True, False, None])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_the_usage_frame_comes_exactly_when_asked_for(each: Gate, asked, path):
    text = script({"tokens": 3}, usage={"prompt_tokens": 11, "cached_tokens": 4, "completion_tokens": 3})
    body = chat_body(text, stream=True) if path == CHAT else {"model": "scripted", "prompt": text, "stream": True}
    if asked is not None:
        body["stream_options"] = {"include_usage": asked}
    answer = each.ask("POST", path, body)
    *events, done = answer.events()
    assert done == "[DONE]"
    usages = [event["usage"] for event in events if event.get("usage")]
    if asked:
        assert usages == [
            {
                "prompt_tokens": 11,
                "completion_tokens": 3,
                "total_tokens": 14,
                "prompt_tokens_details": {"cached_tokens": 4},
            }
        ]
    elif path == CHAT:
        assert usages == []
    event = each.event(answer.request_id)
    assert (event["input_tokens"], event["cached_tokens"], event["output_tokens"]) == (11, 4, 3)
    assert not event["estimated"]


def test_usage_that_grows_from_frame_to_frame_is_counted_once(each: Gate):
    def frame(count, text, finish=None):
        usage = {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}
        return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], "usage": usage}

    frames = [{"frame": frame(1, "a")}, {"frame": frame(2, "b")}, {"frame": frame(3, "c", "stop")}]
    text = script(*frames, finish=False, usage=False)
    for stream in (True, False):
        options = {"stream_options": {"include_usage": True}} if stream else {}
        answer = each.chat(text, stream=stream, **options)
        event = each.event(answer.request_id)
        assert (event["input_tokens"], event["output_tokens"], event["estimated"]) == (9, 3, False)
        assert answer.body.count(b'"usage"') == 1


def test_answers_that_share_a_frame_end_when_all_have_ended(each: Gate):
    def frame(*choices):
        return {"frame": {"choices": [{"index": i, "delta": {}, "finish_reason": end} for i, end in choices]}}

    steps = [frame((0, "stop"), (1, None)), {"say": "x"}, frame((0, None), (1, "length"))]
    for stream in (True, False):
        answer = each.chat(script(*steps, finish=False), n=2, stream=stream)
        assert answer.status == 200
        if not stream:
            assert [choice["finish_reason"] for choice in answer.json()["choices"]] == ["stop", "length"]


ANSWERS = {
    "words": chat_body(script({"say": "Some words, and more – ünïcödé 👋."})),
    "nothing": chat_body(script({"say": ""})),
    "thought": chat_body(script({"think": "hm hm"}, {"say": "yes"})),
    "one call": chat_body(script({"call": "f", "arguments": {"a": [1, {"b": "ü"}]}}), tools=[]),
    "text and calls": chat_body(
        script(
            {"say": "now"},
            {"calls": [{"call": "f", "arguments": {"a": 1}, "fragment": 1}, {"call": "g", "arguments": "{}"}]},
            {"call": "h", "arguments": '{"raw": true}'},
        )
    ),
    "two answers": chat_body(script({"say": "a b c"}), n=2),
    "cut by the cap": chat_body(script({"tokens": 30}), max_tokens=4),
    "logprobs": chat_body(script({"say": "a b"}), logprobs=True, top_logprobs=1),
    "finished by a filter": chat_body(script({"say": "a b"}, finish="content_filter")),
    "cached": chat_body(script({"say": "a"}, usage={"prompt_tokens": 50, "cached_tokens": 40, "completion_tokens": 1})),
    "a schema": chat_body("plain", response_format={"type": "json_object"}),
    "completion": {"model": "scripted", "prompt": "Once upon"},
    "completion with logprobs": {"model": "scripted", "prompt": "Once upon", "logprobs": 1},
    "two completions": {"model": "scripted", "prompt": script({"say": "x y"}), "n": 2},
}


def settled(answer):
    """An answer without what no two answers share."""
    answer = dict(answer)
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    timings = answer.pop("timings")
    return answer | {"timings": {name: timings[name] for name in ("cache_n", "prompt_n", "predicted_n")}}


@pytest.mark.parametrize("body", ANSWERS.values(), ids=ANSWERS)
def test_an_assembled_answer_is_the_engines_own(each: Gate, body):
    own = each.engine().whole_answer({"max_tokens": 2048, **body})
    answer = each.ask("POST", CHAT if "messages" in body else COMPLETIONS, body)
    assert answer.status == 200
    assert settled(answer.json()) == settled(own)
    event = each.event(answer.request_id)
    usage = own["usage"]
    assert (event["input_tokens"], event["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])


def test_the_engine_gets_the_clients_fields_as_they_were_written(each: Gate):
    text, mark = marked({"say": "ok"})
    content = json.dumps(text)
    raw = (
        '{"model":"also","messages":[{"role":"user","content":' + content + '}],"temperature":0.10,"seed":7,'
        '"tools":[{"type":"function","function":{"name":"f","parameters":{ "b":1,"a":1e5, "ü":"\\u00fc"}}}],'
        '"stop":["\\u000a"],"max_completion_tokens":9,"unknown_thing":{"x": 1.50},"user":"somebody","stream":false}'
    )
    answer = each.ask("POST", CHAT, raw.encode())
    assert answer.status == 200
    sent = each.engine().wait_entry(mark)
    assert '{ "b":1,"a":1e5, "ü":"\\u00fc"}' in sent["body_text"]
    assert '"stop":["\\u000a"]' in sent["body_text"]
    assert '"temperature":0.10' in sent["body_text"]
    assert '"unknown_thing":{"x": 1.50}' in sent["body_text"]
    body = sent["body"]
    assert (body["model"], body["stream"], body["max_tokens"]) == ("scripted", True, 9)
    assert body["stream_options"] == {"include_usage": True}
    assert not {"user", "max_completion_tokens"} & set(body)
    assert "authorization" not in sent["headers"] or each.key not in sent["headers"]["authorization"]


def test_the_last_of_a_repeated_field_counts_everywhere(each: Gate):
    text, mark = marked({"tokens": 20})
    message = json.dumps([{"role": "user", "content": text}])
    raw = f'{{"model":"nope","max_tokens":1,"messages":[],"model":"scripted","messages":{message},"max_tokens":3}}'
    answer = each.ask("POST", CHAT, raw.encode())
    assert answer.json()["usage"]["completion_tokens"] == 3
    sent = each.engine().wait_entry(mark)["body_text"]
    assert sent.count('"max_tokens"') == sent.count('"messages"') == sent.count('"model"') == 1


def test_an_engine_that_packs_what_it_was_not_asked_to_is_refused(each: Gate):
    for stream in (True, False):
        answer = each.chat(script({"say": "packed"}, gzip=True), stream=stream)
        assert (answer.status, answer.json()["error"]["code"]) == (502, "engine_failed")
        assert [event["cost_nano"] for event in each.events(answer.request_id, 2)] == [0, 0]


def test_the_headers_say_who_answered_and_what_it_cost(each: Gate):
    whole = each.chat("hello")
    assert whole.headers["x-stentor-model"] == "scripted"
    assert whole.headers["x-stentor-instance"] == "scripted#1"
    check_quick(lambda: float(each.chat("hello").headers["x-stentor-overhead-ms"]), 1000)
    event = each.event(whole.request_id)
    assert float(whole.headers["x-stentor-cost"]) == event["cost_nano"] / 1e9
    assert whole.headers["content-type"] == "application/json"
    stream = each.chat("hello", stream=True)
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.headers["cache-control"] == "no-cache"
    assert "x-stentor-cost" not in stream.headers
    assert stream.body.count(DEFAULT_TEXT.split()[0].encode()) == 1
