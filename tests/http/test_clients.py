"""What clients do: leave, stall, send slowly, reuse connections, speak old HTTP, come and go in crowds."""

import contextlib
import http.client
import json
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from stentor.accounting.tokens import count_tokens
from tests.http.harness import (
    CHAT,
    Gate,
    RawConnection,
    Stream,
    chat_body,
    check_quick,
    marked,
    price,
    raw_request,
    until,
    wait_heard,
)
from tests.scripted_engine import DEFAULT_TEXT, script

CANCEL_S = 0.5
SPOKEN = "one two three"


def request_to(
    gate: Gate, body, *, version: str = "1.1", method: str = "POST", path: str = CHAT, **headers: str
) -> bytes:
    data = json.dumps(body).encode() if body is not None else b""
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    known = {"Host": f"127.0.0.1:{gate.port}", "Authorization": f"Bearer {gate.key}", "Content-Length": str(len(data))}
    return raw_request(method, path, {**known, **names}, data, version)


# -- leaving


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_leaving_in_the_queue_books_nothing(each: Gate, stream):
    key = each.make_key()
    holder = each.open(script({"say": "mine"}, {"hang": True}), model="narrow")
    assert holder.content() == "mine"
    text, mark = marked({"say": SPOKEN})
    waiting = each.send(chat_body(text, model="narrow", stream=stream), key=key["key"])
    until(lambda: each.metric("stentor_queue_depth"), lambda depth: depth == 1)
    waiting.close()
    until(lambda: each.metric("stentor_queue_depth"), lambda depth: depth == 0)
    holder.leave()
    assert each.chat("next", model="narrow").status == 200
    assert each.events_of_key(key["id"]) == []
    assert each.engine("narrow").entries(mark) == []


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "reset"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_leaving_before_the_first_byte_costs_the_prompt(each: Gate, stream, reset):
    check_quick(lambda: leave_before_the_first_byte(each, stream, reset), CANCEL_S)


def leave_before_the_first_byte(each: Gate, stream: bool, reset: bool) -> float:
    """Leave; how long the engine doesn't hear of it."""
    key = each.make_key()
    text, mark = marked({"sleep": 30}, {"say": SPOKEN}, at={"after_headers": {"sleep": 30}})
    connection = each.send(chat_body(text, stream=stream), key=key["key"])
    each.engine().wait_entry(mark, ended=False)
    left_at = time.time()
    if reset:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()
    entry = each.engine().wait_entry(mark)
    assert entry["ended"] == "client_left"
    (event,) = until(lambda: each.events_of_key(key["id"]))
    assert (event["status"], event["reason"]) == ("cancelled", "client_left")
    assert (event["input_tokens"], event["output_tokens"]) == (count_tokens(text), 0)
    assert event["cost_nano"] == price(count_tokens(text), 0)
    return float(entry["closed_early_at"]) - left_at


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_leaving_in_the_middle_costs_the_prompt_and_what_was_made(each: Gate, stream):
    check_quick(lambda: leave_in_the_middle(each, stream), CANCEL_S)


def leave_in_the_middle(each: Gate, stream: bool) -> float:
    """Leave; how long the engine doesn't hear of it."""
    key = each.make_key()
    text, mark = marked({"say": SPOKEN}, {"heard": True}, {"hang": True})
    connection = each.send(chat_body(text, stream=stream), key=key["key"])
    wait_heard(each.engine(), mark)
    if stream:
        answer = Stream(connection, connection.getresponse())
        while SPOKEN.split()[-1] not in answer.content():
            pass
    left_at = time.time()
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    entry = each.engine().wait_entry(mark)
    (event,) = until(lambda: each.events_of_key(key["id"]))
    assert (event["status"], event["reason"], event["estimated"]) == ("cancelled", "client_left", True)
    assert (event["input_tokens"], event["output_tokens"]) == (count_tokens(text), count_tokens(SPOKEN))
    assert event["cost_nano"] == price(count_tokens(text), count_tokens(SPOKEN))
    return float(entry["closed_early_at"]) - left_at


def test_one_who_has_read_the_end_has_not_left(each: Gate):
    for _ in range(20):
        stream = each.open(script({"say": SPOKEN}))
        while b"[DONE]" not in stream.frame():
            pass
        stream.leave(reset=True)
        assert each.event(stream.request_id)["status"] == "completed"


