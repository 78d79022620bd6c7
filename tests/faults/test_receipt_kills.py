"""A server that is killed right after its answers: each of them is in the receipt log once, under the same origin."""

import json
from pathlib import Path

from tests.http.harness import Gate, until
from tests.independent_verifier import check_receipt
from tests.serving import Server, scripted_model


def test_answers_before_a_kill_are_numbered_once_after_it(tmp_path: Path) -> None:
    with Server(tmp_path, scripted_model(), "--admin-key", slots=2) as server:
        gate = Gate(server)
        key = gate.make_key(scopes=["ring", "inference"])["key"]
        first = server.ask("POST", "/v1/chat/completions", _body(), key=key).request_id
        until(lambda: "log" in gate.ask("GET", _path(first), key=key).json(), timeout_s=60)
        url, seen = f"http://127.0.0.1:{server.port}", str(tmp_path / "seen.json")
        server.cli("receipts", "audit", url, "--state", seen)
        answers = [server.ask("POST", "/v1/chat/completions", _body(), key=key) for _ in range(20)]
        server.kill()  # within the time in which settlements are gathered
        server.start()
        names = [first, *(answer.request_id for answer in answers)]
        receipts = [
            until(lambda name=name: server.ask("GET", _path(name), key=key).json(), lambda one: "log" in one, 60)
            for name in names
        ]
        keys = json.loads(server.ask("GET", "/receipts/public-keys.json", key="").body)
        assert all(check_receipt(receipt, keys) for receipt in receipts)
        indexes = [receipt["log"]["index"] for receipt in receipts]
        assert sorted(indexes) == list(range(21))
        said = server.cli("receipts", "audit", url, "--state", seen, "--full")
        assert "21 leaves, consistent" in said
        assert server.stop() == 0


def _path(request_id: str) -> str:
    return f"/api/v1/receipts/rcpt_{request_id}_1"


def _body() -> dict[str, object]:
    return {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
