"""A gateway under test: the real server, the scripted engines behind it, and a client that keeps it to its contract.

Every JSON answer that passes through here is validated against the server's own ``/openapi.json``.
"""

import contextlib
import http.client
import json
import os
import re
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jsonschema import Draft202012Validator

from tests.scripted.process import ScriptedEngine
from tests.scripted_engine import script
from tests.serving import Answer, Server

Json = dict[str, Any]
T = TypeVar("T")
OLLAMA = {f"/api/{name}" for name in ("chat", "generate", "embed", "embeddings", "tags", "show", "ps", "version")}
OLLAMA |= {f"/api/{name}" for name in ("pull", "push", "create", "copy", "delete")}  # refused, as its clients read it
WITHOUT_V1 = {"chat/completions", "completions", "embeddings", "models", "responses", "rerank"}
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
INPUT_NANO, OUTPUT_NANO = 100, 200  # the local default price of one token
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def until(look: Callable[[], T], wanted: Callable[[T], bool] = bool, timeout_s: float = 30.0) -> T:
    """What ``look`` finds, once it is as ``wanted``."""
    end = time.monotonic() + timeout_s
    while not wanted(found := look()):
        assert time.monotonic() < end, f"still {found!r} after {timeout_s} s"
        time.sleep(0.01)
    return found


def check_quick(once: Callable[[], float], promised_s: float, tries: int = 5) -> None:
    """``once``, which tells how long something took, keeps a promise.

    A machine that is busy with something else may be late: then once more. Never quick is a defect.
    """
    took_s: list[float] = []
    while len(took_s) < tries and (not took_s or min(took_s) >= promised_s):
        took_s.append(once())
    assert min(took_s) < promised_s, took_s


def use_until_its_end(gate: "Gate", use: Callable[[str], T]) -> tuple[str, T]:
    """A key that has expired by now, and what ``use`` made of it while it hadn't: one that lives longer, if need be."""
    for life_s in (0.5, 4.0, 30.0):
        ends_s = time.time() + life_s
        key = str(gate.make_key(expires_us=int(ends_s * 1_000_000))["key"])
        used = use(key)
        if time.time() < ends_s:
            break
    time.sleep(max(0.0, ends_s - time.time()) + 0.001)
    return key, used


def wait_heard(engine: ScriptedEngine, mark: str) -> None:
    """Return once the gateway has read all that the request with ``mark`` was told before its step ``heard``."""
    until(lambda: [entry["heard"] for entry in engine.log() if mark in entry["body_text"]], lambda found: found == [1])


def price(input_tokens: int, output_tokens: int) -> int:
    """What that many tokens cost, in nano-USD."""
    return INPUT_NANO * input_tokens + OUTPUT_NANO * output_tokens


def marked(*do: Json, **options: Any) -> tuple[str, str]:
    """A script, and a mark by which its requests are found in the engine's log."""
    mark = uuid.uuid4().hex
    return script(*do, mark=mark, **options), mark


def chat_body(text: str = "hello", **fields: Any) -> Json:
    """A chat request with one user message."""
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **fields}


def _sum_metric(text: str, name: str) -> float:
    lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def _pattern(path: str) -> re.Pattern[str]:
    pattern = re.sub(
        r"\\\{\w+\\\}", "[^/]+", re.escape(path).replace(r"\{rest\}", ".*").replace(r"\{model_name\}", ".+")
    )
    return re.compile("^" + pattern + "$")


