"""A server that transcribes by OpenAI's protocol, and by that of the hub's inference service."""

import threading
import time
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from stentor.http.multipart import MultipartReader, PartEnd, PartHead
from tests.answering import Answering


@dataclass
class Question:
    """What was asked: ``fields`` of the form, and its file."""

    path: str
    authorization: str
    media_type: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    filename: str = ""
    sound: bytes = b""


def read_form(media_type: str, body: bytes, question: Question) -> None:
    """Take a form apart."""
    reader = MultipartReader(media_type.encode())
    head, value = PartHead("", False), b""
    for event in reader.feed(body):
        if isinstance(event, PartHead):
            head, value = event, b""
        elif isinstance(event, PartEnd):
            if head.is_file:
                question.sound = value
            else:
                question.fields.append((head.name, value.decode()))
        else:
            value += event
    reader.finish()
    question.filename = body.split(b'filename="', 1)[1].split(b'"', 1)[0].decode()


class _Handler(Answering):
    server: "_Server"

    def do_POST(self) -> None:
        media_type = self.headers.get("content-type", "")
        question = Question(self.path, self.headers.get("authorization", ""), media_type)
        size = int(self.headers["content-length"])
        if self.server.refuse_early:
            self.answer_json(401, {"error": {"message": "who are you?"}})
            self.close_connection = True
            return
        if self.server.only_count:
            self._count(size)
        elif media_type.startswith("multipart/form-data"):
            read_form(media_type, self.rfile.read(size), question)
        else:
            question.sound = self.rfile.read(size)
        self.server.seen.append(question)
        self.server.arrived.set()
        self.server.may_answer.wait(60)
        self.answer_json(*self.server.next_answer)

    def _count(self, size: int) -> None:
        """Read slowly enough that a sender which doesn't wait piles it up."""
        while size:
            size -= len(self.rfile.read(min(size, 1 << 20)))
            time.sleep(0.005)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    seen: list[Question]
    next_answer: tuple[int, Any]
    refuse_early: bool
    only_count: bool
    arrived: threading.Event
    may_answer: threading.Event

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left."""


class HearingUpstream:
    """Runs on a port of its own. Use it as a context manager."""

    def __enter__(self) -> Self:
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.seen = []
        self.server.arrived, self.server.may_answer = threading.Event(), threading.Event()
        self.behave((200, {"text": "hello"}))
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.server.may_answer.set()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def behave(
        self, answer: tuple[int, Any], *, waits: bool = False, refuse_early: bool = False, only_count: bool = False
    ) -> None:
        """What comes next: status and JSON; after a while, before the question was read, or by its size alone."""
        self.server.next_answer = answer
        self.server.refuse_early, self.server.only_count = refuse_early, only_count
        self.server.arrived.clear()
        (self.server.may_answer.clear if waits else self.server.may_answer.set)()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def last(self) -> Question:
        """The last question that was read."""
        return self.server.seen[-1]
