"""The answer's end is held until it is booked: without a store that can be written, nobody gets a clean end."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stentor.store.asyncpg_dialect import Link
from stentor.store.postgres_writer import GATE_CLASS
from tests.http.harness import Gate, price, until
from tests.scripted_engine import script

BUSY = {
    "sqlite": "another process holds the database locked",
    "postgres": "the database doesn't answer in time",
}
SPOKEN = "one two three"
BALANCE = price(20_000, 20_000)


def gate_kind(gate: Gate) -> str:
    """Where the server keeps its books."""
    return "postgres" if "DATABASE_URL" in gate.server.settings else "sqlite"


@contextlib.contextmanager
def locked(gate: Gate) -> Iterator[None]:
    """Another process, this one, keeps the database from being written; afterwards the server has recovered."""
    try:
        with _held(gate):
            yield
    finally:
        until(lambda: gate.ask("GET", "/health", key="").status, lambda status: status == 200, 60)


@contextlib.contextmanager
def _held(gate: Gate) -> Iterator[None]:
    if gate_kind(gate) == "postgres":
        link = Link.open({"dsn": gate.server.settings["DATABASE_URL"]}, 10.0)
        try:
            link.execute(
                f"SELECT pg_advisory_lock({GATE_CLASS}, hashtext('{gate.server.settings['DATABASE_SCHEMA']}'))"
            )
            yield
        finally:
            link.close()
        return
    foreign = sqlite3.connect(gate.server.data_dir / "stentor.db", isolation_level=None, timeout=5)
    try:
        foreign.execute("BEGIN IMMEDIATE")
        yield
    finally:
        foreign.close()


@pytest.fixture
def payer(each: Gate):
    """A prepaid user with a key, already known to the server."""
    user = each.make_user(tier="payg", balance_nano=BALANCE)
    key = each.make_key(user["id"])
    assert each.chat("hello", key=key["key"]).status == 200
    return user, key


def test_a_stream_that_can_not_be_booked_has_no_end(each: Gate, payer, tmp_path: Path):
    user, key = payer
    before = each.balance(user["id"])
    text = script({"say": SPOKEN}, {"until": str(tmp_path / "go")})
    stream = each.open(text, key=key["key"], stream_options={"include_usage": True})
    assert stream.content().startswith("one")
    with locked(each):
        (tmp_path / "go").touch()
        answer = stream.answer()
        *events, error = answer.events()
        assert error["error"]["code"] == "store_unavailable"
        assert BUSY[gate_kind(each)] in error["error"]["message"]
        assert all(choice["finish_reason"] is None for event in events for choice in event["choices"])
        assert b"[DONE]" not in answer.body
        assert b'"usage"' not in answer.body
        until(each.running, lambda count: count == 0)
    assert each.find_events(answer.request_id) == []
    assert each.balance(user["id"]) == before
    again = each.chat("hello", key=key["key"])
    assert again.status == 200
    assert each.balance(user["id"]) == before - each.event(again.request_id)["cost_nano"]


def test_a_whole_answer_that_can_not_be_booked_is_refused(each: Gate, payer):
    user, key = payer
    before = each.balance(user["id"])
    with locked(each):
        answer = each.chat(script({"say": SPOKEN}), key=key["key"])
        assert (answer.status, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert SPOKEN.encode() not in answer.body
    assert each.find_events(answer.request_id) == []
    assert each.balance(user["id"]) == before


def test_what_was_not_charged_can_be_spent(each: Gate):
    user = each.make_user(tier="payg", balance_nano=price(0, 40) + price(400, 0))
    key = each.make_key(user["id"])["key"]
    text = script({"say": SPOKEN}, usage={"prompt_tokens": 100, "completion_tokens": 3})
    assert each.chat(text, key=key, max_tokens=3).status == 200
    with locked(each):
        for _ in range(2):
            assert each.chat(text, key=key, max_tokens=3).status == 503
    assert each.chat(text, key=key, max_tokens=3).status == 200


def test_health_says_so_while_it_lasts(each: Gate, payer):
    with locked(each):
        each.chat("hello", key=payer[1]["key"])
        answer = each.ask("GET", "/health", key="")
        assert answer.status == 503
        assert (answer.json()["status"], answer.json()["database"]) == ("unhealthy", "unavailable")
        text = each.ask("GET", "/health", key="", Accept="text/plain")
        assert text.status == 503
        assert text.body.decode().startswith(f"unhealthy – {BUSY[gate_kind(each)]}")
        assert each.ask("HEAD", "/health", key="").status == 503


def test_an_unknown_key_is_never_called_wrong_for_the_stores_sake(each: Gate):
    fresh = each.make_key()
    with locked(each):
        # Reading goes on while another process writes: the key is found, the answer can't be booked.
        answer = each.chat("hello", key=fresh["key"])
        assert (answer.status, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert each.chat("hello", key="sk-" + "0" * 48).status == 401


def test_many_answers_wait_for_a_lock_that_goes_in_time(each: Gate, payer):
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(each.chat(script({"say": SPOKEN}), key=payer[1]["key"])))
        for _ in range(8)
    ]
    with locked(each):
        for thread in threads:
            thread.start()
        until(lambda: each.engine().running(), lambda count: count == 0)
    for thread in threads:
        thread.join()
    for answer in answers:
        events = each.find_events(answer.request_id)
        assert [event["status"] for event in events] == (["completed"] if answer.status == 200 else [])
