"""A server that speaks Hugging Face Inference's protocol, and an OpenAI-shaped one that breaks off."""

import json
import threading
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from stentor.engines.speaking.encoding import make_encoder
from stentor.engines.tone import speak_tones
from tests.answering import Answering

TOKEN = "canary-hub-token-77aa01"


def flac_of(text: str) -> bytes:
    """Tones as FLAC."""
    encoder = make_encoder("flac", 16_000)
    return b"".join(encoder.feed(samples) for samples in speak_tones(text)) + encoder.finish()


class _Handler(Answering):
    server: "_Server"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append((self.path, self.headers.get("authorization", ""), body))
        if self.path == "/models/org/voice":
            self.answer(200, flac_of(body["inputs"]), {"Content-Type": "audio/flac"})
        elif self.path == "/models/org/cold":
            self.answer(503, b'{"error":"Model org/cold is currently loading","estimated_time":20}')
        elif body.get("voice") == "breaks":
            self.server.may_break.clear()
            self.send_response(200)
            self.send_header("content-type", "audio/mpeg")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"80000\r\n" + bytes(0x80000) + b"\r\n")
            self.wfile.flush()
            self.server.may_break.wait(60)
            self.close_connection = True
        elif body.get("voice") == "words":
            self.answer(200, b"{}")
        else:
            self.answer(400, b'{"error":{"message":"no such voice","type":"invalid_request_error"}}')


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    seen: list[tuple[str, str, Any]]
    may_break: threading.Event


class VoiceUpstream:
    """Runs on a port of its own. Use it as a context manager."""

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.seen = []
        self._server.may_break = threading.Event()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def break_off(self) -> None:
        """The speech of the voice ``breaks`` goes on no more."""
        self._server.may_break.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def seen(self) -> list[tuple[str, str, Any]]:
        """Path, authorization and body of each request so far."""
        return self._server.seen
