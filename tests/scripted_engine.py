"""An OpenAI-shaped engine that does exactly what a test tells it to, misbehaviour included.

Run as ``python tests/scripted_engine.py --port N``; a test may also use :class:`EngineProcess`. The shapes of answers
and errors are those of llama.cpp's server (in xllamacpp 2026.10.11549).

The last user message (or ``prompt`` of ``/v1/completions``) is the script, where it is a JSON object; :func:`script`
writes one. Any other text is answered with a short sentence. ``do`` is a list of steps, played in order::

    {"say": "some words", "delay_s": 0.01}    content, a token a word, each after ``delay_s``
    {"tokens": 40, "delay_s": 0.01}           forty tokens of content
    {"think": "hm"}                           reasoning_content
    {"call": "f", "arguments": {…} | "raw"}   a tool call, in fragments of ``fragment`` (default 5) characters
    {"calls": [{"call": …}, …]}               several tool calls, their fragments interleaved
    {"huge": 1000000}                         one token of so many bytes
    {"sleep": 1.5}  {"ping": 2}               silence; comment lines ``: ping``
    {"raw": "text"}  {"frame": {…}}           bytes as they are; any JSON value as one SSE frame
    {"half": "text"}                          half of a content frame, then the connection closes
    {"close": true}  {"reset": true}          end of the connection without an end of the answer (FIN, RST)
    {"until": "/a/path"}                      silence until that file exists
    {"hang": true}  {"die": true}             silence until the client leaves; the process exits with status 1
    {"error": "text" | {…}}                   an error frame, after which the stream ends without ``[DONE]``

Beside ``do``:

``usage``        {"prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"}: overrides; false: no usage
                 and no timings
``finish``       the finish_reason; false: no finish frame
``done``         false: no ``[DONE]``
``status``       answer with this status and ``body`` (default: llama-server's error object with ``message``, ``type``)
``exceed_context``  [n_prompt_tokens, n_ctx]: the 400 that llama-server answers to too long a prompt
``at``           {point: step} at before_headers, after_headers, before_finish, mid_finish, before_usage, mid_usage,
                 before_done, before_end; a step is "close", "reset", "hang", "die" or {"sleep": s}
``content_type``, ``headers``  of the answer
``rubbish``      true: bytes that are neither SSE nor JSON, under the usual content type
``crlf``         true: frames separated by CRLF CRLF
``piece``        write in pieces of so many bytes, each with a turn of the event loop (and ``piece_delay_s``) between
``whole``        true: the whole stream in one write
``gzip``         true: compressed
``ignore_cap``   true: do not stop at max_tokens
``once``         true: the second request with the same script is answered with a short sentence

Other routes: ``GET /health``, ``GET /v1/models``, ``GET /log`` (every request received: see :class:`Entry`),
``DELETE /log``, ``GET /state`` (requests now running, and the most at once), ``POST /control`` (keys ``health``: a
status or "hang", ``default``: the script for messages without one). With ``STENTOR_ENGINE_TOKEN`` set, or a token
from ``--api-key-file`` or ``--token-stdin``, all but /health, /log, /state and /control need it as bearer token.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import httptools

Json = dict[str, Any]
FINGERPRINT = "b0-scripted"
DEFAULT_TEXT = "Hello from the scripted engine."
RUBBISH = b"\x00\x01<html>this is neither events nor JSON \xff\xfe</html>\n\n"


def script(*do: Json, **options: Any) -> str:
    """The text of a user message that makes the engine play ``do`` under ``options``."""
    return json.dumps({"do": list(do), **options})


class EngineProcess:
    """A scripted engine in a process of its own, on a free port of 127.0.0.1."""

    def __init__(self, *arguments: str, token: str | None = None, stdin: str = "", stderr: int | None = None) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "STENTOR_ENGINE_TOKEN"}
        if token is not None:
            environment["STENTOR_ENGINE_TOKEN"] = token
        command = [sys.executable, __file__, "--port", "0", *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=stderr, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin:
            self.process.stdin.write(stdin)
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            self.stop()
            raise RuntimeError(f"the scripted engine did not start: {line!r}")
        self.port = int(line.rsplit(":", 1)[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request on a connection of its own; the decoded JSON answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def log(self) -> list[Json]:
        """What the engine received so far, oldest first."""
        entries: list[Json] = self.ask("GET", "/log")
        return entries

    def control(self, **changes: Any) -> None:
        """Change how the engine behaves from now on: ``health=503``, ``default={"do": [...]}``."""
        self.ask("POST", "/control", changes)

    def wait_log(self, number: int, *, ended: bool = True, timeout_s: float = 5.0) -> Json:
        """The entry of the request with this number (from 0), once it is there and, if ``ended``, over."""
        deadline = time.monotonic() + timeout_s
        while True:
            entries = self.log()
            if len(entries) > number and (not ended or entries[number]["ended"] != "open"):
                return entries[number]
            if time.monotonic() > deadline:
                raise TimeoutError(f"request {number} is not there or not over: {entries}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End the process; it is gone when this returns."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()


@dataclasses.dataclass
class Entry:
    """One request as ``GET /log`` shows it. Times are Unix seconds.

    ``ended`` is "open", "complete", "client_left" or "scripted"; ``closed_early_at`` says when the client's connection
    went away before the answer's end, also where the answer is played on to its end (non-stream, as llama-server does).
    ``frames`` counts SSE frames written.
    """

    n: int
    at: float
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    body_text: str
    ended: str = "open"
    ended_at: float | None = None
    closed_early: bool = False
    closed_early_at: float | None = None
    frames: int = 0


class ScriptedEndError(Exception):
    """The script ends the connection here: ``how`` is "close" or "reset"."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class ClientLeftError(Exception):
    """The client's connection went away while the script was silent."""


