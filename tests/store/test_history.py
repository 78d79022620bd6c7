"""What is kept of conversations: no text where contents aren't to be kept, and none for longer than it may be."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection

from stentor.control.ring.talks import RingTalks
from stentor.control.ring.tenants import Tenants
from stentor.control.ring.usage import RingUsage
from stentor.core.ids import KeyId, ProjectId, TierId, UserId
from stentor.core.principal import Principal
from stentor.core.ring import RingCall
from stentor.history.logs import UsageGroup, add_log, sum_logs
from stentor.history.values import Conversation, LoggingLevel, UsageLogRequest
from stentor.registry.registry import Registry
from stentor.registry.settings import RegistrySettings
from stentor.store.database import Database
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings
from tests.store.house import HeldClock

ANN = Principal(KeyId("k"), UserId("ann"), ProjectId("p"), TierId("t"), frozenset({"ring"}))
DAY_S = 86_400
SECRET = "the patient is called Kim"


@pytest.fixture
def make(database: Database, clock: HeldClock) -> Iterator[Callable[..., RingTalks]]:
    """Talks at a level, kept for so many days."""
    log = Log(TelemetrySettings(log_level="ERROR"))

    async def nothing() -> dict[str, Any]:
        return {}

    tenants = Tenants()
    usage = RingUsage(database, Registry(database, RegistrySettings(), None, nothing, clock, log), tenants, clock)
    yield partial(RingTalks, database, usage, tenants, clock)
    log.close()


async def test_sums_of_what_clients_say_are_exact_however_much_it_is(database: Database, clock: HeldClock) -> None:
    many = UsageLogRequest("m", "p", 2**53 - 1, 7)

    def work(connection: Connection) -> list[UsageGroup]:
        for number in range(1200):
            add_log(connection, "p", "k", many, 10**18 - number, clock.now_us())
        return sum_logs(connection, "p", 0, 2**62)

    (group,) = await database.write(work)
    cost_nano = 1200 * 10**18 - sum(range(1200))
    assert (group.cost_nano, group.input_tokens, group.output_tokens) == (cost_nano, 1200 * (2**53 - 1), 8400)


async def test_what_no_price_can_make_of_it_is_kept_as_the_most(
    database: Database, clock: HeldClock, monkeypatch
) -> None:
    log = Log(TelemetrySettings(log_level="ERROR"))
    registry = Registry(database, RegistrySettings(), None, dict, clock, log)  # type: ignore[arg-type]

    async def find_cost(*_: object) -> int:
        return 10**30

    monkeypatch.setattr(registry, "find_cost", find_cost)
    usage = RingUsage(database, registry, Tenants(), clock)
    body = {"model": "m", "provider": "p", "input_tokens": 2**53 - 1, "output_tokens": 0}
    assert (await usage.log(RingCall(ANN, {}, body, {}))).content.cost == 1e9
    log.close()


def call(body: Any = None, conversation: str = "", **query: str) -> RingCall:
    return RingCall(ANN, query, body, {"id": conversation})


async def dump(database: Database) -> str:
    tables = ("conversations", "messages", "client_logs")
    return await database.read(lambda c: repr([c.exec_driver_sql(f"SELECT * FROM {t}").fetchall() for t in tables]))


@pytest.mark.parametrize("level", ["metadata", "none", "full"])
async def test_no_text_is_kept_where_contents_are_not(database: Database, make, level: LoggingLevel) -> None:
    talks = make(level)
    new = {"title": SECRET, "system_prompt": SECRET, "temperature": 1}
    made: Conversation = (await talks.create(call(new))).content
    changed: Conversation = (await talks.update(call({**new, "temperature": 0.5}, made.id))).content
    assert (made.temperature, changed.temperature) == (1, 0.5)
    said = [
        {"role": "user", "content": SECRET, "name": "kim"},
        {"role": "assistant", "content": None, "reasoning_content": SECRET},
    ]
    answer = {"content": SECRET, "finish_reason": "stop"}
    await talks.log(call({"messages": said, "response": answer, "metadata": {"provider": "a", "model": "b"}}))
    assert (SECRET in await dump(database)) == (level == "full")
    texts = (changed.title, changed.system_prompt)
    assert texts == ((SECRET, SECRET) if level == "full" else (None, None))


async def test_old_texts_go_with_the_messages(database: Database, make, clock: HeldClock) -> None:
    talks = make(retention_days=30)
    texts = {"title": SECRET, "system_prompt": SECRET}
    said = {"messages": [{"role": "user", "content": SECRET, "metadata": {"cost": 1}}]}
    spoken, silent, alive = [(await talks.create(call(texts))).content.id for _ in range(3)]
    await talks.add_batch(call(said, spoken))
    await talks.add_batch(call(said, alive))
    clock.advance(20 * DAY_S)
    await talks.add_batch(call({"messages": [{"role": "user", "content": "well"}]}, alive))
    assert await talks.forget_everywhere() == 0
    assert (await dump(database)).count(SECRET) == 3 * 2 + 2
    clock.advance(11 * DAY_S)
    assert await talks.forget_everywhere() == 2
    for name, kept, cost in ((spoken, None, 1), (silent, None, 0), (alive, SECRET, 1)):
        found = (await talks.get(call(None, name))).content
        assert (found.title, found.system_prompt, found.total_cost) == (kept, kept, cost)
    clock.advance(20 * DAY_S)
    assert await talks.forget_everywhere() == 1
    assert SECRET not in await dump(database)
    assert await talks.forget_everywhere() == 0
