"""What goes on in the background goes on: a defect is told of, and the work begins again."""

import asyncio

import pytest

from stentor.telemetry import background
from stentor.telemetry.background import keep_going


class Told:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, BaseException]] = []

    def event(self, name: str, /, *, level: str, cause: BaseException, **fields: str) -> None:
        self.events.append((f"{level} {name}", fields["name"], cause))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "AGAIN_S", 0.0)


async def test_a_defect_is_told_of_and_the_work_begins_again() -> None:
    told, turns = Told(), [ValueError("first"), ExceptionGroup("of tasks", [KeyError("second")]), None]

    async def work() -> None:
        problem = turns.pop(0)
        if problem is not None:
            raise problem

    await keep_going("ring", work, told)  # type: ignore[arg-type]
    assert [(what, name, type(cause)) for what, name, cause in told.events] == [
        ("error task_crashed", "ring", ValueError),
        ("error task_crashed", "ring", KeyError),
    ]
    assert turns == []


async def test_it_ends_when_it_is_cancelled() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    told = Told()
    task = asyncio.create_task(keep_going("jobs", work, told))  # type: ignore[arg-type]
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told.events == []
