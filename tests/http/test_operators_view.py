"""What operators see of a server: the document of its errors, its log, its metrics, its traces."""

import contextlib
import json
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from stentor.http.errors import CODES
from tests.collector import collecting
from tests.http.harness import CHAT, Gate, Json, chat_body, script, until
from tests.serving import Server, scripted_model

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def events(gate: Gate, name: str) -> list[Json]:
    """The log's events of this name so far."""
    lines = [line for line in gate.server.log.splitlines() if f'"{name}"'.encode() in line]
    return [event for line in lines if (event := json.loads(line))["event"] == name]


def test_the_document_says_every_error_of_a_call(gate: Gate):
    answers = gate.contract.document["paths"][CHAT]["post"]["responses"]
    said = " ".join(answer["description"] for answer in answers.values())
    assert [code for code in CODES if code not in said] == ["method_not_allowed", "conflict", "unprocessable"]
    assert {"200", "401", "402", "429", "503", "default"} <= answers.keys()


def test_the_document_says_how_listings_are_filtered_and_paged(gate: Gate):
    operation = gate.contract.document["paths"]["/admin/api/usage"]["get"]
    names = {parameter["name"] for parameter in operation["parameters"]}
    assert {"user", "request_id", "since_us", "after", "limit"} <= names


def test_the_log_names_a_known_caller_and_the_address_of_an_unknown_one(each: Gate):
    key = each.make_key()
    unknown = each.chat(key="sk-" + "0" * 48)
    known = each.chat(key=key["key"], model="not-there")

    def find(request_id: str) -> Json:
        found = until(lambda: [one for one in events(each, "request_refused") if one["request_id"] == request_id])
        return found[0]

    stranger, caller = find(unknown.request_id), find(known.request_id)
    assert (stranger["code"], stranger["status"], stranger["client"]) == ("invalid_api_key", 401, "127.0.0.1")
    assert "key_id" not in stranger
    assert (caller["code"], caller["status"], caller["key_id"]) == ("model_not_found", 404, key["id"])
    assert "client" not in caller


def test_usage_is_found_by_a_users_name(each: Gate):
    user = each.make_user()
    answer = each.chat(key=each.make_key(user["id"])["key"])
    for said in (user["name"], user["id"]):
        rows = each.admin("GET", f"/usage?user={said}")["data"]
        assert [row["request_id"] for row in rows] == [answer.request_id]


def test_the_machine_is_described(each: Gate):
    machine = each.admin("GET", "/system")
    assert machine["cpu"]["cores"] >= 1
    assert machine["memory"]["total"] >= machine["memory"]["available"] > 0
    assert "gpus" not in machine["cpu"]


def test_restarts_after_failures_are_counted(gate: Gate):
    model = "mortal-12"
    gate.chat(model=model)
    before = gate.metric("stentor_engines_restarted_total")
    gate.chat(script({"say": ["a"]}, at={"before_headers": "die"}), model=model)
    gate.chat(model=model)
    assert gate.metric("stentor_engines_restarted_total") >= before + 1
    assert gate.metric("stentor_store_writer_queue") == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_attempt_is_a_span_under_the_callers(tmp_path: Path, workers: str):
    with contextlib.ExitStack() as stack:
        collector = stack.enter_context(collecting())
        settings = {"OTEL_ENDPOINT": collector.url, "GATEWAY_WORKERS": workers}
        server = stack.enter_context(Server(tmp_path, scripted_model(), DURABILITY="process", **settings))
        fine = server.ask("POST", CHAT, chat_body(), traceparent=PARENT)
        failed = server.ask("POST", CHAT, chat_body(script({"say": ["a"]}, at={"before_headers": "die"})))
        refused = server.ask("POST", CHAT, chat_body(model="not-there"))
        assert (fine.status, failed.status, refused.status) == (200, 502, 404)
        assert server.stop() == 0
    sent = [ExportTraceServiceRequest.FromString(body) for body in collector.bodies]
    spans = [span for each in sent for one in each.resource_spans for scope in one.scope_spans for span in scope.spans]
    told = [{each.key: each.value for each in span.attributes} for span in spans]
    errors = sorted(one["error.type"].string_value for one in told if "error.type" in one)
    assert errors == ["engine_unreachable", "engine_unreachable", "model_not_found"]
    assert sorted(one["stentor.attempt"].int_value for one in told if "stentor.attempt" in one) == [1, 1, 2]
    [mine] = [span for span, one in zip(spans, told, strict=True) if "error.type" not in one]
    assert (mine.trace_id.hex(), mine.parent_span_id.hex()) == tuple(PARENT.split("-")[1:3])