class Contract:
    """The OpenAPI document, asked whether an answer is as it says."""

    def __init__(self, document: Json) -> None:
        self.document = document
        self._paths = [(_pattern(path), operations) for path, operations in document["paths"].items()]
        self._validators: dict[str, Draft202012Validator] = {}

    def validate(self, schema: Json, value: Any) -> None:
        """Raises ValidationError where ``value`` isn't what ``schema`` says."""
        key = json.dumps(schema)
        validator = self._validators.get(key)
        if validator is None:
            validator = Draft202012Validator({**schema, "components": self.document["components"]})
            self._validators[key] = validator
        validator.validate(value)

    def operation(self, method: str, path: str) -> Json | None:
        """What the document says of a call."""
        for pattern, operations in self._paths:
            if pattern.match(path):
                found: Json | None = operations.get("get" if method == "HEAD" else method.lower())
                return found
        return None

    def check_error(self, path: str, value: Any) -> None:
        """``value`` must be an error in the envelope of ``path``."""
        bare = path.strip("/") in WITHOUT_V1  # of clients whose base URL lacks /v1: they read nothing else
        name = "ErrorEnvelope" if path.lstrip("/").startswith("v1") or bare else "DetailEnvelope"
        if path.startswith("/v1/messages"):
            name = "AnthropicError"
        elif path in OLLAMA:
            name = "OllamaError"
        self.validate({"$ref": f"#/components/schemas/{name}"}, value)

    def check(self, method: str, target: str, answer: Answer) -> None:
        """Raises AssertionError or ValidationError where an answer isn't what was promised."""
        path = target.partition("?")[0]
        assert UUID7.fullmatch(answer.headers["x-request-id"]), answer.headers
        media = answer.headers.get("content-type", "").partition(";")[0]
        operation = self.operation(method, path) or self.operation(method, path.removesuffix("/"))
        if answer.status >= 400:
            if media == "application/json" and method != "HEAD" and path != "/health":
                self.check_error(path, answer.json())
        else:
            assert operation is not None, f"{method} {path} isn't in the document"
            content = operation["responses"]["200"]["content"]
            assert media in content or "*/*" in content or (path in ("/", "/health") and media.startswith("text/")), (
                media
            )
            if media in content and media == "application/json" and answer.body:
                self.validate(content[media].get("schema", {}), answer.json())
        if media == "text/event-stream":
            for event in answer.events():
                if event != "[DONE]" and "error" in event:
                    self.check_error(path, event)


class Stream:
    """An answer that is read as it comes."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._socket = connection.sock
        self._response = response
        self.status = response.status
        self.headers = {name.lower(): text for name, text in response.getheaders()}
        self.body = b""
        self.broken = False

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]

    def frame(self) -> bytes:
        """The next frame with its blank line; what is left when the answer ends."""
        frame = b""
        while not frame.endswith(b"\n\n"):
            line = self._response.readline()
            if not line:
                break
            frame += line
        self.body += frame
        return frame

    def content(self) -> str:
        """The text of the next frame that has some."""
        while True:
            frame = self.frame()
            assert frame.startswith(b"data: {"), frame
            text = json.loads(frame[6:])["choices"][0]["delta"].get("content")
            if text:
                return str(text)

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        taken = self._response.read(size)
        self.body += taken
        return taken

    def rest(self) -> bytes:
        """Everything that is still to come; ``broken`` says that the connection ended before the answer did."""
        try:
            self.body += self._response.read()
        except (http.client.IncompleteRead, OSError) as error:
            self.body += getattr(error, "partial", b"")
            self.broken = True
        self._connection.close()
        return self.body

    def answer(self) -> Answer:
        """Read to its end."""
        return Answer(self.status, self.headers, self.rest())

    def leave(self, *, reset: bool = False) -> None:
        """Hang up, politely or not."""
        if reset and self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._response.close()
        self._connection.close()


class Engine(ScriptedEngine):
    """The scripted engine behind one model."""

    def entries(self, mark: str) -> list[Json]:
        """The requests that carried ``mark``, oldest first."""
        return [entry for entry in self.log() if mark in entry["body_text"]]

    def wait_entry(self, mark: str, *, ended: bool = True, timeout_s: float = 30.0) -> Json:
        """The one request with ``mark``, once it has come and, if ``ended``, is over."""
        found = until(
            lambda: self.entries(mark),
            lambda entries: bool(entries) and (not ended or entries[0]["ended"] != "open"),
            timeout_s,
        )
        assert len(found) == 1
        return found[0]

    def running(self) -> int:
        return int(self.ask("GET", "/state")["running"])

    @contextlib.contextmanager
    def answering(self, **default: Any) -> Iterator[None]:
        """Meanwhile messages that hold no script are answered by this one."""
        self.ask("POST", "/control", {"default": default})
        try:
            yield
        finally:
            self.ask("POST", "/control", {})

    def whole_answer(self, body: Json) -> Json:
        """What the engine itself answers to ``body`` when it isn't asked to stream."""
        path = CHAT if "messages" in body else COMPLETIONS
        answer: Json = self.ask("POST", path, {**body, "stream": False})
        return answer


