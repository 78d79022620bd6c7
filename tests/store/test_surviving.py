"""What watches other nodes goes on after an error nobody foresaw, and so does the numbering over a damaged log."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stentor.audit.log import Actor, find_newest
from stentor.control.nodes.following import Follower
from stentor.control.nodes.neighbourhood import Neighbourhood
from stentor.receipts.log import ReceiptLog, SequencerReplaced
from stentor.receipts.merkle import MissingTile
from stentor.receipts.sequencer import Sequencer
from stentor.receipts.settings import ReceiptSettings
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.neighbours import Neighbours
from stentor.runtime.remotes import Remotes
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings
from tests.store.house import House

OPERATOR = Actor("tester", "cli")
PATIENCE_S = 30


@pytest.fixture
def system() -> str:
    """Any system will do: what fails is put there by the test."""
    return "sqlite"


class Told:
    """A log, and the names of what it was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.log = Log(TelemetrySettings(), fd=-1)
        monkeypatch.setattr(self.log, "event", lambda name, **_: self.names.append(name))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    made = Told(monkeypatch)
    yield made
    made.log.close()


async def until(task: "asyncio.Task[Any]", condition: Callable[[], bool]) -> None:
    """Wait for it, as long as ``task`` runs."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            assert not task.done(), "the task has ended"
            await asyncio.sleep(0.01)


async def end(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_node_goes_on_looking_for_the_others(house: House, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stentor.control.nodes.neighbourhood.LOOK_S", 0.01)
    looks: list[int] = []

    class Shared:
        is_shared = True

    async def look() -> None:
        looks.append(len(looks))
        if len(looks) < 3:
            raise ZeroDivisionError

    neighbours = Neighbours(Catalogue(()), Remotes(4))
    neighbourhood = Neighbourhood(Shared(), b"pepper", neighbours, None, told.log)  # type: ignore[arg-type]
    monkeypatch.setattr(neighbourhood, "look", look)
    task = asyncio.create_task(neighbourhood.run())
    try:
        await until(task, lambda: len(looks) > 3)
    finally:
        await end(task)
    assert told.names == ["neighbours_failed"] * 2


@pytest.fixture
async def follower(house: House, told: Told, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Follower]:
    """Follows what is changed from now on."""
    monkeypatch.setattr("stentor.control.nodes.following.POLL_S", 0.01)
    await house.set_tier("free")
    seen = await house.database.read(find_newest)
    follower = Follower(house.database, house.books, house.clock, told.log, seen)
    yield follower
    follower.stop()
    await asyncio.gather(follower._task, return_exceptions=True)


async def test_a_change_that_cannot_be_applied_holds_up_none_behind_it_and_is_not_forgotten(
    house: House, told: Told, follower: Follower
) -> None:
    works = False
    applied: list[str] = []

    async def follow_tier(name: str) -> None:
        if name == "spoiled" and not works:
            raise ZeroDivisionError
        applied.append(name)

    follower._apply["tier"] = follow_tier
    await house.set_tier("spoiled")
    await house.set_tier("sound")
    await until(follower._task, lambda: "sound" in applied)
    assert "spoiled" not in applied
    assert "change_failed" in told.names
    works = True
    await until(follower._task, lambda: "spoiled" in applied)


async def test_a_read_that_fails_for_whatever_reason_is_made_again(
    house: House, told: Told, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[str] = []

    async def follow_tier(name: str) -> None:
        applied.append(name)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    follower._apply["tier"] = follow_tier
    with monkeypatch.context() as broken:
        broken.setattr("stentor.control.nodes.following.list_subjects", fail)
        await house.set_tier("late")
        await until(follower._task, lambda: "following_failed" in told.names)
    await until(follower._task, lambda: "late" in applied)


@pytest.mark.parametrize("replaced", [False, True], ids=["taking over", "reading again after being replaced"])
async def test_a_damaged_receipt_log_does_not_end_the_numbering(
    house: House, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    monkeypatch.setattr("stentor.receipts.sequencer.IDLE_S", 0.01)
    monkeypatch.setattr("stentor.receipts.sequencer.GATHER_S", 0.0)
    settings = ReceiptSettings(anchor=tmp_path / "receipts.anchor")
    receipt_log = await ReceiptLog.open(house.database, settings, house.clock)
    sequencer = Sequencer(house.database, receipt_log, house.keyring.receipt_salt(), house.clock, told.log)
    calls: list[str] = []

    async def leads() -> bool:
        calls.append("leads")
        if replaced:
            raise SequencerReplaced
        raise MissingTile(0, 0)

    async def resync() -> bool:
        raise MissingTile(0, 0)

    monkeypatch.setattr(receipt_log, "leads", leads)
    monkeypatch.setattr(receipt_log, "resync", resync)
    task = asyncio.create_task(sequencer.run())
    try:
        await until(task, lambda: len(calls) > 2)
    finally:
        await end(task)
    told_before = len(told.names)
    await sequencer.finish()  # nor does it spoil an orderly end
    assert set(told.names) == {"sequencer_failed"}
    assert len(told.names) == told_before + (0 if replaced else 1)
