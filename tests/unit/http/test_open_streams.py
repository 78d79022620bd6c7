"""Endless answers: with what they end."""

import asyncio

import pytest

from stentor.core.ids import KeyId, ProjectId, TierId, UserId
from stentor.core.principal import Principal
from stentor.http import open_streams
from stentor.http.open_streams import OpenStreams


class Patient:
    """A client that stays."""

    async def wait_left(self) -> None:
        await asyncio.Event().wait()


def caller(key_id: str = "", session_id: str = "") -> Principal:
    return Principal(KeyId(key_id), UserId("u"), ProjectId(""), TierId(""), frozenset(), session_id=session_id)


async def for_ever(told: list[str]) -> None:
    told.append("begun")
    try:
        await asyncio.Event().wait()
    finally:
        told.append("ended")


async def test_a_stream_ends_with_its_own_callers_key_alone() -> None:
    streams, told = OpenStreams(), []
    with streams.begin(caller("one")) as one, streams.begin(caller("two")) as two:
        running = asyncio.create_task(one.run(Patient(), for_ever(told)))
        other = asyncio.create_task(two.run(Patient(), for_ever([])))
        while not told:
            await asyncio.sleep(0)
        streams.end_of(KeyId("one"))
        await running
        assert told == ["begun", "ended"]
        assert not other.done()
        streams.close()
        await other


async def test_a_key_that_ends_before_its_stream_runs_gets_none() -> None:
    streams, told = OpenStreams(), []
    with streams.begin(caller("one")) as stream:
        streams.end_of(KeyId("one"))
        await stream.run(Patient(), for_ever(told))
    assert told == []


async def test_a_sessions_stream_does_not_outlast_it_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_streams, "SESSION_LONGEST_S", 0.01)
    streams, told = OpenStreams(), []
    with streams.begin(caller(session_id="s")) as stream:
        await stream.run(Patient(), for_ever(told))
    assert told == ["begun", "ended"]
