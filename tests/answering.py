"""What the servers that tests stand up have in common."""

import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

JSON: Mapping[str, str] = {"Content-Type": "application/json"}


class Answering(BaseHTTPRequestHandler):
    """Connections stay open, and nothing is written to stderr."""

    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] = JSON) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, status: int, value: Any, headers: Mapping[str, str] = JSON) -> None:
        """A whole answer in JSON."""
        self.answer(status, json.dumps(value).encode(), headers)

    def log_message(self, *_: object) -> None:
        """Nothing is said."""
