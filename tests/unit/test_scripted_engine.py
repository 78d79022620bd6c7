"""The scripted engine keeps its word: tests of the gateway are worth what it is worth."""

import gzip
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.http.harness import check_quick
from tests.scripted_engine import DEFAULT_TEXT, EngineProcess, Json, script

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def process() -> Iterator[EngineProcess]:
    with EngineProcess() as engine:
        yield engine


@pytest.fixture
def engine(process: EngineProcess) -> EngineProcess:
    process.ask("DELETE", "/log")
    process.control(health=200)
    return process


def body(text: str, **fields: Any) -> Json:
    return {"messages": [{"role": "user", "content": text}], **fields}


class Reply:
    """Status, headers and bytes of an answer, and whether it came to its end."""

    def __init__(self, engine: EngineProcess, ask: Json, path: str = CHAT) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=60)
        self.whole, self.status, self.data = True, 0, b""
        self.headers: dict[str, str] = {}
        try:
            connection.request("POST", path, json.dumps(ask))
            response = connection.getresponse()
            self.status, self.headers = response.status, {name.lower(): text for name, text in response.getheaders()}
            self.data = response.read()
        except http.client.IncompleteRead as cut:
            self.whole, self.data = False, cut.partial
        except (http.client.RemoteDisconnected, ConnectionResetError):
            self.whole = False
        finally:
            connection.close()

    def frames(self) -> list[Any]:
        texts = [line[6:] for line in self.data.decode().replace("\r\n", "\n").split("\n\n") if line[:6] == "data: "]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]

    def text(self) -> str:
        deltas = [frame["choices"][0]["delta"] for frame in self.frames()[:-1] if frame["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)


def stream(engine: EngineProcess, *do: Json, ask: Json | None = None, **options: Any) -> Reply:
    return Reply(engine, body(script(*do, **options), stream=True, **(ask or {})))


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ── shapes


def test_starts_fast() -> None:
    def start() -> float:
        before = time.monotonic()
        with EngineProcess():
            return time.monotonic() - before

    check_quick(start, 0.7, tries=10)  # 0.08 on an idle machine


def test_a_stream_has_the_frames_of_llama_server(engine: EngineProcess) -> None:
    frames = stream(engine, {"say": "one two"}, ask={"stream_options": {"include_usage": True}}).frames()
    assert frames[-1] == "[DONE]"
    choices = [frame["choices"] for frame in frames[:-1]]
    assert choices == [
        [{"finish_reason": None, "index": 0, "delta": {"role": "assistant", "content": None}}],
        [{"finish_reason": None, "index": 0, "delta": {"content": "one "}}],
        [{"finish_reason": None, "index": 0, "delta": {"content": "two"}}],
        [{"finish_reason": "stop", "index": 0, "delta": {}}],
        [],
    ]
    head = {"choices", "created", "id", "model", "system_fingerprint", "object"}
    assert [set(frame) - head for frame in frames[:-1]] == [set(), set(), set(), set(), {"usage", "timings"}]
    assert {frame["object"] for frame in frames[:-1]} == {"chat.completion.chunk"}
    assert len({frame["id"] for frame in frames[:-1]}) == 1


def test_without_include_usage_timings_ride_on_the_finish_frame(engine: EngineProcess) -> None:
    *_, finish, done = stream(engine, {"tokens": 3}).frames()
    assert done == "[DONE]"
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in finish
    assert finish["timings"]["predicted_n"] == 3


def test_a_whole_answer_has_the_fields_of_llama_server(engine: EngineProcess) -> None:
    answer = engine.ask("POST", CHAT, body(script({"say": "one two"}), model="m"))
    assert answer["choices"] == [
        {"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": "one two"}}
    ]
    assert (answer["object"], answer["model"]) == ("chat.completion", "m")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == 2
    assert answer["timings"]["predicted_n"] == 2


def test_completions_have_their_own_shape(engine: EngineProcess) -> None:
    ask = {"prompt": script({"say": "one two"}), "stream": True}
    *chunks, finish, done = Reply(engine, ask, "/v1/completions").frames()
    assert done == "[DONE]"
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["one ", "two"]
    assert finish["choices"] == [{"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert finish["usage"]["completion_tokens"] == 2
    answer = engine.ask("POST", "/v1/completions", {"prompt": "hi"})
    assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", DEFAULT_TEXT)


def test_a_canary_is_answered(engine: EngineProcess) -> None:
    answer = engine.ask("POST", CHAT, body("ping", max_tokens=1))
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 1


def test_usage_is_what_the_script_says(engine: EngineProcess) -> None:
    wanted = {"prompt_tokens": 100, "cached_tokens": 40, "completion_tokens": 7}
    answer = engine.ask("POST", CHAT, body(script({"say": "x"}, usage=wanted)))
    assert answer["usage"] == {
        "completion_tokens": 7,
        "prompt_tokens": 100,
        "total_tokens": 107,
        "prompt_tokens_details": {"cached_tokens": 40},
    }
    assert (answer["timings"]["cache_n"], answer["timings"]["prompt_n"]) == (40, 60)


def test_usage_can_be_missing(engine: EngineProcess) -> None:
    frames = stream(engine, {"say": "x"}, usage=False, ask={"stream_options": {"include_usage": True}}).frames()
    assert not any("usage" in frame or "timings" in frame for frame in frames[:-1])
    answer = engine.ask("POST", CHAT, body(script({"say": "x"}, usage=False)))
    assert not {"usage", "timings"} & set(answer)


def test_the_cap_is_kept_unless_told_otherwise(engine: EngineProcess) -> None:
    capped = engine.ask("POST", CHAT, body(script({"tokens": 10}), max_tokens=4))
    assert (capped["usage"]["completion_tokens"], capped["choices"][0]["finish_reason"]) == (4, "length")
    beyond = engine.ask("POST", CHAT, body(script({"tokens": 10}, ignore_cap=True), max_tokens=4))
    assert (beyond["usage"]["completion_tokens"], beyond["choices"][0]["finish_reason"]) == (10, "stop")


def test_several_choices(engine: EngineProcess) -> None:
    frames = stream(engine, {"say": "one two"}, ask={"n": 2}).frames()
    assert [frame["choices"][0]["index"] for frame in frames[:-1]] == [0, 1] * 4
    answer = engine.ask("POST", CHAT, body(script({"say": "one two"}), n=2))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 4


def test_parallel_tool_calls_arrive_in_interleaved_fragments(engine: EngineProcess) -> None:
    calls = [{"call": "add", "arguments": {"a": 1, "b": 2}}, {"call": "now", "arguments": "{}"}]
    frames = stream(engine, {"calls": calls}).frames()
    deltas = [frame["choices"][0]["delta"] for frame in frames[1:-2]]
    parts = [part for delta in deltas for part in delta["tool_calls"]]
    assert [part["function"].get("name") for part in parts[:2]] == ["add", "now"]
    for index, text in ((0, '{"a": 1, "b": 2}'), (1, "{}")):
        assert "".join(p["function"].get("arguments", "") for p in parts if p["index"] == index) == text
    assert frames[-2]["choices"][0]["finish_reason"] == "tool_calls"
    whole = engine.ask("POST", CHAT, body(script({"calls": calls})))["choices"][0]
    assert whole["message"]["content"] is None
    assert [call["function"]["name"] for call in whole["message"]["tool_calls"]] == ["add", "now"]
    assert whole["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1, "b": 2}'


def test_reasoning_is_apart_from_content(engine: EngineProcess) -> None:
    message = engine.ask("POST", CHAT, body(script({"think": "hm hm"}, {"say": "yes"})))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "yes", "reasoning_content": "hm hm"}


def test_logprobs_ride_with_each_token(engine: EngineProcess) -> None:
    frames = stream(engine, {"say": "one two"}, ask={"logprobs": True}).frames()
    tokens = [frame["choices"][0]["logprobs"]["content"][0]["token"] for frame in frames[1:3]]
    assert tokens == ["one ", "two"]
    whole = engine.ask("POST", CHAT, body(script({"say": "one two"}), logprobs=True))
    assert [each["token"] for each in whole["choices"][0]["logprobs"]["content"]] == tokens


def test_json_mode_answers_json_that_fits_the_schema(engine: EngineProcess) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "ages": {"type": "array", "items": {"type": "integer"}}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = engine.ask("POST", CHAT, body("a person", response_format=wanted))
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"name": "text", "ages": [7]}


def test_the_official_client_understands_it(engine: EngineProcess) -> None:
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": script({"call": "add", "arguments": {"a": 1}})}]
        tools: Any = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
        with client.chat.completions.stream(model="m", messages=messages, tools=tools) as events:
            message = events.get_final_completion().choices[0].message
        assert message.tool_calls
        assert message.tool_calls[0].function.arguments == '{"a": 1}'


# ── faults


@pytest.mark.parametrize("point", ["before_headers", "after_headers"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_closes_before_the_first_frame(engine: EngineProcess, point: str, how: str) -> None:
    reply = stream(engine, {"say": "x"}, at={point: how})
    assert not reply.whole
    assert (reply.status, reply.data) == (200 if point == "after_headers" else 0, b"")
    assert engine.wait_log(0)["ended"] == "scripted"


@pytest.mark.parametrize(("do", "options", "last"), [
    ([{"say": "one"}, {"close": True}, {"say": "two"}], {}, "one"),
    ([{"say": "one"}], {"at": {"before_finish": "close"}}, "one"),
    ([{"say": "one"}], {"at": {"before_usage": "close"}}, "finish"),
    ([{"say": "one"}], {"at": {"before_done": "close"}}, "usage"),
    ([{"say": "one"}], {"at": {"before_end": "close"}}, "done"),
])  # fmt: skip
def test_closes_at_any_point_of_a_stream(engine: EngineProcess, do: list[Json], options: Json, last: str) -> None:
    reply = stream(engine, *do, ask={"stream_options": {"include_usage": True}}, **options)
    assert not reply.whole
    final = reply.frames()[-1]
    if last == "one":
        assert final["choices"][0]["delta"] == {"content": "one"}
    elif last == "finish":
        assert final["choices"][0]["finish_reason"] == "stop"
    elif last == "usage":
        assert final["usage"]
    else:
        assert final == "[DONE]"


@pytest.mark.parametrize(("do", "options"), [
    ([{"say": "one"}, {"half": "two"}], {}),
    ([{"say": "one"}], {"at": {"mid_finish": "close"}}),
    ([{"say": "one"}], {"at": {"mid_usage": "close"}}),
])  # fmt: skip
def test_closes_in_the_middle_of_a_frame(engine: EngineProcess, do: list[Json], options: Json) -> None:
    reply = stream(engine, *do, ask={"stream_options": {"include_usage": True}}, **options)
    assert not reply.whole
    assert not reply.data.endswith(b"\n\n")
    assert b"[DONE]" not in reply.data


def test_closes_in_the_middle_of_a_whole_answer(engine: EngineProcess) -> None:
    reply = Reply(engine, body(script({"say": "one"}, at={"mid_finish": "close"})))
    assert not reply.whole
    assert reply.status == 200
    assert reply.data


def test_an_error_after_the_start(engine: EngineProcess) -> None:
    reply = stream(engine, {"say": "one"}, {"error": "out of memory"})
    assert reply.whole
    assert reply.status == 200
    assert reply.frames()[-1] == {"error": {"code": 500, "message": "out of memory", "type": "server_error"}}


@pytest.mark.parametrize("status", [400, 500, 503])
@pytest.mark.parametrize("streams", [True, False])
def test_refuses_with_a_status(engine: EngineProcess, status: int, streams: bool) -> None:
    reply = Reply(engine, body(script({"say": "x"}, status=status, message="no"), stream=streams))
    assert reply.status == status
    assert json.loads(reply.data) == {"error": {"code": status, "message": "no", "type": "server_error"}}


def test_refuses_too_long_a_prompt_as_llama_server_does(engine: EngineProcess) -> None:
    reply = Reply(engine, body(script({"say": "x"}, exceed_context=[3031, 1024])))
    assert reply.status == 400
    assert json.loads(reply.data)["error"] == {
        "code": 400,
        "message": "request (3031 tokens) exceeds the available context size (1024 tokens), try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 3031,
        "n_ctx": 1024,
    }
    assert Reply(engine, body("word " * 9000)).status == 400


def test_rubbish_instead_of_an_answer(engine: EngineProcess) -> None:
    for streams in (True, False):
        reply = Reply(engine, body(script({"say": "x"}, rubbish=True), stream=streams))
        assert reply.status == 200
        assert b"neither events nor JSON" in reply.data


def test_a_wrong_content_type(engine: EngineProcess) -> None:
    reply = stream(engine, {"say": "x"}, content_type="text/html")
    assert reply.headers["content-type"] == "text/html"


def test_frames_may_be_cut_anywhere(engine: EngineProcess) -> None:
    text = script({"say": "héllo wörld"}, piece=1)
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as raw:
        data = json.dumps(body(text, stream=True)).encode()
        raw.sendall(b"POST %b HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(data)))
        raw.sendall(data)
        received = b"".join(iter(lambda: raw.recv(65536), b""))
    chunks = received.partition(b"\r\n\r\n")[2]
    assert chunks.startswith(b"1\r\nd\r\n1\r\na\r\n")
    assert stream(engine, {"say": "héllo wörld"}, piece=1).text() == "héllo wörld"


def test_a_stream_in_one_write(engine: EngineProcess) -> None:
    text = script({"say": "one two"}, whole=True)
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as raw:
        data = json.dumps(body(text, stream=True)).encode()
        raw.sendall(b"POST %b HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(data)))
        raw.sendall(data)
        received = b"".join(iter(lambda: raw.recv(65536), b""))
    chunks = received.partition(b"\r\n\r\n")[2]
    assert int(chunks.partition(b"\r\n")[0], 16) == len(chunks) - len(chunks.partition(b"\r\n")[0]) - 2 - 2 - 5


def test_other_separators_and_comments(engine: EngineProcess) -> None:
    reply = stream(engine, {"say": "one "}, {"ping": 2}, {"say": "two"}, crlf=True)
    assert b"\r\n\r\n" in reply.data
    assert reply.data.count(b": ping\n\n") == 2
    assert b'"one "' in reply.data
    assert b'"two"' in reply.data


def test_huge_frames_and_raw_bytes(engine: EngineProcess) -> None:
    reply = stream(engine, {"huge": 1_000_000}, {"raw": "data: {\n\n"}, {"frame": {"odd": 1}})
    assert b"x" * 1_000_000 in reply.data
    assert b"data: {\n\n" in reply.data
    assert b'data: {"odd":1}\n\n' in reply.data


def test_gzip(engine: EngineProcess) -> None:
    for streams in (True, False):
        reply = Reply(engine, body(script({"say": "one two"}, gzip=True), stream=streams))
        assert reply.headers["content-encoding"] == "gzip"
        assert b"one" in gzip.decompress(reply.data)


def test_no_finish_frame_and_no_done(engine: EngineProcess) -> None:
    reply = stream(engine, {"say": "one"}, finish=False, done=False)
    assert reply.whole
    assert b'finish_reason":"' not in reply.data
    assert b"[DONE]" not in reply.data


def leave(engine: EngineProcess, ask: Json, *, after: bytes = b"") -> float:
    """Send a request, read until ``after`` arrived, close the connection; when (Unix seconds)."""
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as raw:
        data = json.dumps(ask).encode()
        raw.sendall(b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(data), data))
        seen = b""
        while after not in seen:
            seen += raw.recv(65536)
        wait_for(lambda: bool(engine.log()))
    return time.time()


def test_a_cancel_is_seen_at_once_in_a_stream(engine: EngineProcess) -> None:
    def late_s() -> float:
        before = len(engine.log())
        ask = body(script({"tokens": 2}, {"hang": True}), stream=True)
        left_at = leave(engine, ask, after=b'"content":"t1 "')
        entry = engine.wait_log(before)
        assert (entry["ended"], entry["closed_early"], entry["frames"]) == ("client_left", True, 3)
        return abs(entry["closed_early_at"] - left_at)

    check_quick(late_s, 1.0)


@pytest.mark.parametrize("options", [
    {"at": {"before_headers": "hang"}},
    {"at": {"after_headers": "hang"}},
    {"do": [{"say": "one"}, {"hang": True}]},
])  # fmt: skip
def test_hangs_until_the_client_leaves(engine: EngineProcess, options: Json) -> None:
    leave(engine, body(json.dumps(options), stream=True))
    assert engine.wait_log(0)["ended"] == "client_left"


def test_a_whole_answer_is_played_on_after_the_client_left_as_llama_server_does(
    engine: EngineProcess, tmp_path: Path
) -> None:
    leave(engine, body(script({"tokens": 10}, {"until": str(tmp_path / "go")})))
    wait_for(lambda: engine.log()[0]["closed_early"])
    assert engine.log()[0]["ended"] == "open"
    (tmp_path / "go").touch()
    entry = engine.wait_log(0)
    assert entry["ended_at"] > entry["closed_early_at"]


def test_waits_until_it_was_heard(engine: EngineProcess) -> None:
    text = script({"huge": 200_000}, {"heard": True}, {"say": "end"})
    with socket.create_connection(("127.0.0.1", engine.port), timeout=60) as raw:
        data = json.dumps(body(text, stream=True)).encode()
        raw.sendall(b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(data), data))
        while raw.recv(10_000, socket.MSG_PEEK)[-1:] != b"x":
            pass
        assert engine.log()[0]["heard"] == 0
        seen = b""
        while b"[DONE]" not in seen:
            seen += raw.recv(65536)
    assert engine.wait_log(0)["heard"] == 1


def test_dies_when_told() -> None:
    with EngineProcess() as engine:
        assert not stream(engine, {"say": "one"}, {"die": True}).whole
        assert engine.process.wait(timeout=30) == 1


def test_a_script_that_cannot_be_played_closes_the_connection() -> None:
    with EngineProcess(stderr=subprocess.DEVNULL) as engine:
        assert not stream(engine, {"tokens": "many"}).whole
        assert engine.ask("GET", "/health") == {"status": "ok"}


# ── other routes, options


def test_the_log_shows_what_was_sent(engine: EngineProcess) -> None:
    before = time.time()
    Reply(engine, body("hi", temperature=0.5))
    entry = engine.wait_log(0)
    assert (entry["method"], entry["path"], entry["ended"]) == ("POST", CHAT, "complete")
    assert entry["body"]["temperature"] == 0.5
    assert json.loads(entry["body_text"]) == entry["body"]
    assert entry["headers"]["host"].startswith("127.0.0.1")
    assert before <= entry["at"] <= entry["ended_at"] <= time.time()
    assert not entry["closed_early"]


def test_state_counts_what_runs(engine: EngineProcess) -> None:
    leave(engine, body(script({"sleep": 0.2})))
    wait_for(lambda: engine.ask("GET", "/state")["running"] == 0)
    assert engine.ask("GET", "/state")["peak"] >= 1


def test_control_changes_health_and_the_default_answer(engine: EngineProcess) -> None:
    engine.control(health=503)
    assert engine.ask("GET", "/health")["error"]["code"] == 503
    engine.control(health=200, default={"do": [{"say": "changed"}]})
    assert engine.ask("GET", "/health") == {"status": "ok"}
    assert engine.ask("POST", CHAT, body("hi"))["choices"][0]["message"]["content"] == "changed"


def test_unknown_routes_and_broken_bodies_are_refused(engine: EngineProcess) -> None:
    assert engine.ask("GET", "/nothing")["error"]["code"] == 404
    assert engine.ask("POST", CHAT, {"messages": 5})["error"]["message"] == "Expected 'messages' to be an array"
    assert engine.ask("POST", CHAT, [1])["error"]["code"] == 400


def test_one_connection_serves_many_requests(engine: EngineProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=10)
    for _ in range(3):
        connection.request("POST", CHAT, json.dumps(body("hi", stream=True)))
        assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
    connection.close()


@pytest.mark.parametrize("way", ["environment", "file", "stdin"])
def test_a_token_is_required_once_given(way: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("engine-token\n")
    if way == "environment":
        made = EngineProcess(token="engine-token")
    elif way == "file":
        made = EngineProcess("--api-key-file", str(key))
    else:
        made = EngineProcess("--token-stdin", stdin="engine-token\n")
    with made as engine:
        assert engine.ask("GET", "/health") == {"status": "ok"}
        assert engine.ask("GET", "/v1/models")["error"]["code"] == 401
        connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=10)
        connection.request("GET", "/v1/models", headers={"Authorization": "Bearer engine-token"})
        assert json.loads(connection.getresponse().read())["data"][0]["id"] == "scripted"
        connection.close()


def test_loads_slowly_when_asked(tmp_path: Path) -> None:
    with EngineProcess("--load-s", "0.2") as engine:
        wait_for(lambda: engine.ask("GET", "/health") == {"status": "ok"})
    with EngineProcess("--load-until", str(tmp_path / "loaded")) as engine:
        assert engine.ask("GET", "/health")["error"]["message"] == "Loading model"
        (tmp_path / "loaded").touch()
        wait_for(lambda: engine.ask("GET", "/health") == {"status": "ok"})


def test_a_script_file_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text(script({"say": "from a file"}))
    with EngineProcess("--script", str(path)) as engine:
        answer = engine.ask("POST", CHAT, body("hi"))
    assert answer["choices"][0]["message"]["content"] == "from a file"


def test_exits_by_itself_when_asked() -> None:
    with EngineProcess("--exit-after-s", "0.05", "--exit-status", "7") as engine:
        assert engine.process.wait(timeout=30) == 7


def test_fails_at_once_when_asked() -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        EngineProcess("--fail", "no such model", stderr=subprocess.DEVNULL)


def test_ends_on_sigterm_unless_told_to_ignore_it() -> None:
    with EngineProcess() as engine:
        engine.process.terminate()
        assert engine.process.wait(timeout=30) == 0
    with EngineProcess("--ignore-sigterm") as engine:
        engine.process.terminate()
        assert engine.ask("GET", "/health") == {"status": "ok"}


def test_runs_in_any_folder_and_environment(tmp_path: Path) -> None:
    here = Path(__file__).parents[1] / "scripted_engine.py"
    command = [sys.executable, str(here), "--help"]
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0


def test_a_script_that_goes_wrong_once_goes_well_the_second_time(engine: EngineProcess) -> None:
    text = script({"say": "never"}, status=500, once=True, mark=uuid.uuid4().hex)
    body = {"messages": [{"role": "user", "content": text}]}
    assert engine.ask("POST", CHAT, body)["error"]["code"] == 500
    assert engine.ask("POST", CHAT, body)["choices"][0]["message"]["content"] == DEFAULT_TEXT
