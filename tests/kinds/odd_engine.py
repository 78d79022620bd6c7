"""An engine for requests without output that misbehaves on demand: ``python odd_engine.py PORT``.

The first input or document is an order: ``die``, ``until /a/path`` (until that exists), ``hang``, ``rubbish``, ``nan``,
``few``, ``busy``.
Anything else is answered with vectors ``[n, 1, 0, 0]``, n the number of the input in its request, or scores n. Each
input counts two tokens. ``GET /log`` lists how many inputs each request had.
"""

import base64
import json
import os
import struct
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOG: list[int] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, LOG if self.path == "/log" else {"status": "ok"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        inputs = asked.get("input") or asked.get("documents") or [""]
        LOG.append(len(inputs))
        order = inputs[0] if isinstance(inputs[0], str) else ""
        if order == "die":
            os._exit(3)
        if order == "busy":
            self.answer(503, {"error": {"code": 503, "message": "busy", "type": "unavailable_error"}})
            return
        if order == "rubbish":
            self.answer(200, ["what?"])
            return
        time.sleep(30.0 if order == "hang" else 0.0)
        while order.startswith("until ") and not os.path.exists(order.removeprefix("until ")):
            time.sleep(0.01)
        count = 1 if order == "few" else len(inputs)
        usage = {"prompt_tokens": 2 * count, "total_tokens": 2 * count}
        if self.path == "/v1/rerank":
            results = [{"index": number, "relevance_score": float(number)} for number in range(count)]
            self.answer(200, {"results": results, "usage": usage})
            return
        first = float("nan") if order == "nan" else None
        vectors = [(first or float(number), 1.0, 0.0, 0.0) for number in range(count)]
        data = [
            {"index": number, "embedding": base64.b64encode(struct.pack("<4f", *vector)).decode()}
            for number, vector in enumerate(vectors)
        ]
        self.answer(200, {"object": "list", "data": data, "usage": usage})

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        return None


if __name__ == "__main__":
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
