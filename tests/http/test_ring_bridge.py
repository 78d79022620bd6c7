"""Bridge mode: any text is a tenant of its own, and gets no more than that."""

import uuid
from collections.abc import Iterator

import pytest

from tests.http.conftest import _start
from tests.http.harness import Gate, RawConnection
from tests.serving import scripted_model


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    yield from _start(tmp_path_factory.mktemp("bridge"), scripted_model(), RING_KEY_MODE="bridge")


def test_each_text_is_a_tenant(bridge: Gate):
    made = bridge.ask("POST", "/conversations", {"title": "mine"}, key="my-own-name").json()
    assert made["api_key_id"] != "my-own-name"
    place = f"/conversations/{made['id']}"
    assert bridge.ask("GET", place, key="my-own-name").status == 200
    assert bridge.ask("GET", place, key="somebody-else").status == 404
    assert bridge.ask("GET", "/conversations", key="", X_API_Key="my-own-name").json()[0]["id"] == made["id"]


def ask_in_bytes(gate: Gate, key: bytes) -> int:
    with RawConnection(gate.port) as connection:
        head = b"GET /conversations HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + key
        connection.send(head + b"\r\nConnection: close\r\n\r\n")
        return connection.answer().status


def test_a_text_in_any_script_is_a_tenant(bridge: Gate):
    for text in ("schlüssel", "ключ", "鍵" * 255):
        assert ask_in_bytes(bridge, text.encode()) == 200, text
    assert ask_in_bytes(bridge, "schlüssel".encode("latin-1")) == 200
    for text in ("鍵" * 256, "a\u2003b", "sk-ключ", "x" * 256):
        assert ask_in_bytes(bridge, text.encode()) == 401, text


@pytest.mark.parametrize("key", ["", "sk-" + "x" * 48])
def test_no_text_and_unknown_keys_are_refused(bridge: Gate, key: str):
    assert bridge.ask("GET", "/conversations", key=key).status == 401


def test_a_real_key_still_needs_its_scope(bridge: Gate):
    assert bridge.ask("GET", "/conversations", key=bridge.make_key(scopes=["inference"])["key"]).status == 403
    assert bridge.ask("GET", "/conversations", key=bridge.make_key(scopes=["ring"])["key"]).status == 200


def test_a_tenant_reaches_nothing_else(bridge: Gate):
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/admin/api/users")):
        assert bridge.ask(method, path, {} if method == "POST" else None, key="my-own-name").status == 401


def test_nobody_signs_for_a_tenant(bridge: Gate):
    flat = {"alias": "a", "provider": "p", "model": "m", "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2,
            "input_cost": 1, "output_cost": 1, "total_cost": 2}  # fmt: skip
    assert bridge.ask("POST", "/api/v1/receipts/issue", flat, key="anyone").status == 403
    assert bridge.ask("POST", "/api/v1/receipts/generate", {"since_last_receipt": True}, key="anyone").status == 403


def test_a_tenant_has_so_much_room(bridge: Gate):
    hoarder = f"hoarder-{uuid.uuid4().hex}"
    for number in range(100):
        body = {"name": f"t{number}", "created_by": "me"}
        assert bridge.server.ask("POST", "/templates", body, key=hoarder).status == 200
    refused = bridge.ask("POST", "/templates", {"name": "one more", "created_by": "me"}, key=hoarder)
    assert (refused.status, refused.json()["code"]) == (429, "quota_exceeded")


def test_a_tenant_has_so_many_requests(bridge: Gate):
    hasty = f"hasty-{uuid.uuid4().hex}"
    statuses = {bridge.server.ask("GET", "/templates", key=hasty).status for _ in range(1300)}
    assert statuses == {200, 429}
    assert bridge.ask("GET", "/templates", key="patient").status == 200