class Engine:
    """What the connections share: the log, the settings, and what ``/control`` changed."""

    def __init__(self, options: argparse.Namespace, token: str | None) -> None:
        self.options = options
        self.token = token
        self.log: list[Entry] = []
        self.default: Json = {}
        self.health: int | str = 200
        self.running = 0
        self.peak = 0
        self.ready_at = time.monotonic() + float(options.load_s)
        self.played: set[str] = set()

    def loading(self) -> bool:
        return time.monotonic() < self.ready_at

    def state(self) -> Json:
        return {"running": self.running, "peak": self.peak, "requests": len(self.log)}

    def model_list(self) -> Json:
        meta = {"vocab_type": 2, "n_vocab": 49152, "n_ctx": self.options.ctx, "n_ctx_train": self.options.ctx}
        return {
            "object": "list",
            "data": [
                {
                    "id": self.options.model,
                    "aliases": [self.options.model],
                    "tags": [],
                    "object": "model",
                    "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
                    "created": int(time.time()),
                    "owned_by": "llamacpp",
                    "meta": meta,
                }
            ],
        }


def error_body(status: int, message: str, kind: str, **more: Any) -> Json:
    return {"error": {"code": status, "message": message, "type": kind, **more}}


def speed_of(phase: str, tokens: int, took_ms: float) -> Json:
    """One half of ``timings``."""
    each_ms = took_ms / max(1, tokens)
    per_second = 1000 / each_ms if each_ms else 0.0
    return {
        f"{phase}_n": tokens,
        f"{phase}_ms": took_ms,
        f"{phase}_per_token_ms": each_ms,
        f"{phase}_per_second": per_second,
    }


async def wait_for_file(path: str) -> None:
    while not os.path.exists(path):
        await asyncio.sleep(0.02)


def split_words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def tool_deltas(call: Json, index: int) -> Iterator[Json]:
    """A tool call as llama-server streams it: name first, then pieces of the arguments."""
    arguments = call.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    head = {"index": index, "id": call.get("id", f"call_{index:08d}"), "type": "function"}
    yield {"tool_calls": [{**head, "function": {"name": call["call"]}}]}
    size = call.get("fragment", 5)
    for start in range(0, len(text), size):
        yield {"tool_calls": [{"index": index, "function": {"arguments": text[start : start + size]}}]}


