"""Several nodes on one PostgreSQL: each limit holds for all of them, and who was silent too long owns nothing."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, select, text

from stentor.accounting import lending
from stentor.accounting.price import Price
from stentor.accounting.usage import sum_up
from stentor.control.jobs import Retention
from stentor.control.nodes import shared
from stentor.control.people.changes import Changes, KeyChange, LimitsChange
from stentor.control.people.sessions import Sessions
from stentor.control.wanted import KeyAsk
from stentor.core.books import Grant
from stentor.core.errors import Refused, StoreUnavailable
from stentor.core.ids import KeyId, ModelId
from stentor.people.sessions import digest_token
from stentor.people.values import KeyLimits
from stentor.store.leader import Leader
from stentor.store.schema import bucket, leases, nodes, usage_events
from tests.store.house import OPERATOR, USD, HeldClock, House

PRICE = 3000  # what ten tokens in and ten out cost
PARALLEL = 200


@pytest.fixture
def system() -> str:
    """Only here can there be two."""
    return "postgres"


async def storm(pair: tuple[House, House], key: KeyId) -> tuple[list[tuple[House, Grant]], list[Refused]]:
    """200 requests at once, every second one at the other node; none ends before all are decided."""

    async def ask(number: int) -> tuple[House, Grant] | Refused:
        house = pair[number % 2]
        try:
            return house, await house.open(key)
        except Refused as refusal:
            return refusal

    found = await asyncio.gather(*(ask(number) for number in range(PARALLEL)))
    return [one for one in found if isinstance(one, tuple)], [one for one in found if isinstance(one, Refused)]


async def settle(admitted: list[tuple[House, Grant]]) -> None:
    """Each uses exactly what it reserved."""
    for house, grant in admitted:
        await house.close(grant)


async def rows(house: House, table, *names: str) -> list[tuple]:
    query = select(*(table.c[name] for name in names)).order_by(*(table.c[name] for name in names))
    return [tuple(row) for row in await house.database.read(lambda connection: connection.execute(query).all())]


class Beating:
    """A lane of the books' in whose way a beat comes, each time."""

    def __init__(self, books) -> None:
        self.books, self.lane = books, books._borrowing

    def submit(self, item):
        future = self.lane.submit(item)
        self.books._collect_idle()
        return future


async def test_what_is_lent_while_a_beat_comes_by_is_returned(pair) -> None:
    first, second = pair
    await first.set_tier("payg", prepaid=True)
    await first.add_user("ann", 1000 * PRICE)
    key = await first.add_key("ann")
    first.books._borrowing = Beating(first.books)
    await first.close(await first.open(key))
    await first.books.return_spare()
    assert sum(row[0] for row in await rows(second, bucket, "leased")) == 0


async def test_what_is_lent_while_a_beat_comes_by_is_lost_with_the_rest(pair) -> None:
    """Whoever was silent too long owns nothing, or both nodes would spend it."""
    first, _ = pair
    await first.set_tier("payg", prepaid=True)
    await first.add_user("ann", 1000 * PRICE)
    key = await first.add_key("ann")
    first.books._borrowing = Beating(first.books)
    await first.close(await first.open(key))
    first.books._drop_leases()
    assert first.books.roll.keys[key].user.balance.lease == 0


