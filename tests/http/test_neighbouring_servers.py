"""Two servers on one database: each serves the other's models, and what they do is admitted, paid and counted once."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stentor.control.nodes.neighbourhood import node_token
from stentor.store.database import Database
from stentor.store.settings import StoreSettings
from stentor.vault.keyring import Keyring
from stentor.vault.settings import VaultSettings
from tests.http.harness import Gate, until
from tests.http.nodes import PATIENCE_S, cluster, names
from tests.scripted_engine import script
from tests.serving import scripted_model


@pytest.fixture(scope="module", params=["1", "2"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_url: str
) -> Iterator[tuple[Gate, Gate]]:
    """Two nodes with a model each, known to the other."""
    folder = tmp_path_factory.mktemp("pair")
    far = scripted_model("far", aliases=["distant"], fallbacks=["near"])
    with cluster(folder, postgres_url, scripted_model("near"), far, workers=request.param) as (one, two):
        until(lambda: names(one), lambda found: found == {"near", "far"}, PATIENCE_S)
        until(lambda: names(two), lambda found: found == {"near", "far"}, PATIENCE_S)
        yield one, two
        one.check_books()


@pytest.mark.parametrize("model", ["far", "distant"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_of_another_node_answers_and_is_metered_once(pair, model: str, stream: bool) -> None:
    one, two = pair
    user = one.make_user(tier="payg", balance_nano=10**9)
    key = one.make_key(user["id"])
    answer = one.chat("hello there", model=model, key=key["key"], stream=stream)
    assert answer.status == 200
    event = one.event(answer.request_id)
    assert (event["model"], event["user_id"], event["status"]) == ("far", user["id"], "completed")
    assert event["cost_nano"] > 0
    assert one.balance(user["id"]) == two.balance(user["id"]) == 10**9 - event["cost_nano"]
    # The owner's answer is the same, and costs the same.
    own = two.event(two.chat("hello there", model="far", stream=stream).request_id)
    assert (own["cost_nano"], own["input_tokens"], own["output_tokens"]) == (
        event["cost_nano"],
        event["input_tokens"],
        event["output_tokens"],
    )
    events = one.admin("GET", f"/usage?user={user['id']}&limit=100")["data"]
    assert [row["request_id"] for row in events] == [answer.request_id]
    assert all(row["key_id"] != "node" for row in two.admin("GET", "/usage?limit=1000")["data"])


def test_a_client_that_leaves_stops_the_engine_on_the_other_node(pair) -> None:
    one, two = pair
    stream = one.open(script({"say": "word " * 2000, "delay_s": 0.1}), model="far")
    stream.frame()
    until(lambda: two.metric("stentor_running_requests"), lambda count: count == 1, PATIENCE_S)
    stream.leave()
    until(lambda: two.metric("stentor_running_requests"), lambda count: count == 0, PATIENCE_S)
    until(lambda: one.metric("stentor_open_requests"), lambda count: count == 0, PATIENCE_S)


def test_limits_hold_where_a_request_comes_in(pair) -> None:
    one, _ = pair
    key = one.make_key(one.make_user()["id"], models=["near"])
    assert one.chat(model="far", key=key["key"]).status == 404
    assert names(one) == {"near", "far"}
    broke = one.make_key(one.make_user(tier="payg")["id"])
    assert one.chat(model="far", key=broke["key"]).status == 402


def test_a_nodes_token_opens_engines_there_and_nothing_else(pair, tmp_path: Path) -> None:
    one, two = pair
    tokens = {gate: _make_token(gate, tmp_path / str(number)) for number, gate in enumerate(pair)}
    body = {"model": "far", "messages": [{"role": "user", "content": "x"}]}
    assert two.ask("POST", "/v1/chat/completions", body, key=tokens[two]).status == 200
    assert one.ask("POST", "/v1/chat/completions", body, key=tokens[two]).status == 401
    # What comes from a node is never passed on to another one: there is no way round in circles.
    assert one.ask("POST", "/v1/chat/completions", body, key=tokens[one]).status == 404
    for method, path in (
        ("GET", "/user/api/me"),
        ("GET", "/user/api/keys"),
        ("POST", "/user/api/keys"),
        ("GET", "/admin/api/users"),
        ("GET", "/api/v1/conversations"),
        ("GET", "/metrics"),
        ("POST", "/v1/messages"),
    ):
        status = two.ask(method, path, {} if method == "POST" else None, key=tokens[two]).status
        assert status in (401, 403) or path == "/metrics", (path, status)


def _make_token(gate: Gate, folder: Path) -> str:
    """As a node makes it: from the vault's pepper, which only who has the master key and the database knows."""
    settings = gate.server.settings
    url, schema = settings["DATABASE_URL"], settings["DATABASE_SCHEMA"]
    database = Database.open(StoreSettings(data_dir=folder, url=url, schema=schema, pool_size=1))
    try:
        vault = VaultSettings(key_file=gate.server.data_dir / "master.key")
        keyring = asyncio.run(database.read(lambda connection: Keyring.open(connection, vault, 0)))
    finally:
        database.close()
    return node_token(keyring.pepper(), (gate.server.data_dir / "node").read_text().strip())