def interleave(streams: list[Iterator[Json]]) -> Iterator[Json]:
    while streams:
        alive = []
        for stream in streams:
            delta = next(stream, None)
            if delta is not None:
                yield delta
                alive.append(stream)
        streams = alive


def step_deltas(step: Json, first_call: int) -> Iterator[Json]:
    """The deltas of one step, a token each."""
    if "say" in step:
        yield from ({"content": word} for word in split_words(step["say"]))
    elif "tokens" in step:
        yield from ({"content": f"t{number} "} for number in range(step["tokens"]))
    elif "think" in step:
        yield from ({"reasoning_content": word} for word in split_words(step["think"]))
    elif "huge" in step:
        yield {"content": "x" * step["huge"]}
    elif "call" in step:
        yield from tool_deltas(step, first_call)
    elif "calls" in step:
        yield from interleave([tool_deltas(call, first_call + index) for index, call in enumerate(step["calls"])])


def example_of(schema: Any) -> Any:
    """The smallest value that a JSON schema's common keywords allow, so that JSON mode answers something valid."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: example_of(value) for name, value in schema.get("properties", {}).items()}
    if kind == "array":
        return [example_of(schema.get("items"))] * int(schema.get("minItems", 1))
    samples: Json = {"string": "text", "integer": 7, "number": 0.5, "boolean": True}
    return samples.get(kind)


class Ask:
    """One request for an answer, with its script."""

    def __init__(self, entry: Entry, default: Json) -> None:
        body = entry.body if isinstance(entry.body, dict) else {}
        self.body = body
        self.chat = "/chat/completions" in entry.path
        self.stream = bool(body.get("stream"))
        self.include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self.choices = int(body.get("n") or 1)
        self.prompt_tokens = self.count_prompt()
        self.script = self.find_script(default)
        cap = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("n_predict") or 0
        self.cap = 0 if self.script.get("ignore_cap") else int(cap)

    def messages(self) -> list[Json]:
        found = self.body.get("messages")
        return [message for message in found if isinstance(message, dict)] if isinstance(found, list) else []

    @staticmethod
    def text_of(content: Any) -> str:
        if isinstance(content, list):
            return " ".join(part.get("text", "") for part in content if isinstance(part, dict))
        return content if isinstance(content, str) else ""

    def count_prompt(self) -> int:
        if not self.chat:
            return max(1, len(split_words(self.text_of(self.body.get("prompt")))))
        return sum(len(split_words(self.text_of(message.get("content")))) + 4 for message in self.messages())

    def find_script(self, default: Json) -> Json:
        texts = [self.text_of(message.get("content")) for message in self.messages() if message.get("role") == "user"]
        text = (texts[-1] if texts else "") if self.chat else self.text_of(self.body.get("prompt"))
        if text.lstrip().startswith("{"):
            try:
                found: Json = json.loads(text)
            except ValueError:
                found = {}
            if isinstance(found, dict) and found:
                return {"do": [{"say": DEFAULT_TEXT}], **found}
        return default or {"do": [{"say": self.plain_answer()}]}

    def plain_answer(self) -> str:
        wanted = self.body.get("response_format") or {}
        if wanted.get("type") == "json_schema":
            return json.dumps(example_of(wanted["json_schema"].get("schema", {})))
        return '{"answer": "yes"}' if wanted.get("type") == "json_object" else DEFAULT_TEXT


class Wire:
    """The answer's bytes on their way out, cut and packed as the script wants."""

    def __init__(self, connection: "Connection", how: Json) -> None:
        self.connection = connection
        self.how = how
        self.separator = b"\r\n\r\n" if how.get("crlf") else b"\n\n"
        self.packer = zlib.compressobj(wbits=31) if how.get("gzip") else None
        self.held: list[bytes] = []

    def head(self, status: int, content_type: str, length: int | None = None) -> None:
        reason = http.client.responses.get(status, "Unknown")
        lines = [f"HTTP/1.1 {status} {reason}", "Server: llama.cpp"]
        lines.append(f"Content-Type: {self.how.get('content_type', content_type)}")
        lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
        lines += ["Content-Encoding: gzip"] if self.packer else []
        lines += [f"{name}: {value}" for name, value in self.how.get("headers", {}).items()]
        self.connection.write("\r\n".join([*lines, "", ""]).encode())

    async def send(self, data: bytes, *, chunked: bool = True) -> None:
        if self.packer:
            data = self.packer.compress(data) + self.packer.flush(zlib.Z_SYNC_FLUSH)
        if self.how.get("whole"):
            self.held.append(data)
            return
        size = int(self.how.get("piece", 0)) or len(data) or 1
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            self.connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await self.connection.drain()
            if "piece" in self.how:
                await asyncio.sleep(float(self.how.get("piece_delay_s", 0)))

    async def frame(self, value: Any, *, half: bool = False) -> None:
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        data = b"data: " + text.encode() + self.separator
        if half:
            await self.send(data[: len(data) // 2])
            raise ScriptedEndError("close")
        self.connection.count_frame()
        await self.send(data)

    async def end(self) -> None:
        rest = b"".join(self.held) + (self.packer.flush() if self.packer else b"")
        if rest:
            self.connection.write(b"%x\r\n%b\r\n" % (len(rest), rest))
        self.connection.write(b"0\r\n\r\n")
        await self.connection.drain()


class Answer:
    """Plays one script, as a stream or as one JSON object."""

    def __init__(self, ask: Ask, wire: Wire, model: str) -> None:
        self.ask = ask
        self.wire = wire
        self.how = ask.script
        self.model = ask.body.get("model") or model
        self.id = f"chatcmpl-scripted{time.monotonic_ns():x}"
        self.started = time.monotonic()
        self.tokens = 0
        self.calls = 0
        self.finish = "stop"
        self.said: list[Json] = []

    async def play(self) -> None:
        status = int(self.how.get("status", 200))
        await self.reach("before_headers")
        if "exceed_context" in self.how:
            await self.refuse_context(*self.how["exceed_context"])
        elif status != 200:
            message, kind = self.how.get("message", "scripted failure"), self.how.get("type", "server_error")
            await self.send_json(self.how.get("body", error_body(status, message, kind)), status)
        elif self.ask.stream:
            await self.stream()
        else:
            await self.collect()

    async def refuse_context(self, prompt: int, context: int) -> None:
        text = f"request ({prompt} tokens) exceeds the available context size ({context} tokens), try increasing it"
        more = {"n_prompt_tokens": prompt, "n_ctx": context}
        await self.send_json(error_body(400, text, "exceed_context_size_error", **more), 400)

    async def send_json(self, value: Any, status: int = 200) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value, separators=(",", ":")).encode()
        if self.how.get("rubbish"):
            data = RUBBISH
        if self.wire.packer:
            self.wire.head(status, "application/json; charset=utf-8")
            await self.wire.send(data)
            await self.wire.end()
            return
        self.wire.head(status, "application/json; charset=utf-8", len(data))
        await self.reach("after_headers")
        half = len(data) // 2
        await self.wire.send(data[:half], chunked=False)
        await self.reach("mid_finish")
        await self.wire.send(data[half:], chunked=False)

    async def reach(self, point: str) -> None:
        step = self.how.get("at", {}).get(point)
        if step is not None:
            await self.act({step: True} if isinstance(step, str) else step)

    async def act(self, step: Json) -> None:
        """A step that says nothing: silence, noise, or an end."""
        if "sleep" in step:
            await asyncio.sleep(step["sleep"])
        elif "until" in step:
            await wait_for_file(step["until"])
        elif "hang" in step:
            await self.wire.connection.wait_left()
        elif "die" in step:
            os._exit(1)
        elif "close" in step or "reset" in step:
            raise ScriptedEndError("reset" if "reset" in step else "close")
        elif self.ask.stream:
            await self.make_noise(step)

    async def make_noise(self, step: Json) -> None:
        """What only a stream can hold."""
        if "ping" in step:
            await self.wire.send(b": ping\n\n" * int(step["ping"]))
        elif "raw" in step:
            await self.wire.send(step["raw"].encode())
        elif "frame" in step:
            await self.wire.frame(step["frame"])
        elif "half" in step:
            await self.wire.frame(self.chunk(self.choice(0, {"content": step["half"]})), half=True)

    # ── stream

    async def stream(self) -> None:
        self.wire.head(200, "text/event-stream")
        await self.reach("after_headers")
        if self.how.get("rubbish"):
            await self.wire.send(RUBBISH)
            await self.wire.end()
            return
        if self.ask.chat:
            for index in range(self.ask.choices):
                await self.wire.frame(self.chunk(self.choice(index, {"role": "assistant", "content": None})))
        for step in self.how["do"]:
            if "error" in step:
                error = step["error"]
                known = error if isinstance(error, dict) else error_body(500, str(error), "server_error")["error"]
                await self.wire.frame({"error": known})
                await self.wire.end()
                return
            if not await self.speak(step):
                break
        await self.finish_stream()

    async def speak(self, step: Json) -> bool:
        """Stream one step's tokens; False when the cap is reached."""
        await self.act(step)
        for delta in step_deltas(step, self.calls):
            await asyncio.sleep(step.get("delay_s", 0))
            for index in range(self.ask.choices):
                await self.wire.frame(self.chunk(self.choice(index, delta)))
            if self.count(delta):
                return False
        self.calls += 1 if "call" in step else len(step.get("calls", ()))
        return True

    async def finish_stream(self) -> None:
        usage_apart = self.ask.chat and self.ask.include_usage and self.how.get("usage") is not False
        await self.reach("before_finish")
        if self.how.get("finish") is not False:
            for index in range(self.ask.choices):
                chunk = self.chunk(self.choice(index, {}, self.finish_reason()))
                if not usage_apart and index == self.ask.choices - 1:
                    chunk |= self.measures() if not self.ask.chat else self.timings()
                await self.wire.frame(chunk, half="mid_finish" in self.how.get("at", {}))
        await self.reach("before_usage")
        if usage_apart:
            await self.wire.frame(self.chunk() | self.measures(), half="mid_usage" in self.how.get("at", {}))
        await self.reach("before_done")
        if self.how.get("done") is not False:
            await self.wire.frame("[DONE]")
        await self.reach("before_end")
        await self.wire.end()

    # ── whole answer

    async def collect(self) -> None:
        for step in self.how["do"]:
            if "error" in step:
                error = step["error"]
                known = {"error": error} if isinstance(error, dict) else error_body(500, str(error), "server_error")
                await self.send_json(known, 500)
                return
            await self.act(step)
            capped = False
            for delta in step_deltas(step, self.calls):
                await asyncio.sleep(step.get("delay_s", 0))
                self.said.append(delta)
                capped = self.count(delta)
                if capped:
                    break
            self.calls += 1 if "call" in step else len(step.get("calls", ()))
            if capped:
                break
        choices = [self.whole_choice(index) for index in range(self.ask.choices)]
        kind = "chat.completion" if self.ask.chat else "text_completion"
        measures = self.measures()
        answer = {"choices": choices, "created": int(time.time()), "model": self.model}
        answer |= {"system_fingerprint": FINGERPRINT, "object": kind}
        answer |= {"usage": measures["usage"]} if measures else {}
        await self.send_json(answer | {"id": self.id} | ({"timings": measures["timings"]} if measures else {}))

    def whole_choice(self, index: int) -> Json:
        text = "".join(delta.get("content", "") for delta in self.said)
        logprobs = {"content": [self.logprob(delta["content"]) for delta in self.said if "content" in delta]}
        if not self.ask.chat:
            return {
                "text": text,
                "index": index,
                "logprobs": logprobs if self.wants_logprobs() else None,
                "finish_reason": self.finish_reason(),
            }
        message: Json = {"role": "assistant", "content": text}
        thought = "".join(delta.get("reasoning_content", "") for delta in self.said)
        if thought:
            message["reasoning_content"] = thought
        calls = self.whole_calls()
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        choice = {"finish_reason": self.finish_reason(), "index": index, "message": message}
        return choice | ({"logprobs": logprobs} if self.wants_logprobs() else {})

    def whole_calls(self) -> list[Json]:
        calls: dict[int, Json] = {}
        for delta in self.said:
            for part in delta.get("tool_calls", ()):
                call = calls.setdefault(part["index"], {"type": "function", "function": {"arguments": ""}})
                function = part["function"]
                call["function"]["name"] = function.get("name", call["function"].get("name"))
                call["function"]["arguments"] += function.get("arguments", "")
                call["id"] = part.get("id", call.get("id"))
        return [calls[index] for index in sorted(calls)]

    # ── shapes

    def count(self, delta: Json) -> bool:
        self.tokens += 1
        if "tool_calls" in delta:
            self.finish = "tool_calls"
        if self.ask.cap and self.tokens >= self.ask.cap:
            self.finish = "length"
            return True
        return False

    def finish_reason(self) -> str:
        return str(self.how.get("finish") or self.finish)

    def wants_logprobs(self) -> bool:
        return bool(self.ask.body.get("logprobs"))

    @staticmethod
    def logprob(token: str) -> Json:
        known = {"id": len(token), "token": token, "bytes": list(token.encode()), "logprob": -0.25}
        return {**known, "top_logprobs": [known]}

    def choice(self, index: int, delta: Json, finish: str | None = None) -> Json:
        logprobs = None
        if self.wants_logprobs() and delta.get("content"):
            logprobs = {"content": [self.logprob(delta["content"])]}
        if not self.ask.chat:
            text = delta.get("content") or ""
            return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}
        choice: Json = {"finish_reason": finish, "index": index, "delta": delta}
        return choice | ({"logprobs": logprobs} if logprobs else {})

    def chunk(self, *choices: Json) -> Json:
        kind = "chat.completion.chunk" if self.ask.chat else "text_completion"
        head = {"choices": list(choices), "created": int(time.time()), "id": self.id, "model": self.model}
        return head | {"system_fingerprint": FINGERPRINT, "object": kind}

    def usage(self) -> Json:
        known = self.how.get("usage") or {}
        prompt = int(known.get("prompt_tokens", self.ask.prompt_tokens))
        output = int(known.get("completion_tokens", self.tokens * self.ask.choices))
        cached = int(known.get("cached_tokens", 0))
        details = {"cached_tokens": cached}
        counts = {"completion_tokens": output, "prompt_tokens": prompt, "total_tokens": prompt + output}
        counts["prompt_tokens_details"] = details
        if "reasoning_tokens" in known:
            counts["completion_tokens_details"] = {"reasoning_tokens": int(known["reasoning_tokens"])}
        return counts

    def timings(self) -> Json:
        return {} if self.how.get("usage") is False else {"timings": self.measures()["timings"]}

    def measures(self) -> Json:
        """``usage`` and ``timings``; nothing where the script wants none."""
        if self.how.get("usage") is False:
            return {}
        usage = self.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        took_ms = round((time.monotonic() - self.started) * 1000, 3)
        timings = {"cache_n": cached}
        timings |= speed_of("prompt", usage["prompt_tokens"] - cached, 1.0)
        timings |= speed_of("predicted", usage["completion_tokens"], took_ms)
        return {"usage": usage, "timings": timings}


