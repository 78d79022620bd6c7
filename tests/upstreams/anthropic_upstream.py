"""An upstream that speaks Anthropic's messages, as its documentation shows them, and does what a test tells it."""

import base64
import json
import struct
import threading
import time
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.answering import JSON, Answering

Json = dict[str, Any]
VECTORS = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": base64.b64encode(struct.pack("<2f", 0.5, -1)).decode()}],
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}


def event(kind: str, **fields: Any) -> tuple[str, Json]:
    return kind, {"type": kind, **fields}


def answer(*blocks: Json, reason: str = "end_turn", prompt: int = 20, cached: int = 5, output: int = 7) -> list[Any]:
    """The events of a message with these blocks; texts and inputs come in pieces."""
    usage = {"input_tokens": prompt, "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": []}
    events = [event("message_start", message={**message, "usage": {**usage, "output_tokens": 1}}), event("ping")]
    for index, block in enumerate(blocks):
        kind = block["type"]
        empty = {"text": {"text": ""}, "thinking": {"thinking": ""}, "tool_use": {"input": {}}}[kind]
        head = {name: value for name, value in block.items() if name not in ("text", "thinking", "input")}
        events.append(event("content_block_start", index=index, content_block={**head, **empty}))
        events += [event("content_block_delta", index=index, delta=delta) for delta in _deltas(block)]
        events.append(event("content_block_stop", index=index))
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [*events, event("message_delta", delta=delta, usage={"output_tokens": output}), event("message_stop")]


def _deltas(block: Json) -> list[Json]:
    if block["type"] == "text":
        return [{"type": "text_delta", "text": word + " "} for word in block["text"].split()]
    if block["type"] == "thinking":
        return [
            {"type": "thinking_delta", "thinking": block["thinking"]},
            {"type": "signature_delta", "signature": "s"},
        ]
    text = json.dumps(block["input"])
    return [{"type": "input_json_delta", "partial_json": text[at : at + 4]} for at in range(0, len(text), 4)]


class AnthropicUpstream:
    """Plays ``events`` to every request, or answers ``status`` with ``body``; ``seen`` are the requests."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, str], Json]] = []
        self.reset()
        upstream = self

        class Handler(Answering):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                upstream.seen.append(
                    ({name.lower(): text for name, text in self.headers.items()}, {**body, "path": self.path})
                )
                upstream.play(self)

            def do_GET(self) -> None:
                self.answer_json(200, {})

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def reset(self) -> None:
        self.events: list[Any] = answer({"type": "text", "text": "Hello from afar."})
        self.status = 200
        self.body: Json = {}
        self.headers: dict[str, str] = {}
        self.pause_s = 0.0

    def count(self, body: Json) -> Json:
        """As ``/v1/messages/count_tokens`` answers: fields that it doesn't know are an error."""
        extra = body.keys() - {
            "model",
            "messages",
            "system",
            "tools",
            "tool_choice",
            "thinking",
            "output_config",
            "path",
        }
        if extra or not body["messages"]:
            raise AssertionError(f"{sorted(extra)}: Extra inputs are not permitted")
        return {"input_tokens": len(json.dumps(body["messages"]).split()) + 3}

    def play(self, handler: Answering) -> None:
        if handler.path.endswith("/count_tokens"):
            self.body = self.count(self.seen[-1][1]) if self.status == 200 else self.body
        vectors = handler.path.endswith("/embeddings")
        if self.status != 200 or vectors or handler.path.endswith("/count_tokens"):
            value = VECTORS if vectors and self.status == 200 else self.body
            handler.answer_json(self.status, value, {**self.headers, **JSON})
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.send_header("Connection", "close")
        handler.end_headers()
        for kind, value in self.events:
            time.sleep(self.pause_s)
            handler.wfile.write(f"event: {kind}\ndata: {json.dumps(value)}\n\n".encode())
            handler.wfile.flush()
        handler.close_connection = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