async def test_a_balance_for_ten_admits_ten(pair) -> None:
    first, second = pair
    await first.set_tier("payg", prepaid=True)
    await first.add_user("ann", 10 * PRICE)
    key = await first.add_key("ann")
    admitted, refusals = await storm(pair, key)
    assert len(admitted) == 10
    assert {refusal.code for refusal in refusals} == {"insufficient_balance"}
    assert {house for house, _ in admitted} <= set(pair)
    await settle(admitted)
    assert await first.balance("ann") == 0
    assert await second.balance("ann") == 0
    with pytest.raises(Refused):
        await second.open(key)
    await first.check()


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"token_limit": 200}, "quota_exceeded"),
        ({"spending_limit_nano": 10 * PRICE}, "spending_limit"),
        ({"requests_per_minute": 10}, "rate_limit_exceeded"),
        ({"tokens_per_minute": 200}, "rate_limit_exceeded"),
        ({"concurrency": 10}, "rate_limit_exceeded"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
async def test_a_keys_limit_for_ten_admits_ten(pair, limits: dict[str, int], code: str) -> None:
    first, _ = pair
    await first.add_user("ann", USD)
    key = await first.add_key("ann", limits=KeyLimits(**limits))
    admitted, refusals = await storm(pair, key)
    assert (len(admitted), {refusal.code for refusal in refusals}) == (10, {code})
    await settle(admitted)
    await first.check()


@pytest.mark.parametrize("window", ["none", "day", "month"])
async def test_a_budget_for_ten_admits_ten(pair, window: str) -> None:
    first, _ = pair
    await first.add_user("ann", USD)
    project = await first.management.add_project(OPERATOR, "team", "ann")
    await first.management.set_budget(OPERATOR, project.id, window, 10 * PRICE)
    key = await first.add_key("ann", project=project.id)
    admitted, refusals = await storm(pair, key)
    assert (len(admitted), {refusal.code for refusal in refusals}) == (10, {"budget_exceeded"})
    await settle(admitted)
    await first.check()


async def test_an_answer_of_no_asked_length_is_cut_to_what_the_others_left(pair) -> None:
    first, second = pair
    await first.set_tier("payg", prepaid=True)
    await first.add_user("ann", 14 * PRICE)
    key = await first.add_key("ann")
    await first.close(await first.open(key))
    await first.books.return_spare()
    for _ in range(10):
        await second.close(await second.open(key))
    await second.books.return_spare()
    grant = await first.open(key, asked=None)  # it knows of one request alone, and thinks that there is plenty
    assert grant.output_cap == (3 * PRICE - 1000) // 200
    await first.close(grant, (10, grant.output_cap))
    assert await second.balance("ann") == 0
    await first.check()


@pytest.mark.parametrize("rule", ["requests_per_minute", "tokens_per_minute", "concurrency"])
async def test_a_tiers_limit_for_ten_admits_ten(pair, rule: str) -> None:
    first, _ = pair
    await first.set_tier("narrow", **{rule: 200 if rule == "tokens_per_minute" else 10})
    await first.add_user("ann", tier="narrow")
    keys = [await first.add_key("ann"), await first.add_key("ann")]
    halves = await asyncio.gather(*(storm(pair, key) for key in keys))
    admitted = [one for half in halves for one in half[0]]
    assert len(admitted) == 10
    await settle(admitted)


async def test_a_minutes_requests_come_back_after_a_minute(pair, clock: HeldClock) -> None:
    first, second = pair
    await first.add_user("ann", USD)
    key = await first.add_key("ann", limits=KeyLimits(requests_per_minute=3))
    for house in (first, second, first):
        await house.close(await house.open(key))
        clock.advance(10)
    for house in pair:
        with pytest.raises(Refused):
            await house.open(key)
    clock.advance(31)  # the first one is more than sixty seconds ago, the others aren't
    await second.close(await second.open(key))
    for house in pair:
        with pytest.raises(Refused):
            await house.open(key)


def borrow_while_seconds_turn(clock: HeldClock, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Each trip to the database takes the next of these seconds away."""
    turns: list[float] = []

    def borrow_slowly(*parts: Any) -> list[lending.Grant]:
        grants = lending.borrow(*parts)
        if turns:
            clock.advance(turns.pop())
        return grants

    monkeypatch.setattr(shared, "borrow", borrow_slowly)
    return turns


async def test_ten_of_a_storm_are_admitted_though_seconds_turn(pair, clock, monkeypatch) -> None:
    first, _ = pair
    await first.add_user("ann", USD)
    key = await first.add_key("ann", limits=KeyLimits(requests_per_minute=10))
    borrow_while_seconds_turn(clock, monkeypatch).extend([1] * 4)
    admitted, refusals = await storm(pair, key)
    assert (len(admitted), {refusal.code for refusal in refusals}) == (10, {"rate_limit_exceeded"})
    await settle(admitted)


async def test_a_request_counts_once_though_the_second_turns_while_it_is_borrowed(pair, clock, monkeypatch) -> None:
    first, second = pair
    await first.add_user("ann", USD)
    key = await first.add_key("ann", limits=KeyLimits(requests_per_minute=4))
    turns = borrow_while_seconds_turn(clock, monkeypatch)
    for house, times in ((first, 1), (second, 3), (first, 2)):
        turns.extend([1] * times)
        await house.close(await house.open(key))
    await second.close(await second.open(key))
    for house in pair:
        with pytest.raises(Refused):
            await house.open(key)


async def test_a_request_that_was_borrowed_and_not_served_does_not_count(pair, clock) -> None:
    first, second = pair
    await first.add_user("ann", USD)
    key = await first.add_key("ann", limits=KeyLimits(requests_per_minute=2))
    first.places.problem = Refused("overloaded", "no place")
    for _ in range(3):
        with pytest.raises(Refused, match="no place"):
            await first.open(key)
        clock.advance(1)
    first.places.problem = None
    await first.close(await first.open(key))
    await second.close(await second.open(key))
    for house in pair:
        with pytest.raises(Refused, match="requests"):
            await house.open(key)


async def test_an_answer_that_is_cut_to_what_is_left_uses_up_one_request(pair) -> None:
    first, second = pair
    await first.set_tier("payg", prepaid=True)
    await first.add_user("ann", 15 * PRICE)
    key = await first.add_key("ann", limits=KeyLimits(requests_per_minute=13))
    await first.close(await first.open(key))
    await first.books.return_spare()
    for _ in range(10):
        await second.close(await second.open(key))
    await second.books.return_spare()
    await first.close(await first.open(key, asked=None), (10, 1))
    await first.close(await first.open(key, asked=None), (10, 1))
    with pytest.raises(Refused, match="requests"):
        await first.open(key, asked=None)


async def test_places_that_are_free_again_serve_the_other_node(pair, wait_until) -> None:
    first, second = pair
    await first.add_user("ann", USD)
    key = await first.add_key("ann", limits=KeyLimits(concurrency=1))
    for house, other in ((first, second), (second, first)):
        grant = await house.open(key)
        with pytest.raises(Refused):
            await other.open(key)
        await house.close(grant)
        await eventually(lambda other=other: other.open(key), other)


async def eventually(ask: Callable[[], object], house: House) -> None:
    """What lies idle comes back within two beats."""
    async with asyncio.timeout(30):
        while True:
            try:
                grant = await ask()  # type: ignore[misc]
            except Refused:
                house.clock.advance(1)
                await asyncio.sleep(0.1)
            else:
                await house.close(grant)
                return


async def test_plenty_is_borrowed_in_slabs_and_comes_back(pair) -> None:
    first, second = pair
    await first.set_tier("payg", prepaid=True)
    await first.add_user("ann", 10_000 * PRICE)
    key = await first.add_key("ann")
    for _ in range(20):
        await first.close(await first.open(key))
    lent = [row for row in await rows(first, leases, "kind", "node_id", "amount") if row[0] == "balance"]
    assert len(lent) == 1
    assert lent[0][1] == first.database.node_id
    assert PRICE < lent[0][2] < 1000 * PRICE
    async with asyncio.timeout(30):
        while any(row[1] for row in await rows(first, bucket, "kind", "leased")):
            await asyncio.sleep(0.1)
    assert await second.balance("ann") == 9_980 * PRICE
    await first.check()


async def test_a_node_that_stops_gives_back_what_it_borrowed(pair) -> None:
    first, second = pair
    await first.set_tier("payg", prepaid=True)
    await first.add_user("ann", 10_000 * PRICE)
    key = await first.add_key("ann")
    await first.close(await first.open(key))
    first.management.close()
    await asyncio.to_thread(first.database.close)
    assert not any(row[1] for row in await rows(second, bucket, "kind", "leased"))
    assert await rows(second, leases, "amount") == []


async def silence(house: House, other: House) -> None:
    """The other nodes see ``house`` as one that has been silent for too long."""
    statement = text("UPDATE nodes SET lease_until_us = 1 WHERE id = :id")

    def reap(connection: Connection) -> None:
        connection.execute(statement, {"id": house.database.node_id})
        other.database._writer.reap(connection)

    await other.database.write(reap)


async def test_a_silent_node_has_lost_what_it_borrowed(pair) -> None:
    first, second = pair
    await first.set_tier("payg", prepaid=True)
    await first.add_user("ann", 10 * PRICE)
    key = await first.add_key("ann", limits=KeyLimits(token_limit=1000))
    running = [await first.open(key) for _ in range(6)]
    await silence(first, second)
    taken = [await second.open(key) for _ in range(10)]  # all of it is the second's now
    for grant in running:
        with contextlib.suppress(StoreUnavailable):  # whoever is the first to find out
            await first.close(grant)
    for grant in taken:
        await second.close(grant)
    assert await second.balance("ann") == 0
    async with asyncio.timeout(30):
        while len(await rows(second, usage_events, "cost_nano", "absorbed_nano")) < 16:
            await asyncio.sleep(0.05)
    costs = await rows(second, usage_events, "cost_nano", "absorbed_nano")
    assert sum(cost for cost, _ in costs) == 10 * PRICE
    assert sum(absorbed for _, absorbed in costs) == 6 * PRICE
    with pytest.raises(Refused):
        await first.open(key)
    await second.check()


async def test_a_charge_that_is_undone_gives_nothing_back_of_an_earlier_life(pair) -> None:
    """The node has learnt that its leases are lost, and only then what became of a settlement made before that."""
    first, second = pair
    await first.set_tier("payg", prepaid=True)
    await first.add_user("ann", 10 * PRICE)
    key = await first.add_key("ann", limits=KeyLimits(token_limit=1000))
    running = [await first.open(key) for _ in range(2)]
    await silence(first, second)
    epoch = first.database.epoch
    closing = asyncio.create_task(first.close(running[0]))
    await asyncio.sleep(0)
    for _ in range(3000):  # without the loop, which is to hear of it later
        if first.database.epoch != epoch:
            break
        time.sleep(0.01)
    assert first.database.epoch != epoch
    first.books._drop_leases()
    with contextlib.suppress(StoreUnavailable):
        await closing
    account = first.books.roll.keys[key]
    assert (account.user.balance.lease, account.quota.lease) == (0, 0)
    await first.close(running[1])
    async with asyncio.timeout(30):
        while len(await rows(second, usage_events, "cost_nano")) < 2:
            await asyncio.sleep(0.05)
    await second.check()


async def test_a_node_given_up_begins_a_new_life_and_goes_on(pair) -> None:
    first, second = pair
    await first.set_tier("payg", prepaid=True)
    await first.add_user("ann", 10_000 * PRICE)
    key = await first.add_key("ann")
    await first.close(await first.open(key))
    await silence(first, second)
    epoch = first.database.epoch
    async with asyncio.timeout(30):
        while True:
            try:
                await first.close(await first.open(key))
                break
            except Refused:
                await asyncio.sleep(0.05)
    assert first.database.epoch > epoch
    assert len(await rows(second, nodes, "id")) == 2
    await second.check()


# -- what one node changes, all know within a second -------------------------------------------------------------------


async def within(look: Callable[[], bool]) -> None:
    """Holds soon: within the second that is promised, on a machine that has time."""
    async with asyncio.timeout(30):
        while not look():
            await asyncio.sleep(0.02)


async def test_a_key_revoked_at_one_node_ends_at_the_other(pair) -> None:
    first, second = pair
    await first.add_user("ann", USD)
    key = await first.add_key("ann")
    told: list[KeyId] = []
    second.books.on_revoked(told.append)
    await second.open(key)
    await first.management.revoke_key(OPERATOR, key)
    await within(lambda: key in told)
    with pytest.raises(Refused) as caught:
        await second.open(key)
    assert caught.value.code == "invalid_api_key"


async def test_a_key_narrowed_or_widened_at_one_node_is_so_at_the_other(pair) -> None:
    first, second = pair
    await first.add_user("ann", USD)
    ask = KeyAsk("ann", expires_us=first.clock.now_us() + 86_400_000_000)
    made = await first.management.add_key(OPERATOR, ask)
    await second.books.find_principal(second.digest(made.key))
    changed, ended = list[KeyId](), list[KeyId]()
    second.books.on_changed(changed.append)
    second.books.on_revoked(ended.append)
    changes = Changes(first.database, first.books, first.management, first.clock)
    await changes.change_key(OPERATOR, made.made.id, KeyChange(endpoints=("/v1/models",)))
    await within(lambda: ended == [made.made.id])
    await changes.change_key(OPERATOR, made.made.id, KeyChange(endpoints=("/v1/models", "/v1/embeddings")))
    await within(lambda: len(changed) == 2)
    assert ended == [made.made.id]


def make_sessions(house: House) -> Sessions:
    sessions = Sessions(house.database, house.books, house.management, house.keyring, house.clock)
    sessions.follow(house.books.follower)  # type: ignore[attr-defined]
    return sessions


async def test_a_session_ends_at_the_other_node_with_the_key_that_opened_it(pair) -> None:
    first, second = pair
    await first.add_user("ann")
    made = await first.management.add_key(OPERATOR, KeyAsk("ann"))
    token = (await make_sessions(first).exchange(made.key, ("203.0.113.7", ""))).token
    sessions = make_sessions(second)
    assert await sessions.find_session(digest_token(token), "user") is not None
    assert made.made.id not in second.books.roll.keys  # a session's use alone doesn't load the key
    await first.management.revoke_key(OPERATOR, made.made.id)
    async with asyncio.timeout(30):
        while await sessions.find_session(digest_token(token), "user") is not None:
            await asyncio.sleep(0.02)


async def test_a_session_that_is_used_at_one_node_lives_on_at_the_other(pair) -> None:
    first, second = pair
    await first.add_user("ann")
    made = await first.management.add_key(OPERATOR, KeyAsk("ann"))
    here, there = make_sessions(first), make_sessions(second)
    token = digest_token((await here.exchange(made.key, ("203.0.113.7", ""))).token)
    assert await there.find_session(token, "user") is not None
    for _ in range(2):
        first.clock.advance(11 * 3600)
        assert await here.find_session(token, "user") is not None
    assert await there.find_session(token, "user") is not None
    first.clock.advance(12 * 3600)
    for sessions in (here, there):
        assert await sessions.find_session(token, "user") is None


async def test_a_key_made_at_one_node_works_at_the_other_though_it_was_asked_for_before(pair) -> None:
    first, second = pair
    await first.add_user("ann", USD)
    made = await first.management.add_key(OPERATOR, KeyAsk("ann"))
    digest = second.digest(made.key)
    assert (await second.books.find_principal(digest)) is not None
    unknown = second.digest("sk-" + "x" * 48)
    assert await second.books.find_principal(unknown) is None


async def test_a_user_shut_out_at_one_node_is_out_at_the_other(pair) -> None:
    first, second = pair
    await first.add_user("ann", USD)
    key = await first.add_key("ann")
    told: list[KeyId] = []
    second.books.on_revoked(told.append)
    await second.close(await second.open(key))
    await first.change_user("ann", active=False)
    await within(lambda: key in told)
    await first.change_user("ann", active=True)
    await within(lambda: second.books.roll.keys[key].user.terms.active)
    await second.close(await second.open(key))


async def test_money_paid_in_at_one_node_is_spent_at_the_other(pair) -> None:
    first, second = pair
    await first.add_user("ann", PRICE)
    key = await first.add_key("ann")
    await second.close(await second.open(key))
    with pytest.raises(Refused):
        await second.open(key)
    await first.management.top_up(OPERATOR, "ann", PRICE)
    await within(lambda: second.books.roll.keys[key].user.balance.limit == 2 * PRICE)
    await second.close(await second.open(key))
    await first.check()


async def test_limits_set_at_one_node_hold_and_count_at_the_other(pair) -> None:
    first, second = pair
    await first.add_user("ann", USD)
    project = await first.management.add_project(OPERATOR, "team", "ann")
    key = await first.add_key("ann", project=project.id)
    for house in (*pair, second):
        await house.close(await house.open(key))
    await first.management.set_budget(OPERATOR, project.id, "month", 5 * PRICE)
    account = second.books.roll.projects[project.id]
    await within(lambda: "month" in account.budgets and account.budgets["month"].used == 3 * PRICE)
    await first.set_tier("payg", prepaid=True, requests_per_minute=100)
    admitted, refusals = await storm(pair, key)
    assert (len(admitted), {refusal.code for refusal in refusals}) == (2, {"budget_exceeded"})
    await settle(admitted)
    await first.check()
    await first.management.set_budget(OPERATOR, project.id, "month", None)
    await within(lambda: "month" not in account.budgets)
    await second.close(await second.open(key))
    await first.check()


async def test_a_key_rotated_at_one_node_shares_its_limits_with_the_old_one_at_the_other(pair) -> None:
    first, second = pair
    await first.add_user("ann", USD)
    old = await first.add_key("ann", limits=KeyLimits(token_limit=80))
    await second.close(await second.open(old))
    new = (await first.management.rotate_key(OPERATOR, old, grace_s=3600)).made.id
    await second.close(await second.open(old))
    await first.close(await first.open(new))
    await first.books.return_spare()
    await second.books.return_spare()
    await second.close(await second.open(new))
    for house in pair:
        for key in (old, new):
            with pytest.raises(Refused, match="80 tokens in all"):
                await house.open(key)
    await first.check()
    changes = Changes(first.database, first.books, first.management, first.clock)
    await changes.change_key(OPERATOR, new, KeyChange(limits=LimitsChange(token_limit=100)))
    account = second.books.roll.keys[old]
    await within(lambda: account.quota.limit == 100)
    await second.close(await second.open(old))
    with pytest.raises(Refused):
        await first.open(new)
    await first.check()


async def test_a_price_given_at_one_node_is_charged_at_the_other(pair) -> None:
    first, second = pair
    await first.add_user("ann", USD)
    key = await first.add_key("ann")
    await second.close(await second.open(key))
    await first.management.add_price(OPERATOR, "tiny", Price(0, 7_000_000, 9_000_000))
    await within(lambda: second.books.prices.find_own_price(ModelId("tiny"), second.clock.now_us()) is not None)
    settled = await second.close(await second.open(key))
    assert settled.cost_nano == 160


async def test_what_is_paid_in_after_usage_was_folded_elsewhere_can_be_spent(pair, monkeypatch) -> None:
    monkeypatch.setattr("stentor.accounting.usage.table.BLOCK", 2)
    first, second = pair
    await first.set_tier("payg", prepaid=True)
    await first.add_user("ann", 9 * PRICE)
    key = await first.add_key("ann")
    for _ in range(9):
        await second.close(await second.open(key))
    first.clock.advance(3 * 86_400)
    while await first.database.maintain(lambda connection: sum_up(connection, None)):
        pass
    assert await Retention(Leader(first.database, "jobs"), first.books, first.clock, 1).fold() > 0
    await first.management.top_up(OPERATOR, "ann", PRICE)
    balance = second.books.roll.keys[key].user.balance
    await within(lambda: balance.limit - balance.used == PRICE)
    await second.close(await second.open(key))
    assert await second.balance("ann") == 0
    await first.check()


# -- a budget's window ends --------------------------------------------------------------------------------------------

DAY_S = 86_400


async def budgeted(house: House, limit_nano: int) -> KeyId:
    """A key with a budget for each day."""
    await house.set_tier("payg", prepaid=True)
    await house.add_user("ann", 100_000 * PRICE)
    return await house.add_key("ann", limits=KeyLimits(budget_day_nano=limit_nano))


async def test_what_runs_over_midnight_is_paid_from_the_new_days_budget(pair, clock: HeldClock) -> None:
    first, second = pair
    key = await budgeted(first, 10 * PRICE)
    before = await first.balance("ann")
    running = [await house.open(key) for house in (first, second, first)]
    clock.advance(DAY_S)
    for house, grant in zip((first, second, first), running, strict=True):
        settled = await house.close(grant)
        assert (settled.cost_nano, settled.absorbed_nano) == (PRICE, 0)
    assert await first.balance("ann") == before - 3 * PRICE
    await first.check()


async def test_what_was_borrowed_of_a_day_that_is_over_goes_back_to_that_day(pair, clock: HeldClock) -> None:
    first, _ = pair
    key = await budgeted(first, 10_000 * PRICE)
    await first.close(await first.open(key))
    running = await first.open(key)
    clock.advance(DAY_S)
    await first.close(await first.open(key))
    await first.books.return_spare()
    await first.close(running)
    await first.books.return_spare()
    assert [row for row in await rows(first, bucket, "kind", "window_start", "leased") if row[2]] == []
    assert [row for row in await rows(first, leases, "kind", "window_start", "amount") if row[2]] == []
    await first.check()


class Midnight:
    """A lane of the books' over which a day ends."""

    def __init__(self, books, clock: HeldClock) -> None:
        self.books, self.clock, self.lane = books, clock, books._borrowing

    def submit(self, item):
        future = self.lane.submit(item)
        if self.clock is not None:
            self.clock.advance(DAY_S)
            for want in item.wants:
                if want.key[0] == "key_budget":
                    want.limit.turn(self.clock.now_us())
            self.clock = None
        return future


async def test_what_is_lent_as_a_day_ends_is_not_the_next_days(pair, clock: HeldClock) -> None:
    first, _ = pair
    key = await budgeted(first, 10 * PRICE)
    first.books._borrowing = Midnight(first.books, clock)
    admitted = [(first, await first.open(key))]
    for number in range(1, 20):
        house = pair[number % 2]
        with contextlib.suppress(Refused):
            admitted.append((house, await house.open(key)))
    assert len(admitted) == 10
    await settle(admitted)
    await first.check()