class Connection(asyncio.Protocol):
    """One client connection: requests one after the other, each answered by a task."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.transport: asyncio.Transport
        self.parser = httptools.HttpRequestParser(self)
        self.writable = asyncio.Event()
        self.writable.set()
        self.waiting: list[Entry] = []
        self.entry: Entry | None = None
        self.task: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()
        self.keep_alive = True

    # ── transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        self.writable.set()
        entry = self.entry
        if entry is None or entry.ended != "open":
            return
        entry.closed_early, entry.closed_early_at = True, time.time()
        streaming = isinstance(entry.body, dict) and bool(entry.body.get("stream"))
        if self.task is not None and streaming:
            self.task.cancel()

    def write(self, data: bytes) -> None:
        if not self.gone.is_set():
            self.transport.write(data)

    async def wait_left(self) -> None:
        await self.gone.wait()
        raise ClientLeftError

    async def drain(self) -> None:
        await self.writable.wait()

    def count_frame(self) -> None:
        if self.entry is not None:
            self.entry.frames += 1

    # ── parser

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers: dict[str, str] = {}
        self.content = bytearray()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.content += body

    def on_message_complete(self) -> None:
        text = self.content.decode("utf-8", "replace")
        try:
            body = json.loads(text) if text else None
        except ValueError:
            body = None
        path = self.url.decode("latin-1").partition("?")[0]
        method = self.parser.get_method().decode()
        self.keep_alive = self.parser.should_keep_alive()
        self.waiting.append(Entry(0, time.time(), method, path, self.headers, body, text))
        if self.task is None:
            self.task = asyncio.get_running_loop().create_task(self.serve())
            self.task.add_done_callback(self.on_served)

    # ── answers

    async def serve(self) -> None:
        while self.waiting and not self.gone.is_set():
            await self.answer(self.waiting.pop(0))
        if not self.keep_alive:
            self.transport.close()
        self.task = None

    def on_served(self, task: asyncio.Task[None]) -> None:
        """A script that can't be played closes the connection and says why on stderr."""
        problem = None if task.cancelled() else task.exception()
        if problem is not None:
            traceback.print_exception(problem)
            self.transport.close()

    async def answer(self, entry: Entry) -> None:
        if self.route_control(entry):
            return
        if entry.path == "/health" and self.engine.health == "hang":
            with contextlib.suppress(ClientLeftError):
                await self.wait_left()
        refusal = self.refusal(entry)
        if refusal is not None:
            self.reply(refusal[1], refusal[0])
            return
        engine = self.engine
        entry.n = len(engine.log)
        engine.log.append(entry)
        self.entry = entry
        engine.running += 1
        engine.peak = max(engine.peak, engine.running)
        try:
            await self.play(entry)
            entry.ended = "client_left" if entry.closed_early else "complete"
        except ScriptedEndError as end:
            entry.ended = "scripted"
            self.drop(end.how)
        except (asyncio.CancelledError, ClientLeftError):
            entry.ended = "client_left"
        finally:
            engine.running -= 1
            entry.ended_at = time.time()
            self.entry = None

    async def play(self, entry: Entry) -> None:
        ask = Ask(entry, self.engine.default)
        if ask.script.get("once"):
            text = json.dumps(ask.script)
            if text in self.engine.played:
                ask.script = {"do": [{"say": DEFAULT_TEXT}]}
            self.engine.played.add(text)
        answer = Answer(ask, Wire(self, ask.script), self.engine.options.model)
        if ask.prompt_tokens > self.engine.options.ctx:
            await answer.refuse_context(ask.prompt_tokens, self.engine.options.ctx)
        else:
            await answer.play()

    def route_control(self, entry: Entry) -> bool:
        """The routes that a test uses to look and to steer. True when one answered."""
        engine = self.engine
        key = (entry.method, entry.path)
        if key == ("GET", "/log"):
            self.reply([dataclasses.asdict(known) for known in engine.log])
        elif key == ("DELETE", "/log"):
            engine.log.clear()
            self.reply({"ok": True})
        elif key == ("GET", "/state"):
            self.reply(engine.state())
        elif key == ("POST", "/control"):
            engine.health = entry.body.get("health", engine.health)
            engine.default = {"do": [{"say": DEFAULT_TEXT}], **entry.body["default"]} if "default" in entry.body else {}
            self.reply({"ok": True})
        else:
            return False
        return True

    def refusal(self, entry: Entry) -> tuple[int, Any] | None:
        """Status and body of everything that isn't an answer to play."""
        engine = self.engine
        if engine.loading():
            return 503, error_body(503, "Loading model", "unavailable_error")
        if entry.path == "/health":
            status = int(engine.health)
            return status, {"status": "ok"} if status == 200 else error_body(status, "scripted", "unavailable_error")
        if engine.token and entry.headers.get("authorization") != f"Bearer {engine.token}":
            return 401, error_body(401, "Invalid API Key", "authentication_error")
        if (entry.method, entry.path) == ("GET", "/v1/models"):
            return 200, engine.model_list()
        if (entry.method, entry.path) == ("POST", "/v1/chat/completions/input_tokens"):
            return 200, {"input_tokens": Ask(entry, {}).prompt_tokens, "object": "response.input_tokens"}
        if entry.method != "POST" or entry.path not in ("/v1/chat/completions", "/v1/completions"):
            return 404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}
        return self.bad_body(entry)

    @staticmethod
    def bad_body(entry: Entry) -> tuple[int, Any] | None:
        if not isinstance(entry.body, dict):
            return 400, error_body(400, "the body is not a JSON object", "invalid_request_error")
        if entry.path == "/v1/chat/completions" and not isinstance(entry.body.get("messages"), list):
            return 400, error_body(400, "Expected 'messages' to be an array", "invalid_request_error")
        return None

    def reply(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value, separators=(",", ":")).encode()
        Wire(self, {}).head(status, "application/json; charset=utf-8", len(data))
        self.write(data)

    def drop(self, how: str) -> None:
        if how == "reset":
            endpoint: socket.socket = self.transport.get_extra_info("socket")
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.close()


