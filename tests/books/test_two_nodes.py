"""Two real servers on one PostgreSQL: one that was paused for too long, and a key that is revoked at the other one."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from stentor.store.asyncpg_dialect import Link
from tests.books.deployment import COST, DECIDED_S, Deployment, Storm
from tests.http.harness import Gate, check_quick, until
from tests.scripted_engine import script
from tests.serving import Server

pytestmark = [
    pytest.mark.xdist_group("books-two-nodes"),
    pytest.mark.parametrize("deployment", ["two-nodes"], indirect=True, scope="session"),
]
TEN, RUNNING = 10, 6
PROMISED_S = 1.0


class Life(NamedTuple):
    """Which of its lives a node is in, and for how long its lease holds yet."""

    epoch: int
    left_us: int


def look_at(server: Server) -> Life:
    """What the database says of a node."""
    node = (server.data_dir / "node").read_text().strip()
    left = "lease_until_us - (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    query = f"SELECT epoch, {left} FROM {server.settings['DATABASE_SCHEMA']}.nodes WHERE id = '{node}'"
    link = Link.open({"dsn": server.settings["DATABASE_URL"]}, 30.0)
    try:
        ((epoch, left_us),) = link.fetch(query, ())[1]
        return Life(int(epoch), int(left_us))
    finally:
        link.close()


@pytest.fixture
def paused(deployment: Deployment) -> Iterator[Gate]:
    """The node that will be paused; it goes on in any case."""
    gate = deployment.nodes[1]
    yield gate
    os.kill(gate.server.pid, signal.SIGCONT)


async def test_a_node_paused_past_its_lease_spends_nothing_that_others_own(
    deployment: Deployment, paused: Gate
) -> None:
    awake = deployment.first
    payer = deployment.make_payer(TEN * COST)
    key = awake.make_key(payer["id"])["key"]
    running, late = Storm(deployment.folder, [paused], key), Storm(deployment.folder, [paused], key)
    running.begin(RUNNING)
    await running.wait_decided()
    os.kill(paused.server.pid, signal.SIGSTOP)
    before = look_at(paused.server)
    assert before.left_us > 0
    after = await asyncio.to_thread(
        until, lambda: look_at(paused.server), lambda life: life.epoch > before.epoch, DECIDED_S
    )
    assert after.left_us < 0  # as long as its lease held nobody took its place
    others = Storm(deployment.folder, [awake], key)
    others.begin(50)
    await others.wait_decided()
    late.begin(20)
    os.kill(paused.server.pid, signal.SIGCONT)
    await late.wait_decided()
    for storm in (others, late, running):
        await storm.let_go()
    assert len(others.admitted) == TEN  # all of it was theirs by then
    assert late.admitted == []
    assert {code for _, code in late.refusals} <= {"insufficient_balance", "store_unavailable"}
    events = [awake.event(told.request_id) for told in others.admitted]
    assert [event["charged_nano"] for event in events] == [COST] * TEN
    for told in running.told:  # they were served: on record, and paid by the house
        event = awake.event(told.request_id)
        assert (event["charged_nano"], event["absorbed_nano"]) == (0, COST)
    assert [gate.balance(payer["id"]) for gate in deployment.nodes] == [0, 0]
    deployment.check()
    awake.admin("POST", f"/users/{payer['id']}/topup", {"amount_nano": 3 * COST})
    await asyncio.to_thread(until, lambda: paused.chat(key=key).status, lambda status: status == 200, DECIDED_S)
    deployment.check()


def revoke_once(deployment: Deployment) -> float:
    """Revoke a key at the first node while it runs at both; how long it went on at the second."""
    first, second = deployment.nodes
    made = first.make_key()
    text = script({"say": "so far"}, {"hang": True})
    streams = [gate.open(text, key=made["key"]) for gate in (first, second, second, second)]
    assert {stream.content() for stream in streams} == {"so "}
    first.admin("POST", f"/api-keys/{made['id']}/revoke")
    start = time.monotonic()
    answers = [stream.answer() for stream in streams]
    took_s = time.monotonic() - start
    for answer in answers:
        assert answer.events()[-1]["error"]["code"] == "invalid_api_key"
        assert b"[DONE]" not in answer.body
    for gate in deployment.nodes:
        assert gate.chat("hello", key=made["key"]).status == 401
    for answer in answers:
        event = first.event(answer.request_id)
        assert (event["status"], event["reason"]) == ("cancelled", "key_revoked")
    return took_s


def test_a_key_revoked_at_one_node_stops_at_the_other_within_a_second(deployment: Deployment) -> None:
    check_quick(lambda: revoke_once(deployment), PROMISED_S)
    deployment.check()


def test_a_user_shut_out_at_one_node_stops_at_the_other(deployment: Deployment) -> None:
    first, second = deployment.nodes
    payer = deployment.make_payer(100 * COST)
    key = first.make_key(payer["id"])["key"]
    stream = second.open(script({"say": "so far"}, {"hang": True}), key=key)
    assert stream.content() == "so "
    first.admin("PATCH", f"/users/{payer['id']}", {"active": False})
    assert stream.answer().events()[-1]["error"]["code"] == "invalid_api_key"
    assert second.chat("hello", key=key).status == 401
    first.admin("PATCH", f"/users/{payer['id']}", {"active": True})
    until(lambda: second.chat("hello", key=key).status, lambda status: status == 200, DECIDED_S)