def test_half_a_closed_connection_counts_as_left(each: Gate):
    text, mark = marked({"say": SPOKEN}, {"hang": True})
    with RawConnection(each.port) as connection:
        connection.send(request_to(each, chat_body(text, stream=True)))
        assert connection.head()[0] == 200
        connection.socket.shutdown(socket.SHUT_WR)
        assert each.engine().wait_entry(mark)["ended"] == "client_left"


# -- sending


def test_a_body_that_comes_in_pieces_is_read_whole(each: Gate):
    data = json.dumps(chat_body("hello")).encode()
    head = request_to(each, None, Content_Length=str(len(data)))
    with RawConnection(each.port) as connection:
        connection.send(head)
        for start in range(0, len(data), 7):
            connection.send(data[start : start + 7])
            time.sleep(0.002)
        assert connection.answer().json()["choices"][0]["message"]["content"] == DEFAULT_TEXT


def test_a_chunked_body_is_read_whole(each: Gate):
    data = json.dumps(chat_body("hello")).encode()
    headers = {"Host": "localhost", "Authorization": f"Bearer {each.key}", "Transfer-Encoding": "chunked"}
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(data[at : at + 9]), data[at : at + 9]) for at in range(0, len(data), 9))
    with RawConnection(each.port) as connection:
        connection.send(raw_request("POST", CHAT, headers, pieces + b"0\r\n\r\n"))
        assert connection.answer().status == 200


def test_one_who_announces_a_body_and_leaves_is_forgotten(each: Gate):
    before = each.metric("stentor_open_requests")
    for part in (b"", b'{"model": "scripted"'):
        with RawConnection(each.port) as connection:
            connection.send(request_to(each, None, Content_Length="1000") + part)
            time.sleep(0.05)
    assert each.metric("stentor_open_requests") == before


def test_expect_100_continue_is_answered(each: Gate):
    data = json.dumps(chat_body("hello")).encode()
    with RawConnection(each.port) as connection:
        connection.send(request_to(each, None, Content_Length=str(len(data)), Expect="100-continue"))
        assert connection.head()[0] == 100
        connection.send(data)
        assert connection.answer().status == 200


# -- connections


def test_requests_in_a_row_on_one_connection(each: Gate):
    connection = each.server.connect()
    try:
        for number in range(20):
            body = json.dumps(chat_body(f"hello {number}", stream=number % 2 == 0))
            connection.request("POST", CHAT, body, {"Authorization": f"Bearer {each.key}"})
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (200, True)
            sock = connection.sock
            assert sock is not None
    finally:
        connection.close()


def test_pipelined_requests_are_answered_in_order(each: Gate):
    texts = [script({"say": f"answer {number}"}, {"sleep": 0.05 * (3 - number)}) for number in range(3)]
    with RawConnection(each.port) as connection:
        connection.send(b"".join(request_to(each, chat_body(text)) for text in texts))
        said = [connection.answer().json()["choices"][0]["message"]["content"] for _ in texts]
    assert said == ["answer 0", "answer 1", "answer 2"]


@pytest.mark.parametrize("together", [True, False])
def test_leaving_with_requests_in_the_pipe_ends_the_running_one(each: Gate, together):
    running, mark = marked({"say": SPOKEN}, {"hang": True})
    waiting, other = marked({"say": SPOKEN})
    with RawConnection(each.port) as connection:
        connection.send(request_to(each, chat_body(running)))
        if not together:
            each.engine().wait_entry(mark, ended=False)
        connection.send(request_to(each, chat_body(waiting)))
        each.engine().wait_entry(mark, ended=False)
    assert each.engine().wait_entry(mark)["ended"] == "client_left"
    assert each.engine().entries(other) == []


def test_http_1_0_is_answered_and_closed(each: Gate):
    with RawConnection(each.port) as connection:
        connection.send(request_to(each, chat_body("hello"), version="1.0"))
        answer = connection.answer()
        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        assert int(answer.headers["content-length"]) == len(answer.body)
        assert connection.at_end()


