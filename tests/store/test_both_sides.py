"""Books and Scheduler, asked in the authority's own process and over a worker's line: one suite for both.

Everything here holds for either implementation; ``side`` is the one under test.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from stentor.accounting.tokens import count_tokens
from stentor.accounting.usage import UsageEvent, UsageFilter
from stentor.audit.log import Actor
from stentor.control.observed import ObservedBooks
from stentor.control.people.changes import Changes, KeyChange
from stentor.control.wanted import KeyAsk
from stentor.control.workers.client import AuthorityClient
from stentor.control.workers.desk import Desk
from stentor.core.books import Books, Close, Extend, Grant, Open, Settled, Usage
from stentor.core.errors import AuthorityLost, Refused
from stentor.core.ids import InstanceId, KeyId, ModelId, ProjectId, RequestId, TierId, UserId, new_request_id
from stentor.core.operator import OperatorAnswer, OperatorCall
from stentor.core.principal import Principal
from stentor.core.scheduler import EngineDoor, InstanceCard, ModelCard, Scheduler
from stentor.people.values import KeyLimits
from stentor.telemetry.logs import Log
from stentor.telemetry.metrics import Metrics
from stentor.telemetry.settings import TelemetrySettings

USD = 1_000_000_000
TESTER = Actor("tester", "cli")
CALLER = Principal(KeyId("k"), UserId("u"), ProjectId("p"), TierId("t"), frozenset({"admin"}))
HELLO = {"words": ["first", 1]}

MODEL = ModelCard(
    ModelId("tiny"), ("small", "klein"), ("text", "image"), 4096, "failed", "llama", 1_700_000_000_000_000,
    "file:/m.gguf", 4, 1, "its engine ended – with “words”",
)  # fmt: skip
INSTANCE = InstanceCard(
    InstanceId("tiny#1"), ModelId("tiny"), "ready", 4801, 77, 3, 2, 4, None, 1, "because", ("line one", "línea dos"),
)  # fmt: skip


class Cards:
    """A scheduler that knows one model."""

    def __init__(self) -> None:
        self.orders: list[tuple[Any, ...]] = []
        self.going_on = asyncio.Event()

    async def list_models(self) -> list[ModelCard]:
        return [MODEL, msgspec.structs.replace(MODEL, id=ModelId("other"), aliases=())]

    async def find_model(self, name: str, allowed: frozenset[str] = frozenset()) -> ModelCard | None:
        return MODEL if name in ("tiny", "small") and (not allowed or "tiny" in allowed) else None

    async def list_instances(self) -> list[InstanceCard]:
        return [INSTANCE]

    async def find_door(self, name: str) -> EngineDoor | None:
        return EngineDoor("http://127.0.0.1:4801", "secret") if name == "4801" else None

    async def start(self, model: ModelId, instances: int = 1) -> None:
        if model == "broken":
            raise Refused("model_unavailable", "It doesn't start.", retry_after_s=2.5, details={"reason": "broken"})
        self.orders.append(("start", model, instances))

    async def stop(self, model: ModelId) -> None:
        await self.going_on.wait()
        self.orders.append(("stop", model))


class Side:
    """One implementation, and what its tests look at behind it."""

    def __init__(self, house: Any, books: Books, scheduler: Scheduler, cards: Cards) -> None:
        self.house = house
        self.books = books
        self.scheduler = scheduler
        self.cards = cards
        self.client: AuthorityClient | None = None
        self.desk: Desk | None = None
        self.lose: Callable[[], None]

    async def events(self) -> list[UsageEvent]:
        events: list[UsageEvent] = (await self.house.management.list_usage(UsageFilter())).events
        return events

    def ask(self, key_id: KeyId, **more: Any) -> Open:
        ask = Open(new_request_id(), 1, key_id, "/v1/chat/completions", "tiny", 50, 20)
        return msgspec.structs.replace(ask, **more)

    async def open(self, key_id: KeyId, **more: Any) -> Grant:
        return await self.books.open(self.ask(key_id, **more))

    async def close(self, grant: Grant, **more: Any) -> Settled:
        end = Close(grant.request_id, grant.attempt, "completed", Usage(40, 10, 15, 5))
        return await self.books.close(msgspec.structs.replace(end, **more))


async def operate(call: OperatorCall) -> OperatorAnswer:
    return OperatorAnswer(203, "text/odd", b"\x00" + msgspec.json.encode(call))


@contextlib.asynccontextmanager
async def in_process(house: Any) -> AsyncIterator[Side]:
    log = Log(TelemetrySettings(log_level="ERROR"))
    observed, cards = ObservedBooks(house.books, Metrics("test"), log), Cards()
    side = Side(house, observed, cards, cards)
    side.lose = lambda: observed.abandon("")
    yield side
    assert observed.open_requests == house.books.running()
    log.close()


@contextlib.asynccontextmanager
async def over_the_line(house: Any) -> AsyncIterator[Side]:
    async with in_process(house) as behind:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        desk = Desk("worker-0.1", behind.books, behind.cards, operate)  # type: ignore[arg-type]
        client = AuthorityClient()
        await desk.begin(ours, HELLO)
        assert msgspec.msgpack.decode(await client.connect(theirs)) == HELLO
        behind.books.on_changed(desk.tell_changed)
        behind.books.on_revoked(desk.tell_revoked)
        side = Side(house, client, client, behind.cards)
        side.client, side.desk, side.lose = client, desk, client.hang_up
        yield side
        client.hang_up()
        desk.close()
        await asyncio.wait_for(desk.lost.wait(), 30)


@pytest.fixture(params=[in_process, over_the_line], ids=["in process", "over the line"])
async def side(request: pytest.FixtureRequest, house: Any) -> AsyncIterator[Side]:
    async with request.param(house) as side:
        yield side


@pytest.fixture
async def key(house: Any) -> KeyId:
    await house.set_tier("payg", prepaid=True)
    await house.add_user("ann", USD)
    key_id: KeyId = await house.add_key("ann")
    return key_id


async def refused(awaitable: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await awaitable
    return caught.value


# -- who


async def test_a_principal_is_found_whole(side: Side) -> None:
    await side.house.add_user("ann")
    ask = KeyAsk(
        "ann", "k", scopes=("inference", "ring"), models=("tiny",), endpoints=("/v1/models",), expires_us=2 * 10**15
    )
    made = await side.house.management.add_key(TESTER, ask)
    found = await side.books.find_principal(side.house.digest(made.key))
    assert found is not None
    assert (found.key_id, found.key_hint) == (made.made.id, made.key[-4:])
    assert found.scopes == {"inference", "ring"}
    assert (found.models, found.endpoints, found.expires_us) == ({"tiny"}, {"/v1/models"}, 2 * 10**15)
    assert found.project_id == made.made.project_id


async def test_an_unknown_key_is_nobody(side: Side) -> None:
    assert await side.books.find_principal(b"\x00" * 32) is None


async def test_a_revoked_key_is_told_and_forgotten(side: Side, key: KeyId, wait_until: Any) -> None:
    told: list[KeyId] = []
    side.books.on_revoked(told.append)
    await side.house.management.revoke_key(TESTER, key)
    await wait_until(lambda: told)
    assert set(told) == {key}
    assert (await refused(side.open(key))).code == "invalid_api_key"


async def test_a_key_that_may_do_more_is_looked_at_again_and_not_ended(side: Side, key: KeyId, wait_until: Any) -> None:
    told: list[tuple[str, KeyId]] = []
    side.books.on_changed(lambda key_id: told.append(("changed", key_id)))
    side.books.on_revoked(lambda key_id: told.append(("revoked", key_id)))
    house = side.house
    changes = Changes(house.database, house.books, house.management, house.clock)
    for change in (KeyChange(models=("tiny", "other")), KeyChange(models=()), KeyChange(expires_us=2 * 10**15)):
        told.clear()
        await changes.change_key(TESTER, key, change)
        narrowed = change.models == ("tiny", "other")
        await wait_until(lambda expected=1 + narrowed: len(told) == expected)  # type: ignore[misc]
        assert told == [("changed", key), *([("revoked", key)] if narrowed else [])]


# -- open and close


async def test_a_grant_and_its_settlement_arrive_whole(side: Side, key: KeyId) -> None:
    ask = side.ask(key, stream=True, client_request_id="mine ü", answers=2)
    grant = await side.books.open(ask)
    assert (grant.request_id, grant.attempt, grant.model) == (ask.request_id, 1, "tiny")
    assert (grant.url, grant.token, grant.instance) == ("http://127.0.0.1:1", "secret", "one")
    assert (grant.upstream_model, grant.engine) == ("tiny.gguf", "llama")
    assert (grant.output_cap, grant.context_size) == (20, 8192)
    settled = await side.close(grant, latency_us=9, first_token_us=4, overhead_us=2)
    assert settled == Settled(40 * 100 + 15 * 200, 0, Usage(40, 10, 15, 5))
    (event,) = await side.events()
    assert (event.client_request_id, event.stream, event.reasoning_tokens) == ("mine ü", True, 5)
    assert (event.latency_us, event.first_token_us, event.overhead_us) == (9, 4, 2)
    assert await side.house.balance("ann") == USD - settled.cost_nano
    assert side.house.places.free == 1000


async def test_closing_again_says_the_same_and_charges_nothing(side: Side, key: KeyId) -> None:
    grant = await side.open(key)
    first = await side.close(grant)
    assert await side.close(grant, usage=Usage(500, 0, 500)) == first
    assert await asyncio.gather(*(side.close(grant) for _ in range(5))) == [first] * 5
    assert len(await side.events()) == 1
    assert await side.house.balance("ann") == USD - first.cost_nano


async def test_closings_at_once_charge_once(side: Side, key: KeyId) -> None:
    grant = await side.open(key)
    results = await asyncio.gather(*(side.close(grant) for _ in range(5)))
    assert len(set(map(repr, results))) == 1
    assert len(await side.events()) == 1


async def test_texts_are_counted_by_the_authority(side: Side, key: KeyId) -> None:
    grant = await side.open(key)
    settled = await side.close(grant, usage=Usage(estimated=True), count_input="one two", count_output="drei 👋")
    assert settled.usage == Usage(count_tokens("one two"), 0, count_tokens("drei 👋"), estimated=True)


async def test_a_suspect_instance_is_reported(side: Side, key: KeyId) -> None:
    grant = await side.open(key)
    await side.close(grant, outcome="failed", reason="engine_broke_off", billable=False, instance_suspect=True)
    assert side.house.places.suspects == 1
    (event,) = await side.events()
    assert (event.status, event.reason, event.cost_nano, event.billable) == ("failed", "engine_broke_off", 0, False)


async def test_what_was_never_opened_can_not_be_closed(side: Side) -> None:
    end = Close(RequestId("never"), 1, "completed", Usage())
    assert (await refused(side.books.close(end))).code == "not_found"


async def test_many_requests_at_once(side: Side, key: KeyId) -> None:
    grants = await asyncio.gather(*(side.open(key) for _ in range(200)))
    assert len({grant.request_id for grant in grants}) == 200
    settled = await asyncio.gather(*(side.close(grant) for grant in grants))
    assert await side.house.balance("ann") == USD - sum(result.cost_nano for result in settled)
    assert len(await side.events()) == 100
    await side.house.check()


# -- refusals


async def test_a_refusal_arrives_with_everything_it_says(side: Side) -> None:
    await side.house.set_tier("slow", requests_per_minute=1)
    await side.house.add_user("bob", tier="slow")
    bob = await side.house.add_key("bob")
    await side.close(await side.open(bob))
    refusal = await refused(side.open(bob))
    assert (refusal.code, refusal.param) == ("rate_limit_exceeded", None)
    assert refusal.retry_after_s == 61.0
    assert isinstance(refusal.retry_after_s, float)
    assert refusal.message.startswith("Rate limit of 1 requests per minute")
    resets_at = side.house.clock.now_us() // 1_000_000 + 61
    assert refusal.details == {
        "rule": "requests_per_minute", "unit": "requests", "limit": 1, "left": 0, "resets_at": resets_at,
    }  # fmt: skip


async def test_money_and_quota_name_what_is_affordable(side: Side) -> None:
    await side.house.set_tier("payg", prepaid=True)
    await side.house.add_user("cat", 10_000)
    cat = await side.house.add_key("cat")
    refusal = await refused(side.open(cat, output_asked=5000))
    assert (refusal.code, refusal.param) == ("insufficient_balance", "max_tokens")
    assert refusal.details["left_nano"] == 10_000
    assert refusal.details["affordable_output_tokens"] == 25
    assert (await side.open(cat, output_asked=None)).output_cap == 25
    limited = await side.house.add_key("cat", limits=KeyLimits(token_limit=3))
    assert (await refused(side.open(limited))).code == "quota_exceeded"


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"model": "nothing"}, "model_not_found", None),
        ({"needs": ("text", "image")}, "missing_ability", "model"),
    ],
)
async def test_refusals_leave_nothing_behind(side: Side, key: KeyId, more, code, param) -> None:
    refusal = await refused(side.open(key, **more))
    assert (refusal.code, refusal.param) == (code, param)
    assert (await refused(side.open(KeyId("nobody")))).code == "invalid_api_key"
    assert side.house.places.free == 1000
    assert side.house.books.running() == 0
    assert await side.events() == []


async def test_a_scheduler_that_refuses_is_heard(side: Side, key: KeyId) -> None:
    side.house.places.problem = Refused("overloaded", "Full.", retry_after_s=2.0, details={"queue_limit": 3})
    refusal = await refused(side.open(key))
    assert (refusal.code, refusal.retry_after_s, refusal.details) == ("overloaded", 2.0, {"queue_limit": 3})
    side.house.places.problem = None
    assert await side.close(await side.open(key))


async def test_an_attempt_is_open_once(side: Side, key: KeyId) -> None:
    ask = side.ask(key)
    grant = await side.books.open(ask)
    assert (await refused(side.books.open(ask))).code == "conflict"
    second = await side.books.open(msgspec.structs.replace(ask, attempt=2))
    await side.close(grant, outcome="failed", billable=False)
    await side.close(second)
    assert sorted(event.attempt for event in await side.events()) == [1, 2]


# -- waiting and leaving


async def test_a_request_waits_for_its_place(side: Side, key: KeyId, wait_until: Any) -> None:
    side.house.places.free = 1
    first = await side.open(key)
    waiting = asyncio.create_task(side.open(key))
    await wait_until(lambda: side.house.places.waiting)
    await side.close(first)
    second = await waiting
    assert second.queued_us == 7
    await side.close(second)


async def test_leaving_before_the_grant_leaves_nothing(side: Side, key: KeyId, wait_until: Any) -> None:
    side.house.places.free = 0
    waiting = asyncio.create_task(side.open(key))
    await wait_until(lambda: side.house.places.waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await wait_until(lambda: not side.house.places.waiting)
    await wait_until(lambda: side.house.books.running() == 0)
    assert await side.events() == []


async def test_leaving_at_the_moment_of_the_grant_takes_no_place(side: Side, key: KeyId, wait_until: Any) -> None:
    """However far the grant has come, whoever left it holds nothing and pays nothing."""
    for turns in range(12):
        opening = asyncio.create_task(side.open(key))
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        try:
            grant = await opening
        except asyncio.CancelledError:
            pass
        else:
            await side.close(grant, outcome="cancelled", usage=Usage(), billable=False)
        await wait_until(lambda: side.house.books.running() == 0)
        assert side.house.places.free == 1000
    assert await side.house.balance("ann") == USD
    assert {event.cost_nano for event in await side.events()} <= {0}


async def test_leaving_while_the_place_is_given_takes_no_place(side: Side, key: KeyId, wait_until: Any) -> None:
    for turns in range(8):
        side.house.places.free = 0
        opening = asyncio.create_task(side.open(key))
        await wait_until(lambda: side.house.places.waiting)
        side.house.places.release(InstanceId("one"), 1, suspect=False)
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await side.close(await opening, outcome="cancelled", usage=Usage(), billable=False)
        await wait_until(lambda: side.house.books.running() == 0)
        await wait_until(lambda: side.house.places.free == 1)
    assert await side.house.balance("ann") == USD


async def test_a_key_revoked_while_it_waits_gets_no_place(side: Side, key: KeyId, wait_until: Any) -> None:
    side.house.places.free = 0
    waiting = asyncio.create_task(side.open(key))
    await wait_until(lambda: side.house.places.waiting)
    await side.house.management.revoke_key(TESTER, key)
    side.house.places.release(InstanceId("one"), 1, suspect=False)
    assert (await refused(waiting)).code == "invalid_api_key"
    assert side.house.places.free == 1


# -- the store in trouble


@pytest.mark.parametrize("system", ["sqlite"], indirect=True)
async def test_an_unwritable_store_is_told_and_charges_nothing(side: Side, key: KeyId, foreign, wait_until) -> None:
    assert await side.books.find_problem() is None
    grant = await side.open(key)
    other = foreign(side.house.database.path)
    other.run("BEGIN IMMEDIATE")
    refusal = await refused(side.close(grant))
    assert (refusal.code, refusal.retry_after_s) == ("store_unavailable", 2.0)
    assert "locked" in (await side.books.find_problem() or "")
    other.run("ROLLBACK")
    await wait_until(lambda: side.house.database.problem() is None)
    assert await side.books.find_problem() is None
    assert await side.events() == []
    assert await side.house.balance("ann") == USD
    assert (await side.close(await side.open(key))).cost_nano > 0


# -- the scheduler


async def test_models_and_instances_arrive_whole(side: Side) -> None:
    assert await side.scheduler.list_models() == await side.cards.list_models()
    assert await side.scheduler.list_instances() == [INSTANCE]
    assert await side.scheduler.find_model("small") == MODEL
    assert await side.scheduler.find_model("nothing") is None
    assert await side.scheduler.find_model("small", frozenset({"tiny", "other"})) == MODEL
    assert await side.scheduler.find_model("small", frozenset({"other"})) is None


async def test_orders_reach_the_scheduler(side: Side) -> None:
    await side.scheduler.start(ModelId("tiny"), 3)
    refusal = await refused(side.scheduler.start(ModelId("broken")))
    assert (refusal.code, refusal.retry_after_s, refusal.details) == ("model_unavailable", 2.5, {"reason": "broken"})
    stopping = asyncio.create_task(side.scheduler.stop(ModelId("tiny")))
    assert await side.scheduler.find_model("tiny") == MODEL
    assert not stopping.done()
    side.cards.going_on.set()
    await stopping
    assert side.cards.orders == [("start", "tiny", 3), ("stop", "tiny")]


# -- the end of a worker


async def test_what_a_lost_worker_ran_is_closed_at_no_cost(side: Side, key: KeyId, wait_until: Any) -> None:
    grants = [await side.open(key) for _ in range(3)]
    await side.close(grants[0])
    side.lose()
    await wait_until(lambda: side.house.places.free == 1000)
    async with asyncio.timeout(30):
        while len(events := await side.events()) < 3:
            await asyncio.sleep(0.01)
    lost = [event for event in events if event.status == "failed"]
    assert {event.request_id for event in lost} == {grant.request_id for grant in grants[1:]}
    assert {(event.reason, event.cost_nano, event.billable) for event in lost} == {("worker_lost", 0, False)}
    assert await side.house.balance("ann") == USD - 7000
    await side.house.check()


# -- the line alone


@pytest.fixture
async def line(house: Any) -> AsyncIterator[Side]:
    """The side over the line alone."""
    async with over_the_line(house) as side:
        yield side


async def test_a_lost_line_refuses_everything(line: Side, key: KeyId, wait_until: Any) -> None:
    side = line
    assert side.client is not None
    assert side.desk is not None
    lost: list[bool] = []
    side.client.on_lost(lambda: lost.append(True))
    side.house.places.free = 0
    waiting = asyncio.create_task(side.open(key))
    await wait_until(lambda: side.house.places.waiting)
    side.desk.close()
    with pytest.raises(AuthorityLost):
        await waiting
    assert lost == [True]
    client = side.client
    for question in (
        side.books.find_principal(b"x" * 32),
        side.open(key),
        side.books.close(Close(RequestId("x"), 1, "completed", Usage())),
        side.books.find_problem(),
        side.scheduler.list_models(),
        side.scheduler.find_model("tiny"),
        side.scheduler.list_instances(),
        side.scheduler.find_door("4801"),
        side.scheduler.start(ModelId("tiny")),
        side.scheduler.stop(ModelId("tiny")),
        client.operate(OperatorCall("GET", "/", b"", b"")),
    ):
        assert (await refused(question)).code == "server_restarting"
    await wait_until(lambda: not side.house.places.waiting)


async def test_the_door_of_an_engine(side: Side) -> None:
    assert await side.scheduler.find_door("4801") == EngineDoor("http://127.0.0.1:4801", "secret")
    assert await side.scheduler.find_door("other") is None


async def test_management_is_answered_over_the_line(line: Side) -> None:
    call = OperatorCall("POST", "/admin/api/ü", b"a=1", b"\xff{", CALLER, "127.0.0.1", "text/csv")
    assert line.client is not None
    answer = await line.client.operate(call)
    assert (answer.status, answer.content_type) == (203, "text/odd")
    assert answer.body == b"\x00" + msgspec.json.encode(call)


async def test_a_worker_is_told_to_finish(line: Side, wait_until: Any) -> None:
    assert line.client is not None
    assert line.desk is not None
    told: list[float] = []
    ready: list[bool] = []
    line.client.on_drain(told.append)
    line.desk.on_ready(lambda: ready.append(True))
    line.client.tell_ready()
    line.desk.tell_drain(12.5)
    await wait_until(lambda: told and ready)
    assert (told, ready) == ([12.5], [True])


@pytest.mark.parametrize("system", ["sqlite"], indirect=True)
@pytest.mark.parametrize("busy_timeout_s", [60.0], indirect=True)
async def test_a_settlement_goes_on_when_its_worker_dies(line: Side, key: KeyId, foreign, wait_until) -> None:
    """The answer may have reached the client: what was being booked is booked."""
    grant = await line.open(key)
    other = foreign(line.house.database.path)
    other.run("BEGIN IMMEDIATE")
    closing = asyncio.create_task(line.close(grant))
    await wait_until(lambda: line.house.books.running() == 0)
    line.lose()
    with pytest.raises(AuthorityLost):
        await closing
    other.run("ROLLBACK")
    async with asyncio.timeout(30):
        while not (events := await line.events()):
            await asyncio.sleep(0.01)
    assert [(event.request_id, event.status) for event in events] == [(grant.request_id, "completed")]


async def test_a_waiting_request_of_a_lost_worker_gets_no_place(line: Side, key: KeyId, wait_until: Any) -> None:
    line.house.places.free = 0
    waiting = asyncio.create_task(line.open(key))
    await wait_until(lambda: line.house.places.waiting)
    line.lose()
    with pytest.raises(AuthorityLost):
        await waiting
    await wait_until(lambda: not line.house.places.waiting)
    await wait_until(lambda: line.house.books.running() == 0)
    assert await line.events() == []


async def test_a_frame_that_claims_to_be_endless_ends_the_line(line: Side, wait_until: Any) -> None:
    assert line.client is not None
    assert line.desk is not None
    line.client._line._transport.write(b"\xff\xff\xff\xff")
    await wait_until(line.desk.lost.is_set)


async def test_a_large_answer_passes_the_line(line: Side) -> None:
    assert line.client is not None
    answer = await line.client.operate(OperatorCall("GET", "/", b"", b"x" * 5_000_000))
    assert len(answer.body) > 5_000_000


async def test_a_bound_that_is_found_out_later_reaches_the_books(side: Side, key: KeyId) -> None:
    grant = await side.open(key)
    await side.books.extend(Extend(grant.request_id, 1, 30, 5_000))
    settled = await side.close(grant)
    assert settled.usage == Usage(40, 10, 15, 5)
    with pytest.raises(Refused) as refusal:
        await side.books.extend(Extend(grant.request_id, 1, 30))
    assert refusal.value.code == "conflict"
