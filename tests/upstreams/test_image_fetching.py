"""Images that clients name: fetched over TLS through the guarded door, given to the engine inside the request."""

import base64
import ssl
import struct
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import write_certificate
from tests.http.harness import CHAT, Gate, until
from tests.serving import Server, scripted_model

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 2, 2) + bytes(40)
BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 60_000, 60_000) + bytes(40)


class Pictures(BaseHTTPRequestHandler):
    """A web server with a few pictures and a few traps."""

    seen: list[str] = []  # noqa: RUF012  # of the test run
    over = threading.Event()
    ANSWERS: dict[str, tuple[int, str, bytes]] = {  # noqa: RUF012
        "/dot.png": (200, "image/png", PNG),
        "/liar.png": (200, "image/png", b"<html>not a picture</html>"),
        "/page": (200, "text/html", b"<html></html>"),
        "/svg": (200, "image/svg+xml", b"<svg onload='x'/>"),
        "/bomb": (200, "image/png", BOMB),
        "/gone": (404, "image/png", PNG),
    }

    def do_GET(self) -> None:
        self.seen.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path.startswith("/held/"):
            self.over.wait(60)
            return
        status, media, body = self.ANSWERS.get(self.path, (200, "image/png", PNG))
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(21 * 2**20 if self.path == "/huge" else len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    chain, private = write_certificate(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}", chain
    Pictures.over.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory, pictures: tuple[str, Path]) -> Iterator[Gate]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(pictures[1]))
        settings = {"ALLOW_IMAGE_URLS": "on", "EGRESS_ALLOW": "127.0.0.1", "DURABILITY": "process"}
        text = scripted_model("eyes", type="vision")
        with Server(tmp_path_factory.mktemp("eyes"), text, "--admin-key", **settings) as server:
            gate = Gate(server)
            yield gate
            gate.check_books()


def look(gate: Gate, *urls: str, **fields: Any) -> Any:
    parts = [{"type": "text", "text": "look"}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
    return gate.ask("POST", CHAT, {"model": "eyes", "messages": [{"role": "user", "content": parts}], **fields})


def test_an_image_is_fetched_and_handed_over_inside_the_request(eyes: Gate, pictures: tuple[str, Path]) -> None:
    url = f"{pictures[0]}/dot.png"
    answer = look(eyes, url, url, f"{pictures[0]}/to/{url}")
    assert answer.status == 200, answer.body
    body = eyes.engine("eyes").log()[-1]["body"]
    sent = [part["image_url"]["url"] for part in body["messages"][0]["content"][1:]]
    assert sent == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"] * 3
    assert eyes.event(answer.request_id)["status"] == "completed"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/liar.png", "isn't a PNG"),
        ("/page", "isn't an image"),
        ("/svg", "isn't a PNG"),
        ("/gone", "status 404"),
        ("/huge", "more than"),
        ("/bomb", "pixels"),
        ("/to/https://169.254.169.254/latest/meta-data/", "isn't public"),
        ("/to/http://127.0.0.1:4801/", "must begin with https"),
        ("/to/file:///etc/passwd", "must begin with https"),
        ("/to/https://user:pw@127.0.0.1/", "user name"),
    ],
)
def test_what_is_no_image_or_leads_astray_is_refused_and_costs_nothing(
    eyes: Gate, pictures: tuple[str, Path], path: str, words: str
) -> None:
    before = len(eyes.engine("eyes").log())
    answer = look(eyes, pictures[0] + path)
    assert (answer.status, answer.json()["error"]["param"]) == (400, "messages")
    assert words in answer.json()["error"]["message"]
    event = eyes.event(answer.request_id)
    assert (event["status"], event["cost_nano"]) == ("failed", 0)
    assert len(eyes.engine("eyes").log()) == before


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x.png", "https://10.0.0.1/x.png", "https://2130706433/", "https://localhost/", "ftp://x/"]
)
def test_addresses_that_lead_inside_are_refused_before_anything_else(eyes: Gate, url: str) -> None:
    answer = look(eyes, url)
    assert answer.status == 400
    assert eyes.find_events(answer.request_id) == []


def test_a_client_that_leaves_before_its_image_is_there_is_charged_nothing(
    eyes: Gate, pictures: tuple[str, Path]
) -> None:
    path, key = f"/held/{uuid.uuid4()}", eyes.make_key()
    parts = [{"type": "image_url", "image_url": {"url": pictures[0] + path}}]
    connection = eyes.send({"model": "eyes", "messages": [{"role": "user", "content": parts}]}, key=key["key"])
    until(lambda: path in Pictures.seen)
    connection.close()
    (event,) = until(lambda: eyes.events_of_key(key["id"]))
    assert event["status"] == "cancelled"
    assert (event["reason"], event["cost_nano"], event["input_tokens"]) == ("client_left", 0, 0)


def test_too_many_images_are_refused(eyes: Gate, pictures: tuple[str, Path]) -> None:
    answer = look(eyes, *(f"{pictures[0]}/{number}" for number in range(9)))
    assert "at most 8" in answer.json()["error"]["message"]