class OperatorConnection(http.client.HTTPConnection):
    """HTTP over the server's own Unix socket, reached through its folder: the path itself may be too long."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=100)  # a start of a model may take its time
        self._path = path

    def connect(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)


class Gate:
    """The server, with an admin key, and what tests ask of it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.key = server.key
        self.port = server.port
        self.contract = Contract(server.ask("GET", "/openapi.json", key="").json())

    # -- asking

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        """One request, its answer validated; see :meth:`Server.ask`."""
        answer = self.server.ask(method, path, body, **more)
        self.contract.check(method, path, answer)
        return answer

    def chat(self, text: str = "hello", *, key: str | None = None, **fields: Any) -> Answer:
        """One chat request, read to its end; ``fields`` are the body's."""
        return self.ask("POST", CHAT, chat_body(text, **fields), key=key)

    def open(self, text: str = "hello", *, key: str | None = None, **fields: Any) -> Stream:
        """One streamed chat request, to be read as it comes."""
        return self.begin(chat_body(text, **{"stream": True, **fields}), key=key)

    def begin(self, body: Json, *, path: str = CHAT, key: str | None = None) -> Stream:
        """Send a request and wait for its headers."""
        connection = self.send(body, path=path, key=key)
        return Stream(connection, connection.getresponse())

    def send(self, body: Json, *, path: str = CHAT, key: str | None = None) -> http.client.HTTPConnection:
        """Send a request and wait for nothing."""
        connection = self.server.connect()
        connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {key or self.key}"})
        return connection

    # -- looking

    def operate(self, method: str, path: str, body: Any = None) -> Answer:
        """One request on the operator's socket."""
        connection = OperatorConnection(self.server.data_dir / "run" / "admin.sock")
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            answer = Answer(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())
        finally:
            connection.close()
        self.contract.check(method, path, answer)
        return answer

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        """One management call of the operator's that must work."""
        answer = self.operate(method, "/admin/api" + path, body)
        assert answer.status == 200, answer.body
        return answer.json()

    def find_events(self, request_id: str) -> list[Json]:
        """The events of a request, by attempt."""
        rows: list[Json] = self.admin("GET", f"/usage?request_id={request_id}")["data"]
        return sorted(rows, key=lambda row: int(row["attempt"]))

    def events(self, request_id: str, attempts: int = 1) -> list[Json]:
        """As :meth:`find_events`, once there are ``attempts`` of them."""
        found = until(lambda: self.find_events(request_id), lambda rows: len(rows) >= attempts)
        assert len(found) == attempts, found
        return found

    def event(self, request_id: str) -> Json:
        """The one event of a request."""
        return self.events(request_id)[0]

    def events_of_key(self, key_id: str) -> list[Json]:
        """All events of a key, newest first."""
        rows: list[Json] = self.admin("GET", f"/usage?key={key_id}")["data"]
        return rows

    def slot(self, model: str = "scripted") -> Json:
        """The engine process of a model."""
        return next(slot for slot in self.admin("GET", "/slots")["data"] if slot["model"] == model)

    def engine(self, model: str = "scripted") -> Engine:
        """The engine behind a model that runs."""
        return Engine(self.slot(model)["port"])

    def running(self) -> int:
        """Places that are taken, over all engines."""
        return sum(slot["running"] for slot in self.admin("GET", "/slots")["data"])

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        return _sum_metric(self.ask("GET", "/metrics", key="").body.decode(), name)

    def busy(self) -> float:
        """Places that are taken and requests that are open, in one cheap look: it comes after every test."""
        text = self.server.ask("GET", "/metrics", key="").body.decode()
        assert "\nstentor_open_requests " in text
        return _sum_metric(text, "stentor_running_requests") + _sum_metric(text, "stentor_open_requests")

    # -- making

    def make_key(self, user: str = "admin", **fields: Any) -> Json:
        """A key; its text is under ``key``."""
        made: Json = self.admin("POST", "/api-keys", {"user": user, "name": "test", **fields})
        return made

    def make_user(self, *, tier: str = "admin", balance_nano: int = 0) -> Json:
        """A user of its own, with a balance."""
        user: Json = self.admin("POST", "/users", {"name": "u" + uuid.uuid4().hex[:12], "tier": tier})
        if balance_nano:
            user = self.admin("POST", f"/users/{user['id']}/topup", {"amount_nano": balance_nano})
        return user

    def balance(self, user_id: str) -> int:
        """What a user has left."""
        rows = self.admin("GET", "/users?limit=1000")["data"]
        return next(int(row["balance_nano"]) for row in rows if row["id"] == user_id)

    def check_books(self) -> None:
        """The books must agree with themselves."""
        wrong = [found for found in self.admin("GET", "/doctor")["data"] if not found["ok"]]
        assert wrong == [], wrong