async def serve(engine: Engine, options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: None) if options.ignore_sigterm else stopped.set)
    server = await loop.create_server(lambda: Connection(engine), options.host, options.port)
    print(f"ready http://{options.host}:{server.sockets[0].getsockname()[1]}", flush=True)
    timeout = options.exit_after_s or None
    try:
        async with asyncio.timeout(timeout):
            await stopped.wait()
    except TimeoutError:
        os._exit(options.exit_status)
    os._exit(0)


def read_token(options: argparse.Namespace) -> str | None:
    if options.token_stdin:
        return sys.stdin.readline().strip() or None
    if options.api_key_file:
        with open(options.api_key_file, encoding="utf-8") as file:
            return file.read().strip() or None
    return os.environ.get("STENTOR_ENGINE_TOKEN") or None


def main() -> None:
    parser = argparse.ArgumentParser(description="An engine that does what its requests tell it to.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0: any free port, printed on stdout")
    parser.add_argument("--model", default="scripted", help="the id in /v1/models")
    parser.add_argument("--ctx", type=int, default=8192, help="longer prompts are refused as llama-server does")
    parser.add_argument("--script", help="file with the JSON script for messages that hold none")
    parser.add_argument("--load-s", type=float, default=0.0, help="answer 503 Loading model for so long")
    parser.add_argument("--exit-after-s", type=float, default=0.0, help="exit by itself after so long")
    parser.add_argument("--exit-status", type=int, default=1)
    parser.add_argument("--fail", help="print this and exit with --exit-status at once")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--token-stdin", action="store_true", help="the first line of stdin is the bearer token")
    parser.add_argument("--api-key-file", help="a file that holds the bearer token")
    options = parser.parse_args()
    if options.fail:
        print(options.fail, file=sys.stderr, flush=True)
        sys.exit(options.exit_status)
    engine = Engine(options, read_token(options))
    if options.script:
        with open(options.script, encoding="utf-8") as file:
            engine.default = {"do": [{"say": DEFAULT_TEXT}], **json.load(file)}
    asyncio.run(serve(engine, options))


if __name__ == "__main__":
    main()
