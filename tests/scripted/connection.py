"""Connections, and what they share."""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import socket
import struct
import time
import traceback
from typing import Any

import httptools

from tests.scripted.answer import Answer
from tests.scripted.ask import Ask, Entry
from tests.scripted.script import DEFAULT_TEXT, Json
from tests.scripted.shapes import error_body
from tests.scripted.unread import unread_bytes
from tests.scripted.wire import ClientLeftError, ScriptedEndError, Wire


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
        until = self.options.load_until
        return time.monotonic() < self.ready_at or bool(until and not os.path.exists(until))

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

    async def wait_heard(self) -> None:
        reader, writer = (self.transport.get_extra_info(name) for name in ("peername", "sockname"))
        while self.transport.get_write_buffer_size() or unread_bytes(reader, writer):
            await asyncio.sleep(0.005)
        if self.entry is not None:
            self.entry.heard += 1

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
