"""llama.cpp's own shapes become those of OpenAI's API."""

import asyncio
import json
from typing import Any, cast

import pytest

from stentor.egress.engines import EngineAnswer
from stentor.flows.answer import AnswerMeter, EngineRubbish
from stentor.flows.ask import Ask, engine_body, read_chat, read_completion
from stentor.flows.assembly import Assembly
from stentor.flows.frames import FrameSplitter, frame_data
from stentor.flows.reshaping import reshape

Json = dict[str, Any]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 2}}


class Said:
    """An engine's answer, in given reads."""

    def __init__(self, content_type: str, *reads: bytes) -> None:
        self.status = 200
        self.content_type = content_type
        self._reads = list(reads)

    async def read(self) -> bytes:
        return self._reads.pop(0) if self._reads else b""


def chat(**fields: Any) -> Ask:
    return read_chat(json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}).encode())


def completion(**fields: Any) -> Ask:
    return read_completion(json.dumps({"model": "m", "prompt": "x", **fields}).encode())


def read_all(ask: Ask, said: Said, engine: str = "llama") -> list[bytes]:
    async def read() -> list[bytes]:
        answer = reshape(ask, engine, cast(EngineAnswer, said))
        assert answer.content_type == "text/event-stream"
        reads = []
        while chunk := await answer.read():
            reads.append(chunk)
        return reads

    return asyncio.run(read())


def assembled(ask: Ask, reads: list[bytes]) -> Json:
    assembly, meter = Assembly(ask.kind), AnswerMeter(answers=ask.answers, include_usage=False)
    for chunk in reads:
        assembly.feed(chunk)
    assert assembly.done
    assembly.read(meter)
    assert meter.finished
    body: Json = json.loads(assembly.body(meter.usage()))
    return body


# -- log probabilities beside tools


def test_only_what_can_not_be_streamed_is_asked_for_whole() -> None:
    def sent(ask: Ask, engine: str = "llama") -> Json:
        body: Json = json.loads(engine_body(ask, engine=engine, upstream_model="up", output_cap=3))
        return body

    whole = sent(chat(logprobs=True, tools=TOOLS))
    assert whole["stream"] is False
    assert "stream_options" not in whole
    for ask in (chat(logprobs=True), chat(tools=TOOLS), chat(logprobs=False, tools=TOOLS), chat(logprobs=1, tools=[])):
        assert sent(ask)["stream"] is True
    for engine in ("command", "openai"):
        assert sent(chat(logprobs=True, tools=TOOLS), engine)["stream"] is True


def test_a_whole_answer_comes_out_as_it_was() -> None:
    entries = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]
    call = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": '{"a":1}'}}
    whole = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 5,
        "model": "up",
        "system_fingerprint": "b1",
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {"role": "assistant", "content": "a", "reasoning_content": "hm", "tool_calls": [call]},
                "logprobs": {"content": entries},
            }
        ],
        "usage": USAGE,
        "timings": {"cache_n": 2, "prompt_n": 5, "predicted_n": 3},
    }
    text = json.dumps(whole).encode()
    ask = chat(logprobs=True, tools=TOOLS)
    assert assembled(ask, read_all(ask, Said("application/json", text[:40], text[40:]))) == whole


@pytest.mark.parametrize("text", [b"[]", b'{"choices":5}', b'{"choices":[{"message":5}]}', b"\xff", b"{"])
def test_a_whole_answer_that_is_none_is_rubbish(text: bytes) -> None:
    with pytest.raises(EngineRubbish):
        read_all(chat(logprobs=True, tools=TOOLS), Said("application/json", text))


# -- text completions


def frame(text: str, *tokens: str, index: int = 0, finish: str | None = None) -> bytes:
    logprobs = {
        "content": [
            {
                "id": 3,
                "token": token,
                "bytes": [],
                "logprob": -0.5,
                "top_logprobs": [{"token": token, "logprob": -0.5}, {"token": "z", "logprob": -2.0}],
            }
            for token in tokens
        ]
    }
    choice = {"index": index, "text": text, "logprobs": logprobs if tokens else None, "finish_reason": finish}
    more = {"usage": USAGE} if finish else {}
    return b"data: " + json.dumps({"id": "c", "choices": [choice], **more}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
STREAM = frame("Hö", "Hö") + frame(" you", " y", "ou") + frame("", finish="stop") + DONE


@pytest.mark.parametrize("cut", [len(STREAM), 30, 120])
def test_log_probabilities_of_a_text_have_the_legacy_shape(cut: int) -> None:
    ask = completion(logprobs=1)
    reads = read_all(ask, Said("text/event-stream", STREAM[:cut], STREAM[cut:]))
    whole = assembled(ask, reads)["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == ("Hö you", "stop")
    assert whole["logprobs"] == {
        "tokens": ["Hö", " y", "ou"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{"Hö": -0.5, "z": -2.0}, {" y": -0.5, "z": -2.0}, {"ou": -0.5, "z": -2.0}],
        "text_offset": [0, 2, 4],
    }
    datas = [frame_data(each) for each in FrameSplitter().feed(b"".join(reads))]
    second = json.loads(datas[1] or b"")["choices"][0]
    assert (second["text"], second["logprobs"]["text_offset"]) == (" you", [2, 4])


def test_what_has_the_legacy_shape_keeps_it() -> None:
    said = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5}], "text_offset": [1]}
    frames = b"".join(
        b"data: " + json.dumps({"choices": [{"index": 0, "text": "a", "logprobs": said}]}).encode() + b"\n\n"
        for _ in range(2)
    )
    ask = completion(logprobs=1)
    for engine in ("openai", "llama"):
        whole = assembled(
            ask, [*read_all(ask, Said("text/event-stream", frames), engine), frame("", finish="stop"), DONE]
        )
        assert whole["choices"][0]["logprobs"] == {name: value * 2 for name, value in said.items()}


@pytest.mark.parametrize(("ask", "engine"), [(completion(), "llama"), (chat(logprobs=True), "llama")])
def test_everything_else_is_left_alone(ask: Ask, engine: str) -> None:
    said = cast(EngineAnswer, Said("text/event-stream"))
    assert reshape(ask, engine, said) is said