G = TypeVar("G", bound=Gate)


def serve(server: Server, kind: type[G]) -> Iterator[G]:
    """A server that runs meanwhile; its books must agree in the end, and it must stop well."""
    with server:
        gate = kind(server)
        yield gate
        gate.check_books()
        stopped_well = server.stop()
    assert stopped_well == 0
    assert b"request_crashed" not in server.log, server.log.decode(errors="replace")


def at_rest(gate: G, timeout_s: float = 30.0) -> Iterator[G]:
    """The server for one test, after which nothing may run on it."""
    yield gate
    gate.server.hang_up()
    until(gate.busy, lambda count: count == 0, timeout_s)


def raw_request(method: str, path: str, headers: dict[str, str], body: bytes = b"", version: str = "1.1") -> bytes:
    """The bytes of a request, with nothing added."""
    lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class RawConnection:
    """A TCP connection of which the test knows every byte."""

    def __init__(self, port: int, *, receive_bytes: int | None = None, timeout_s: float = 60.0) -> None:
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(timeout_s)
        self.socket.connect(("127.0.0.1", port))
        self.buffer = b""

    def __enter__(self) -> "RawConnection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _more(self) -> bool:
        data = self.socket.recv(65536)
        self.buffer += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            assert self._more(), "the connection ended within an answer"
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def _take_line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            assert self._more(), f"the connection ended within a line: {self.buffer!r}"
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer."""
        status = int(self._take_line().split()[1])
        headers = {}
        while line := self._take_line():
            name, _, text = line.decode("latin-1").partition(":")
            headers[name.lower()] = text.strip()
        return status, headers

    def answer(self) -> Answer:
        """The next answer, whole."""
        status, headers = self.head()
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join(self.chunks())
        else:
            body = self._take(int(headers.get("content-length", "0")))
        return Answer(status, headers, body)

    def chunks(self) -> Iterator[bytes]:
        """The chunks of a chunked body."""
        while True:
            size = int(self._take_line(), 16)
            chunk = self._take(size)
            self._take_line()
            if not size:
                return
            yield chunk

    def at_end(self) -> bool:
        """Whether the other side hangs up now, with nothing left to read."""
        try:
            return not self.buffer and not self._more()
        except ConnectionResetError:
            return True
