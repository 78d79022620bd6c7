"""A receiver of webhooks on this machine: keeps what it gets, and answers as a test tells it."""

import http.server
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, Self


class Received(NamedTuple):
    """One request: path, headers by lower-case name, body."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Use it as a context manager. ``answers`` are statuses for the next requests, 204 afterwards; a status of 0 is
    never given: the request is left waiting until the end.
    """

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answers: list[int] = []
        self.location = ""
        self.over = threading.Event()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append(Received(self.path, headers, body))
                status = receiver.answers.pop(0) if receiver.answers else 204
                if status == 0:
                    receiver.over.wait(60)
                    self.close_connection = True
                    return
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", receiver.location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing is said."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait(self, count: int, timeout_s: float = 30.0) -> list[Received]:
        """The first requests, once there are so many."""
        end = time.monotonic() + timeout_s
        while len(self.received) < count:
            assert time.monotonic() < end, f"{len(self.received)} of {count} requests came within {timeout_s} s"
            time.sleep(0.02)
        return self.received[:count]


def receiving() -> Iterator[Receiver]:
    """For a fixture."""
    with Receiver() as receiver:
        yield receiver
