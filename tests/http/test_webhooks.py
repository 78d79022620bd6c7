"""Alerts over the wire: webhooks are managed, told, and seen to have been told."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.harness import Gate, until
from tests.receiver import Receiver
from tests.serving import Server, scripted_model

PATIENCE_S = 60.0
CANARY = "canary-prompt-4711"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gate, Receiver]]:
    """A server that may reach this machine, with a model that can't come up, and who is told of it."""
    broken = scripted_model("broken", engine="llama", source="file:/nowhere/model.gguf", preload=False)
    broken = "\n".join(line for line in broken.split("\n") if not line.startswith("command"))
    config = f"{scripted_model()}\n{broken}"
    folder: Path = tmp_path_factory.mktemp("told")
    with Receiver() as receiver, Server(folder, config, "--admin-key", EGRESS_ALLOW="127.0.0.1") as server:
        yield Gate(server), receiver


def test_webhooks_are_managed_with_an_audit(each: Gate) -> None:
    name = f"ops-{uuid.uuid4().hex[:8]}"
    body = {"name": name, "url": f"https://hooks.example.org/{CANARY}?t={CANARY}", "events": ["absorbed_cost"]}
    made = each.ask("POST", "/admin/api/webhooks", body).json()
    assert made["secret"].startswith("whsec_")
    assert made["events"] == ["absorbed_cost"]
    assert made["url"] == "https://hooks.example.org/…"
    assert each.ask("POST", "/admin/api/webhooks", body).status == 409
    (hook,) = [hook for hook in each.ask("GET", "/admin/api/webhooks").json()["data"] if hook["name"] == name]
    assert hook == {name: value for name, value in made.items() if name != "secret"}
    assert each.ask("GET", "/admin/api/alerts").json() == {"data": [], "next": None}
    assert CANARY.encode() not in b"".join(path.read_bytes() for path in each.server.data_dir.glob("stentor.db*"))
    assert each.ask("DELETE", f"/admin/api/webhooks/{name}").json()["name"] == name
    assert each.ask("DELETE", f"/admin/api/webhooks/{name}").status == 404
    changes = each.ask("GET", "/admin/api/audit?subject_kind=webhook&limit=2").json()["data"]
    assert [change["action"] for change in changes] == ["webhook_delete", "webhook_create"]
    assert made["secret"] not in json.dumps(changes)
    assert CANARY not in json.dumps(changes)
    assert "https://hooks.example.org/" in json.dumps(changes)


@pytest.mark.parametrize(
    "body",
    [
        {"url": "https://a.example.org/"},
        {"name": "a", "url": "http://127.0.0.1:9/"},
        {"name": "a", "url": "https://u:p@a.example.org/"},
        {"name": "a", "url": "https://a.example.org/", "events": "all"},
        {"name": "a", "url": "https://a.example.org/", "secret": "short"},
        {"name": "a\r\nx: y", "url": "https://a.example.org/"},
    ],
    ids=str,
)
def test_a_webhook_that_cannot_be_is_refused(gate: Gate, body: dict[str, Any]) -> None:
    before = gate.ask("GET", "/admin/api/webhooks").json()["data"]
    assert gate.ask("POST", "/admin/api/webhooks", body).status in (400, 403)
    assert gate.ask("GET", "/admin/api/webhooks").json()["data"] == before


def test_a_budget_that_runs_out_is_told(told: tuple[Gate, Receiver]) -> None:
    gate, receiver = told
    gate.ask("POST", "/admin/api/webhooks", {"name": "ops", "url": f"{receiver.url}/budgets"})
    key = gate.make_key(gate.make_user()["id"], name="tight", limits={"budget_month_nano": 1_000_000})
    while gate.chat(CANARY, key=key["key"], max_tokens=100).status == 200:
        pass
    told_of = {message["data"].get("threshold_percent") for message in _messages(gate, receiver)}
    assert {50, 80} <= told_of
    assert all(CANARY.encode() not in got.body and key["key"].encode() not in got.body for got in receiver.received)
    rows = json.loads(gate.server.cli("alerts", "list", "--json"))
    assert {row["deliveries"][0]["state"] for row in rows if row["event"] == "budget_threshold"} == {"delivered"}
    assert "tight" in gate.server.cli("alerts", "list")


def wait_told(gate: Gate) -> None:
    """Until nothing waits to be delivered to any webhook."""

    def pending() -> int:
        return sum(hook["pending"] for hook in gate.ask("GET", "/admin/api/webhooks").json()["data"])

    until(pending, lambda count: count == 0, PATIENCE_S)


def _messages(gate: Gate, receiver: Receiver) -> list[dict[str, Any]]:
    """What was received, once nothing is pending any more and the highest threshold was told."""

    def look() -> list[dict[str, Any]]:
        return [json.loads(got.body) for got in receiver.received]

    def told_all(found: list[dict[str, Any]]) -> bool:
        return any(message["data"].get("threshold_percent") == 80 for message in found)

    until(look, told_all, PATIENCE_S)
    wait_told(gate)
    return look()


def test_an_engine_that_cannot_come_up_is_told(told: tuple[Gate, Receiver]) -> None:
    gate, receiver = told
    gate.ask("POST", "/admin/api/webhooks", {"name": "engines", "url": receiver.url, "events": ["engine_crash_loop"]})
    assert gate.ask("POST", "/v1/chat/completions", {"model": "broken", "messages": []}).status >= 400
    assert gate.chat("x", model="broken").status >= 400

    def look() -> list[str]:
        messages = [json.loads(got.body) for got in receiver.received if got.path == "/"]
        return [message["data"]["model"] for message in messages if message["event"] == "engine_crash_loop"]

    assert until(look, timeout_s=PATIENCE_S) == ["broken"]


def test_the_commands(told: tuple[Gate, Receiver]) -> None:
    gate, receiver = told
    cli = gate.server.cli
    made = json.loads(cli("webhooks", "add", "mine", "--url", receiver.url, "--event", "absorbed_cost", "--json"))
    assert made["secret"]
    assert "whsec_" in cli("webhooks", "add", "other", "--url", receiver.url)
    assert json.loads(cli("webhooks", "test", "mine", "--json"))["ok"] is True
    wait_told(gate)
    receiver.answers = [500]
    cli("webhooks", "test", "mine", status=1)
    assert {"mine", "other"} <= {row["name"] for row in json.loads(cli("webhooks", "list", "--json"))}
    assert made["secret"] not in cli("webhooks", "list")
    for name in ("mine", "other"):
        cli("webhooks", "remove", name)
    assert "no webhook" in cli("webhooks", "remove", "mine", status=1)
