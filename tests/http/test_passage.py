"""Engines as administrators see them: their own pages passed on, and their logs as they are written."""

import contextlib
import http.client
import json

import pytest

from tests.http.harness import CHAT, Gate, RawConnection, chat_body, raw_request, until
from tests.scripted_engine import script


def test_an_engine_is_asked_by_port_instance_and_model(each: Gate):
    slot = each.slot()
    for name in (str(slot["port"]), slot["id"].replace("#", "%23"), slot["model"]):
        answer = each.ask("GET", f"/upstream/{name}/health")
        assert answer.status == 200
        assert answer.headers["content-security-policy"] == "sandbox"


def test_a_request_is_passed_on_with_the_engines_token_and_not_with_the_callers_key(each: Gate):
    answer = each.ask("POST", f"/upstream/scripted{CHAT}", chat_body("passed-on-as-it-is", user="x"))
    assert answer.json()["choices"][0]["message"]["content"]
    entry = each.engine().wait_entry("passed-on-as-it-is")
    assert each.key not in json.dumps(entry)
    assert "passed-on-as-it-is" in entry["body_text"]


def test_what_could_name_the_caller_or_hold_the_engine_stays_behind(each: Gate):
    body = json.dumps(chat_body("without-my-headers")).encode()
    taken = {
        "Authorization": f"Bearer {each.key}", "Cookie": "a=1", "X-CSRF-Token": "c", "X-Forwarded-For": "198.51.100.7",
        "Forwarded": "for=198.51.100.7", "X-Real-IP": "198.51.100.7", "Referer": "http://localhost/admin/x?y",
        "Proxy-Authorization": "Basic eA==", "TE": "trailers", "X-Conversation-Id": "c-1",
    }  # fmt: skip
    with RawConnection(each.port) as connection:
        kept = {"Host": "localhost", "Content-Length": str(len(body)), "X-Mine": "kept"}
        connection.send(raw_request("POST", f"/upstream/scripted{CHAT}", {**kept, **taken}, body))
        assert connection.answer().status == 200
    seen = each.engine().wait_entry("without-my-headers")["headers"]
    assert seen["x-mine"] == "kept"
    assert {name.lower() for name in taken} & set(seen) <= {"authorization"}
    assert each.key not in json.dumps(seen)
    assert "localhost" not in seen["host"]


def test_a_stream_is_passed_on_as_it_comes_and_ends_with_the_client(each: Gate):
    stream = each.begin(chat_body(script({"say": "a"}, {"hang": True}), stream=True), path=f"/upstream/scripted{CHAT}")
    assert stream.frame()
    assert each.engine().running() == 1
    stream.leave()
    until(each.engine().running, lambda count: count == 0)


def test_an_engine_that_breaks_off_is_seen_to(gate: Gate):
    gate.chat(model="mortal-13")
    stream = gate.begin(chat_body(script({"say": "a"}, {"die": True}), stream=True), path=f"/upstream/mortal-13{CHAT}")
    assert stream.frame()
    stream.rest()
    assert stream.broken
    assert gate.chat(model="mortal-13").status == 200


def test_a_body_over_the_limit_is_refused(strict: Gate):
    with RawConnection(strict.port) as connection:
        head = {"Host": "localhost", "Authorization": f"Bearer {strict.key}", "Transfer-Encoding": "chunked"}
        connection.send(raw_request("POST", f"/upstream/scripted{CHAT}", head))
        for _ in range(20):
            connection.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert connection.answer().status == 413


@pytest.mark.parametrize("path", ["../health", "a/../../health", "a//b", "%2e%2e/health", "a%5Cb", "a%0d%0aX:%20y"])
def test_no_path_leads_out(each: Gate, path):
    with RawConnection(each.port) as connection:
        head = {"Host": "localhost", "Authorization": f"Bearer {each.key}"}
        connection.send(raw_request("GET", f"/upstream/scripted/{path}", head))
        assert connection.answer().status == 400


def test_an_unknown_engine_is_not_found(each: Gate):
    for name in ("nothing", "1", "127.0.0.1:22"):
        assert each.ask("GET", f"/upstream/{name}/health").status == 404


def _follow(gate: Gate, slot: str, **headers: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = gate.server.connect()
    connection.request(
        "GET", f"/admin/api/slots/{slot}/logs", headers={"Authorization": f"Bearer {gate.key}", **headers}
    )
    return connection, connection.getresponse()


def _event(response: http.client.HTTPResponse) -> tuple[int, str]:
    number = 0
    while True:
        line = response.readline().decode().rstrip("\n")
        if line.startswith("id: "):
            number = int(line[4:])
        elif line.startswith("data: "):
            return number, json.loads(line[6:])


def test_a_log_is_followed_as_it_is_written(each: Gate):
    model = "mortal-14"
    each.chat(model=model)
    slot = each.slot(model)
    page = each.admin("GET", f"/slots/{slot['port']}/log")
    assert page["data"]
    connection, response = _follow(each, str(slot["port"]), **{"Last-Event-ID": str(page["next"] - 1)})
    assert response.status == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert _event(response) == (page["next"], page["data"][-1])
    each.chat(script({"say": ["a"]}, at={"before_headers": "die"}), model=model)
    number, line = _event(response)
    assert number == page["next"] + 1
    assert line == each.admin("GET", f"/slots/{slot['port']}/log?after={page['next']}")["data"][0]
    response.close()
    connection.close()


def test_what_a_manager_watches_ends_with_the_key(each: Gate):
    made = each.make_key(scopes=["admin"])
    body = chat_body(script({"say": "a"}, {"hang": True}), stream=True)
    stream = each.begin(body, path=f"/upstream/scripted{CHAT}", key=made["key"])
    assert stream.frame()
    connection, response = _follow(each, str(each.slot()["port"]), Authorization=f"Bearer {made['key']}")
    assert response.status == 200
    each.admin("POST", f"/api-keys/{made['id']}/revoke")
    with contextlib.suppress(http.client.IncompleteRead):
        response.read()
    stream.rest()
    assert stream.broken
    until(each.engine().running, lambda count: count == 0)
    connection.close()


def test_no_log_of_what_is_not_there(each: Gate):
    connection, response = _follow(each, "4")
    assert response.status == 404
    assert json.loads(response.read())["detail"]
    connection.close()