def test_http_1_0_gets_a_stream_without_chunks(each: Gate, tmp_path: Path):
    with RawConnection(each.port) as connection:
        text = script({"say": "one "}, {"until": str(tmp_path / "go")}, {"say": "two"})
        connection.send(request_to(each, chat_body(text, stream=True), version="1.0"))
        status, headers = connection.head()
        assert (status, headers["connection"]) == (200, "close")
        assert not {"transfer-encoding", "content-length"} & set(headers)
        body = connection.buffer
        while b"one " not in body:
            body += connection.socket.recv(65536)
        assert b"two" not in body
        (tmp_path / "go").touch()
        while data := connection.socket.recv(65536):
            body += data
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")
    assert each.event(headers["x-request-id"])["status"] == "completed"


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/docs", "/openapi.json"])
def test_head_is_get_without_a_body(each: Gate, path):
    whole = each.ask("GET", path)
    head = each.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert int(head.headers["content-length"]) == len(whole.body)


def test_an_answer_to_head_leaves_the_connection_in_step(each: Gate):
    with RawConnection(each.port) as connection:
        for _ in range(3):
            connection.send(request_to(each, None, method="HEAD", path="/v1/models"))
            assert connection.head()[0] == 200
        connection.send(request_to(each, None, method="GET", path="/v1/models"))
        assert connection.answer().status == 200


def test_rubbish_instead_of_http_is_refused(each: Gate):
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with RawConnection(each.port) as connection:
            connection.send(data)
            assert connection.head()[0] == 400
    assert each.chat("hello").status == 200


# -- crowds


def server_processes(gate: Gate) -> list[psutil.Process]:
    """The server and its gateway workers, without engines."""
    found = []
    for process in (psutil.Process(gate.server.pid), *gate.server.children()):
        with contextlib.suppress(psutil.NoSuchProcess):  # an engine that ended meanwhile
            if "stentor" in " ".join(process.cmdline()):
                found.append(process)
    return found


def open_files(gate: Gate) -> int:
    count = 0
    for process in server_processes(gate):
        with contextlib.suppress(psutil.NoSuchProcess):
            count += process.num_fds()
    return count


def test_hundreds_who_come_and_go_leave_nothing_behind(each: Gate):
    """A thousand with all three servers together."""
    each.chat("hello")
    before = open_files(each)

    def come_and_go(number: int) -> None:
        body = chat_body(script({"tokens": 500, "delay_s": 0.001}), stream=number % 2 == 0)
        data = request_to(each, body)
        for turn in range(85):
            with socket.create_connection(("127.0.0.1", each.port), timeout=60) as client:
                kind = turn % 5
                if kind:
                    client.sendall(data[: len(data) * kind // 4])
                if turn % 25 == 4:
                    client.recv(10)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(each.running, lambda count: count == 0)
    until(lambda: each.engine().running(), lambda count: count == 0)
    until(lambda: open_files(each), lambda count: count <= before + 20)
    assert each.metric("stentor_queue_depth") == 0
    assert each.chat("hello").status == 200


def test_many_streams_at_once(each: Gate, tmp_path: Path):
    text = script({"tokens": 1}, {"until": str(tmp_path / "go")}, {"tokens": 39, "delay_s": 0.005})
    streams = [each.open(text) for _ in range(50)]
    assert each.running() == 50
    (tmp_path / "go").touch()
    for stream in streams:
        assert stream.rest().endswith(b"data: [DONE]\n\n")
    events = each.admin("GET", "/usage?limit=50")["data"]
    assert {event["request_id"] for event in events} == {stream.request_id for stream in streams}
    assert {event["output_tokens"] for event in events} == {40}


def test_a_slow_reader_holds_up_nobody_else(each: Gate):
    with RawConnection(each.port, receive_bytes=4096) as slow:
        slow.send(request_to(each, chat_body(script(*[{"huge": 200_000}] * 40, {"say": "end"}), stream=True)))
        assert slow.head()[0] == 200
        start = time.monotonic()
        assert [each.chat("hello").status for _ in range(10)] == [200] * 10
        assert time.monotonic() - start < 25.0  # before the slow one would be given up
        body = b"".join(slow.chunks())
    assert body.count(b"x" * 200_000) == 40
    assert body.endswith(b"data: [DONE]\n\n")


def test_clients_without_keep_alive(each: Gate):
    for _ in range(5):
        connection = http.client.HTTPConnection("127.0.0.1", each.port, timeout=60)
        connection.request(
            "POST", CHAT, json.dumps(chat_body()), {"Authorization": f"Bearer {each.key}", "Connection": "close"}
        )
        response = connection.getresponse()
        assert response.headers["connection"] == "close"
        assert response.read()
        connection.close()