def test_a_node_that_is_down_is_told_of_and_comes_back(tmp_path: Path, postgres_url: str) -> None:
    with cluster(tmp_path, postgres_url, scripted_model("near"), scripted_model("far")) as (one, two):
        until(lambda: names(one), lambda found: found == {"near", "far"}, PATIENCE_S)
        two.server.stop()
        answer = until(lambda: one.chat(model="far"), lambda answer: answer.status == 503, PATIENCE_S)
        assert answer.json()["error"]["code"] == "model_unavailable"
        assert "retry-after" in answer.headers
        assert one.chat(model="near").status == 200
        two.server.start()
        until(lambda: one.chat(model="far").status, lambda status: status == 200, PATIENCE_S)


def test_of_two_owners_the_other_answers_when_one_is_killed(tmp_path: Path, postgres_url: str) -> None:
    configs = [scripted_model("near"), scripted_model("far"), scripted_model("far")]
    with cluster(tmp_path, postgres_url, *configs) as (one, two, three):
        until(lambda: places(one), lambda count: count == 128, PATIENCE_S)
        for _ in range(4):
            assert one.chat(model="far").status == 200
        assert [len(gate.engine("far").log()) > 0 for gate in (two, three)] == [True, True]
        check_stopped(one, two)
        two.server.kill()
        for _ in range(6):  # long before its lease has run out
            assert one.chat(model="far").status == 200


def check_stopped(one: Gate, two: Gate) -> None:
    """A node that stands still has accepted what it will never answer: long before five minutes the other one does."""
    bodies = [{"model": "far", "messages": [{"role": "user", "content": f"{n}"}], "stream": n < 2} for n in range(4)]
    with stopped(two):
        start_s = time.monotonic()
        waiting = [one.send(body) for body in bodies]
        answers = [connection.getresponse() for connection in waiting]
        assert [answer.status for answer in answers] == [200] * 4
        assert time.monotonic() - start_s < 100
        ids = [str(answer.getheader("x-request-id")) for answer in answers]
        assert all(answer.read() for answer in answers)
        for connection in waiting:
            connection.close()
        until(one.busy, lambda count: count == 0, PATIENCE_S)
    attempts = [one.find_events(request_id) for request_id in ids]
    again = [events for events in attempts if len(events) == 2]
    assert len(again) == 2  # they took turns
    assert {(events[0]["status"], events[0]["reason"]) for events in again} == {("failed", "upstream_unreachable")}
    until(lambda: places(one), lambda count: count == 128, PATIENCE_S)


@contextlib.contextmanager
def stopped(gate: Gate) -> Iterator[None]:
    """Meanwhile nothing of a server runs."""
    assert gate.server.process is not None
    whole = [psutil.Process(gate.server.process.pid), *gate.server.children()]
    for process in whole:
        process.suspend()
    try:
        yield
    finally:
        for process in whole:
            process.resume()


def places(gate: Gate) -> int:
    rows = gate.admin("GET", "/models")["data"]
    return sum(row["places"] for row in rows if row["id"] == "far")
