"""A client that means harm: what it could take from others, and what the server lets it have."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.http.harness import CHAT, Gate, RawConnection, chat_body, raw_request
from tests.scripted_engine import script

FOREVER = {"scopes": ["inference", "admin"]}


# -- keys


def test_a_narrow_admin_key_can_not_rotate_itself_a_wide_one(each: Gate):
    """The text of the new key is told to whoever rotates."""
    narrow = each.make_key(scopes=["admin"], limits={"token_limit": 10})
    for wide in (FOREVER, {"scopes": ["admin"]}, {"scopes": ["admin"], "limits": {"token_limit": 11}}):
        victim = each.make_key(**wide)
        answer = each.ask("POST", f"/admin/api/api-keys/{victim['id']}/rotate", {}, key=narrow["key"])
        assert (answer.status, answer.json()["code"]) == (403, "insufficient_scope")
        assert each.ask("GET", "/admin/api/users", key=victim["key"]).status == 200
    answer = each.ask("POST", f"/admin/api/api-keys/{narrow['id']}/rotate", {}, key=narrow["key"])
    assert answer.status == 200


def test_a_key_in_its_grace_can_not_make_itself_a_successor_without_end(each: Gate):
    old = each.make_key(**FOREVER)
    each.admin("POST", f"/api-keys/{old['id']}/rotate", {"grace_s": 60})
    answer = each.ask("POST", f"/admin/api/api-keys/{old['id']}/rotate", {}, key=old["key"])
    assert answer.json()["code"] == "insufficient_scope"


def test_a_password_of_one_letter_is_refused_when_a_user_is_made(each: Gate):
    answer = each.operate("POST", "/admin/api/users", {"name": "weak", "password": "a"})
    assert (answer.status, answer.json()["code"]) == (400, "invalid_request")


NUMBERS = {
    "since": ("GET", "/usage?since_us=99999999999999999999", None),
    "cursor": ("GET", "/usage?after=99999999999999999999.1", None),
    "digits that are none": ("GET", "/usage?after=%C2%B2.1", None),
    "expiry": ("POST", "/api-keys", {"user": "admin", "expires_us": 2**70}),
    "negative expiry": ("POST", "/api-keys", {"user": "admin", "expires_us": -(2**70)}),
}


@pytest.mark.parametrize(("method", "path", "body"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_that_no_column_holds_are_refused(gate: Gate, method, path, body):
    answer = gate.ask(method, "/admin/api" + path, body, key=gate.key)
    assert (answer.status, answer.json()["code"]) == (400, "invalid_request")


# -- bodies


BOMBS = {
    "window": {"repeat_penalty": 1.1, "repeat_last_n": 2**31 - 1},
    "window as a float": {"dry_multiplier": 1, "dry_penalty_last_n": 2e9},
    "schema": {"json_schema": {"properties": {f"{number}": {} for number in range(5000)}}},
    "format": {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x"] * 20_000}}}},
    "breakers": {"dry_sequence_breakers": [f"{number}" for number in range(5000)]},
    "stops": {"stop": [f"{number}" for number in range(50_000)]},
    "biases": {"logit_bias": [[number, 1] for number in range(50_000)]},
    "alternatives": {"logprobs": True, "top_logprobs": 50_000},
}


@pytest.mark.parametrize("fields", BOMBS.values(), ids=BOMBS)
def test_what_would_take_an_engine_down_does_not_reach_it(gate: Gate, fields):
    answer = gate.chat(**fields)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (400, "invalid_request")
    assert error["param"] in fields
    assert len(answer.body) < 500
    assert gate.event(answer.request_id)["cost_nano"] == 0


def test_a_grammar_that_would_keep_an_engine_busy_for_ever_does_not_reach_it(gate: Gate):
    answer = gate.chat(grammar="root ::= (" + "|".join(["[a-z]*"] * 25) + ")*")
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "unsupported_parameter", "grammar")
    assert gate.event(answer.request_id)["cost_nano"] == 0


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Failed to parse tools: Missing tool type: 1", "Missing tool type"),
        ("Unknown reasoning format: zzz", "zzz"),
        ("Failed to load image or audio file", "Failed to load image"),
        ("Roles must alternate! at row 7, column 12:\n{{ raise_exception(", "template refuses this conversation"),
        ("in source:\n{{ a }}\nError: Jinja Exception: No system role", "refuses this conversation: No system role"),
    ],
)
def test_a_request_that_an_engine_can_not_read_is_not_its_fault(gate: Gate, message, words):
    """llama-server says 500: asked again and again, it would be under suspicion all the time."""
    answer = gate.chat(script(status=500, message=message, type="server_error"))
    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert words in answer.json()["error"]["message"]
    assert "{{" not in answer.json()["error"]["message"]
    assert gate.event(answer.request_id)["attempt"] == 1


def test_a_body_of_very_many_fields_is_refused(gate: Gate):
    answer = gate.chat(**{f"x{number}": 1 for number in range(300)})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("asked", [2**40, 2**63, 2**64, 10**30])
def test_more_tokens_than_a_machine_word_holds_are_only_many(each: Gate, asked):
    assert each.chat(max_tokens=asked).status == 200


# -- what others read


def test_names_of_others_do_not_steer_the_operators_terminal(gate: Gate):
    gate.make_key(name="\x1b]0;owned\x07\x9b2J")
    assert not set(gate.server.cli("keys", "list")) & {"\x1b", "\x07", "\x9b"}


# -- connections


def grow(gate: Gate, begin: bytes, more: bytes, most_bytes: int) -> bytes:
    """Send ``more`` again and again; what was answered when the server had enough. Fails if it never has."""
    with RawConnection(gate.port) as connection:
        connection.send(begin)
        try:
            for _ in range(most_bytes // len(more)):
                connection.send(more)
        except ConnectionError:
            return b"closed"
        try:
            return connection.socket.recv(4096) or b"closed"
        except ConnectionResetError:
            return b"closed"


HEADS = {
    "one header": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ", b"a" * 65536),
    "many headers": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"a: b\r\n" * 8192),
    "a long path": (b"GET /", b"a" * 65536),
    "trailers": (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
        b"a: b\r\n" * 8192,
    ),
}


@pytest.mark.parametrize(("begin", "more"), HEADS.values(), ids=HEADS)
def test_a_head_without_end_is_cut_off(gate: Gate, begin, more):
    assert grow(gate, begin, more, 8 * 1024 * 1024)
    assert gate.ask("GET", "/health", key="").status == 200


def test_a_large_head_and_a_large_body_are_no_attack(gate: Gate):
    data = json.dumps(chat_body("x" * 300_000)).encode()
    headers = {"Host": "localhost", "Authorization": f"Bearer {gate.key}", "Content-Length": str(len(data))}
    headers["X-Padding"] = "a" * 30_000
    with RawConnection(gate.port) as connection:
        for _ in range(3):
            connection.send(raw_request("POST", CHAT, headers, data))
            assert connection.answer().status in (200, 400)


# -- management


HOSTILE = {"nul": "\0", "half a pair": "\ud800", "a huge number": 2**70}
# Those who ask with a key have no session to lose, but others at this address sign in.
LEFT_OUT = ("/login", "/logout", "/password")


def fill(gate: Gate, schema: Any, value: Any) -> Any:
    """A body of this schema with ``value`` wherever a text or a number may be."""
    if "$ref" in schema:
        schema = gate.contract.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        schema = schema["anyOf"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: fill(gate, each, value) for name, each in schema.get("properties", {}).items()}
    if kind == "array":
        return [fill(gate, schema.get("items", {}), value)]
    if "enum" in schema:
        return schema["enum"][0]
    if kind == "boolean":
        return False
    return value if isinstance(value, str) == (kind == "string") else "x" if kind == "string" else 1


def managed(gate: Gate) -> Iterator[tuple[str, str, Any]]:
    """Method, path and what the document says of it, of all that the authority answers."""
    for path, operations in sorted(gate.contract.document["paths"].items()):
        if path.startswith(("/admin/api", "/user/api", "/api/v1", "/api/signup")) and not path.endswith(LEFT_OUT):
            for method, operation in sorted(operations.items()):
                yield method.upper(), path, operation


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_no_text_or_number_crashes_what_manages(triple: Gate, value: Any):
    """None is a defect of the server's, wherever it stands: in a body, a path, a query."""
    key = triple.make_key(scopes=["inference", "ring", "mcp", "admin"])["key"]
    sent = quote(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else str(value)
    told = []
    for method, path, operation in managed(triple):
        target = re.sub(r"\{\w+\}", sent, path)
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        body = None if content is None else fill(triple, content["schema"], value)
        names = [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"]
        for query in ["", *(f"?{name}={sent}" for name in names)]:
            answer = triple.server.ask(method, target + query, body, key=key)
            if answer.status == 500:
                told.append((method, target + query, answer.body))
    assert told == []
