"""Streams that a test holds open by hand, on a connection each."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import psutil

from tests.faults.subject import PATIENT_S, Subject, wait_for
from tests.scripted_engine import script

T = TypeVar("T")
CONNECTIONS = 24  # of which the kernel gives some to each of two workers: that all go to one is as good as impossible


class OpenStream:
    """A streamed chat on a connection of its own; its head has come when this is made."""

    def __init__(self, subject: Subject, *do: dict[str, Any], key: str = "", **options: Any) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", subject.port, timeout=60)
        body = {
            "model": subject.ready["model"],
            "messages": [{"role": "user", "content": script(*do, **options)}],
            "stream": True,
        }
        headers = {"Authorization": f"Bearer {key or subject.key}"}
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        # http.client lets go of the socket once the answer is read.
        self.local_port = int(self.connection.sock.getsockname()[1])
        self.response = self.connection.getresponse()
        self.request_id = self.response.headers["x-request-id"]
        self.body = b""
        self.problem = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := self.response.read1():
                self.body += data
        except (OSError, http.client.HTTPException) as error:
            self.problem = repr(error)
        finally:
            self.connection.close()

    def wait(self, timeout_s: float = PATIENT_S) -> "OpenStream":
        """Until the stream is over, well or badly."""
        self._reader.join(timeout_s)
        assert not self._reader.is_alive(), "the stream goes on"
        return self

    @property
    def frames(self) -> list[Any]:
        """Those that came whole: who is killed may be cut off within one."""
        lines = self.body.split(b"\n\n")[:-1]
        return [json.loads(line[6:]) for line in lines if line.startswith(b"data: ") and line != b"data: [DONE]"]

    @property
    def text(self) -> str:
        """All content that came."""
        choices = [choice for frame in self.frames for choice in frame.get("choices", ())]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def is_whole(self) -> bool:
        """Whether it came to its end: nothing may follow ``[DONE]``."""
        return not self.problem and self.body.endswith(b"data: [DONE]\n\n")

    @property
    def error(self) -> str:
        """The code of the error frame that ended it, or nothing."""
        last = self.frames[-1] if self.frames else {}
        return str(last["error"]["code"]) if "error" in last else ""

    def worker(self, subject: Subject) -> psutil.Process:
        """The worker that holds the other end of the connection."""
        for worker in subject.workers():
            for line in worker.net_connections(kind="tcp4"):
                if line.status == psutil.CONN_ESTABLISHED and line.raddr and line.raddr.port == self.local_port:
                    return worker
        raise AssertionError("no worker has this connection")


class Background(Generic[T]):
    """Something that a test lets happen beside itself."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(work)
        self._pool.shutdown(wait=False)

    def result(self, timeout_s: float = PATIENT_S) -> T:
        """What came of it."""
        return self._future.result(timeout_s)

    def failure(self, timeout_s: float = PATIENT_S) -> BaseException | None:
        """What it raised, or None."""
        return self._future.exception(timeout_s)


@contextlib.contextmanager
def deaf_client(subject: Subject) -> Iterator[None]:
    """A client that asked for more than fits into the buffers, and reads nothing of it."""
    content = script(*[{"huge": 500_000}] * 60)
    body = {"model": subject.ready["model"], "messages": [{"role": "user", "content": content}], "stream": True}
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {subject.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", subject.port))
        deaf.sendall(head.encode() + data)
        assert wait_for(lambda: subject.metric("stentor_running_requests") == 1)
        time.sleep(1.0)
        yield


def refuses_connections(port: int) -> bool:
    """Whether a new connection is turned away."""
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) != 0
