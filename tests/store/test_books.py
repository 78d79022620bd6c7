"""The books: open and close, in every order and with every kind of bad luck."""

import asyncio
import threading

import msgspec
import pytest
from sqlalchemy import Connection

from stentor.accounting.settings import AccountingSettings
from stentor.accounting.usage import UsageEvent, UsageFilter
from stentor.audit.log import Actor
from stentor.control.nodes.shared import SharedBooks
from stentor.control.wanted import KeyAsk
from stentor.core.books import Close, Open, Usage
from stentor.core.errors import Refused, StoreUnavailable
from stentor.core.ids import KeyId, RequestId, new_request_id
from stentor.people.values import KeyLimits

USD = 1_000_000_000
OPERATOR = Actor("tester", "cli")


async def events(house) -> list[UsageEvent]:
    return (await house.management.list_usage(UsageFilter())).events


async def refused(awaitable) -> Refused:
    with pytest.raises(Refused) as caught:
        await awaitable
    return caught.value


@pytest.fixture
async def key(house) -> KeyId:
    """A key of a prepaid user with one dollar and no other limit."""
    await house.set_tier("payg", prepaid=True)
    await house.add_user("ann", USD)
    return await house.add_key("ann")


async def test_a_closed_request_is_an_event_and_a_charge(house, key: KeyId) -> None:
    grant = await house.open(key, 50, 20, stream=True, client_request_id="mine")
    assert (grant.model, grant.output_cap, grant.context_size, grant.url) == ("tiny", 20, 8192, "http://127.0.0.1:1")
    house.clock.advance(1.5)
    settled = await house.close(grant, (40, 15), latency_us=1_500_000, first_token_us=200_000, overhead_us=300)
    assert (settled.cost_nano, settled.absorbed_nano) == (40 * 100 + 15 * 200, 0)
    assert await house.balance("ann") == USD - settled.cost_nano
    (event,) = await events(house)
    assert (event.request_id, event.attempt, event.client_request_id) == (grant.request_id, 1, "mine")
    assert (event.input_tokens, event.output_tokens, event.status, event.billable) == (40, 15, "completed", True)
    assert (event.cost_nano, event.charged_nano, event.price_version) == (settled.cost_nano, settled.cost_nano, 1)
    assert (event.settled_us - event.opened_us, event.latency_us, event.first_token_us) == (1_500_000,) * 2 + (200_000,)
    assert (event.stream, event.endpoint, event.engine, event.overhead_us) == (
        True,
        "/v1/chat/completions",
        "llama",
        300,
    )
    assert house.places.free == 1000
    await house.check()


async def test_a_name_is_resolved_before_anything_is_charged(house, key: KeyId) -> None:
    assert (await house.open(key, model="small")).model == "tiny"
    assert (await refused(house.open(key, model="huge"))).code == "model_not_found"
    limited = await house.add_key("ann", models=("other",))
    assert (await refused(house.open(limited))).code == "model_not_found"


async def test_each_medium_reserves_the_most_that_one_can_cost(house, key: KeyId) -> None:
    house.places.model = msgspec.structs.replace(house.places.model, abilities=("text", "image"), media_bound=1000)
    ask = Open(new_request_id(), 1, key, "/v1/chat/completions", "tiny", 50, 20, needs=("text", "image"), media=3)
    grant = await house.books.open(ask)
    assert house.books.roll.keys[key].user.balance.held == (50 + 3 * 1000) * 100 + 20 * 200
    await house.close(grant, (2500, 15))
    await house.check()


async def test_a_missing_ability_is_named(house, key: KeyId) -> None:
    refusal = await refused(house.open(key, needs=("text", "image")))
    assert refusal.code == "missing_ability"
    assert "'image'" in refusal.message


async def test_an_endpoint_that_the_key_may_not_call_is_refused(house, key: KeyId) -> None:
    narrow = await house.add_key("ann", endpoints=("/v1/embeddings",))
    assert (await refused(house.open(narrow))).code == "insufficient_scope"


async def test_closing_twice_charges_once_and_says_the_same(house, key: KeyId) -> None:
    grant = await house.open(key)
    first = await house.close(grant)
    again = await house.close(grant, (5000, 5000))
    assert again == first
    assert await house.balance("ann") == USD - first.cost_nano
    await house.start_books()  # after a restart the store remembers
    assert await house.close(grant, (5000, 5000)) == first
    assert len(await events(house)) == 1
    assert house.places.free == 1000
    await house.check()


async def test_two_closes_at_once_charge_once(house, key: KeyId) -> None:
    grant = await house.open(key)
    results = await asyncio.gather(*(house.close(grant, (10 * n, 10)) for n in range(1, 6)))
    assert all(result == results[0] for result in results)
    assert results[0].usage.input_tokens == 10
    assert len(await events(house)) == 1
    assert house.places.free == 1000


async def test_an_attempt_that_was_never_opened_cannot_be_closed(house, key: KeyId) -> None:
    end = Close(new_request_id(), 1, "completed", Usage(10**6, 0, 10**6))
    assert (await refused(house.books.close(end))).code == "not_found"
    assert await events(house) == []


async def test_an_attempt_is_open_once(house, key: KeyId) -> None:
    grant = await house.open(key)
    again = await refused(house.open(key, request_id=grant.request_id))
    assert again.code == "conflict"
    second = await house.open(key, request_id=grant.request_id, attempt=2)
    await house.close(grant, outcome="failed", reason="engine_failed", billable=False)
    await house.close(second)
    assert [(e.attempt, e.status, e.cost_nano > 0) for e in reversed(await events(house))] == [
        (1, "failed", False),
        (2, "completed", True),
    ]
    await house.check()


async def test_a_duplicate_in_the_store_charges_nothing(house, key: KeyId) -> None:
    grant = await house.open(key)
    first = await house.close(grant)
    balance = await house.balance("ann")
    await house.start_books()
    again = await house.open(key, request_id=grant.request_id)  # the new books can't know that it was used
    assert await house.close(again, (1000, 1000)) == first
    assert await house.balance("ann") == balance
    account = house.books.roll.keys[key]
    assert account.user.balance.free() == balance
    await house.check()


async def test_unbillable_ends_cost_nothing_and_count_nothing(house) -> None:
    await house.add_user("sub", tier="sub")
    key = await house.add_key("sub", limits=KeyLimits(token_limit=100))
    settled = await house.close(await house.open(key), (30, 30), outcome="failed", reason="engine", billable=False)
    assert settled.cost_nano == 0
    assert house.books.roll.keys[key].quota.used == 0
    (event,) = await events(house)
    assert (event.status, event.reason, event.billable, event.input_tokens) == ("failed", "engine", False, 30)
    await house.check()


async def test_a_tier_that_bills_no_balance_still_knows_the_cost(house) -> None:
    await house.add_user("sub", tier="sub")
    settled = await house.close(await house.open(await house.add_key("sub")))
    (event,) = await events(house)
    assert settled.cost_nano > 0
    assert (event.cost_nano, event.charged_nano) == (settled.cost_nano, 0)
    assert await house.balance("sub") == 0
    await house.check()


async def test_texts_are_counted_where_the_engine_counted_nothing(house, key: KeyId) -> None:
    grant = await house.open(key, 100, 100)
    end = Close(grant.request_id, 1, "cancelled", Usage(), count_input="hello world " * 10, count_output="hi")
    first, second = await asyncio.gather(house.books.close(end), house.books.close(end))
    assert first == second
    assert first.usage.estimated
    assert (first.usage.input_tokens, first.usage.output_tokens) == (21, 1)
    (event,) = await events(house)
    assert (event.estimated, event.input_tokens, event.output_tokens) == (True, 21, 1)


@pytest.mark.parametrize(
    "usage", [Usage(-5, 0, 10), Usage(5, 10, 1), Usage(5, 0, -1), Usage(2**70, 0, 1), Usage(1, 0, 1, 5)]
)
async def test_impossible_usage_is_corrected_and_never_pays_anybody(house, key: KeyId, usage: Usage) -> None:
    settled = await house.close(await house.open(key), usage=usage)
    (event,) = await events(house)
    assert settled.cost_nano >= 0
    assert 0 <= event.cached_tokens <= event.input_tokens <= 8192
    assert 0 <= event.reasoning_tokens <= event.output_tokens <= 8192
    await house.check()


# -- waiting for a place -----------------------------------------------------------------------------------------------


async def test_a_request_waits_for_a_place_and_holds_its_reservation(house, key: KeyId, wait_until) -> None:
    house.places.free = 1
    first = await house.open(key)
    waiting = asyncio.ensure_future(house.open(key))
    await wait_until(lambda: house.places.waiting)
    assert house.books.roll.keys[key].gauge.running == 2
    await house.close(first)
    grant = await waiting
    assert grant.queued_us == 7
    await house.close(grant)
    assert house.books.roll.keys[key].gauge.running == 0


async def test_a_client_that_leaves_the_queue_leaves_nothing(house, key: KeyId, wait_until) -> None:
    house.places.free = 0
    await house.books.roll.find(key)
    account = house.books.roll.keys[key]
    waiting = asyncio.ensure_future(house.open(key))
    await wait_until(lambda: house.places.waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (account.gauge.running, account.user.balance.held) == (0, 0)
    assert await events(house) == []
    assert house.books.running() == 0


async def test_a_refused_place_gives_everything_back(house, key: KeyId) -> None:
    house.places.problem = Refused("model_unavailable", "it keeps crashing")
    assert (await refused(house.open(key))).code == "model_unavailable"
    account = house.books.roll.keys[key]
    assert (account.gauge.running, account.user.balance.held) == (0, 0)


async def test_a_key_revoked_while_it_waits_gets_no_place(house, key: KeyId, wait_until) -> None:
    house.places.free = 0
    waiting = asyncio.ensure_future(house.open(key))
    await wait_until(lambda: house.places.waiting)
    await house.management.revoke_key(OPERATOR, key)
    house.places.release("one", 1, suspect=False)
    assert (await refused(waiting)).code == "invalid_api_key"
    assert house.places.free == 1


async def test_a_request_without_a_place_cannot_be_settled(house, key: KeyId, wait_until) -> None:
    house.places.free = 0
    request_id = new_request_id()
    waiting = asyncio.ensure_future(house.open(key, request_id=request_id))
    await wait_until(lambda: house.places.waiting)
    assert (await refused(house.books.close(Close(request_id, 1, "completed", Usage(9, 0, 9))))).code == "conflict"
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_a_suspect_instance_is_reported_with_its_place(house, key: KeyId) -> None:
    await house.close(await house.open(key), outcome="failed", billable=False, instance_suspect=True)
    assert house.places.suspects == 1


# -- the store in trouble ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["sqlite"], indirect=True)
async def test_a_commit_that_fails_charges_nothing_and_frees_the_place(house, key: KeyId, foreign) -> None:
    grant = await house.open(key)
    account = house.books.roll.keys[key]
    other = foreign(house.database.path)
    other.run("BEGIN IMMEDIATE")
    closing = asyncio.ensure_future(house.close(grant))
    await asyncio.sleep(0.02)
    assert house.places.free == 1000  # at once, not after the commit
    with pytest.raises(StoreUnavailable):
        await closing
    with pytest.raises(StoreUnavailable):
        await house.close(grant)
    assert (account.user.balance.free(), account.user.balance.held) == (USD, 0)
    assert await house.books.find_problem() is not None
    other.run("COMMIT")
    async with asyncio.timeout(30):
        while await house.books.find_problem() is not None:
            await asyncio.sleep(0.01)
    assert await events(house) == []
    await house.close(await house.open(key))
    await house.check()


@pytest.mark.parametrize("system", ["sqlite"], indirect=True)
@pytest.mark.parametrize("written", [False, True])
async def test_a_caller_that_leaves_during_the_commit_changes_nothing(
    house, key: KeyId, monkeypatch, written: bool
) -> None:
    """Whether the group is written or not, memory follows it, not the caller."""
    account = await house.books.roll.find(key)
    grant = await house.open(key)
    work, begun, left = house.books._lane.work, threading.Event(), threading.Event()

    def slow(connection: Connection, items: list) -> list:
        begun.set()
        left.wait(30)
        if not written:
            raise StoreUnavailable("the disk is full")
        return work(connection, items)

    monkeypatch.setattr(house.books._lane, "work", slow)
    closing = asyncio.ensure_future(house.close(grant))
    assert await asyncio.to_thread(begun.wait, 30)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    left.set()
    await house.database.write(lambda _: None)  # comes behind it
    assert account.user.balance.free() == await house.balance("ann")
    assert len(await events(house)) == int(written)


async def test_a_key_that_cannot_be_read_is_not_a_wrong_key(house) -> None:
    house.database.close()
    with pytest.raises(StoreUnavailable):
        await house.books.find_principal(bytes(32))


# -- lost workers ------------------------------------------------------------------------------------------------------


async def test_a_lost_workers_requests_are_closed_at_no_cost(house, key: KeyId, wait_until) -> None:
    house.places.free = 3
    ask = Open(new_request_id(), 1, key, "/v1/chat/completions", "tiny", 10, 10)
    mine = await house.books.open(ask, "worker-1")
    other = await house.books.open(msgspec.structs.replace(ask, request_id=new_request_id()), "worker-2")
    house.clock.advance(2)
    house.books.abandon("worker-1")
    assert house.places.free == 2
    settled = await house.close(mine, (500, 500))  # comes too late
    assert settled.cost_nano == 0
    (event,) = await events(house)
    assert (event.request_id, event.status, event.reason) == (mine.request_id, "failed", "worker_lost")
    assert (event.cost_nano, event.billable, event.latency_us) == (0, False, 2_000_000)
    assert (await house.close(other)).cost_nano > 0
    assert await house.balance("ann") == USD - 3000
    await house.check()


async def test_a_lost_workers_waiting_request_gets_no_place(house, key: KeyId, wait_until) -> None:
    house.places.free = 0
    ask = Open(new_request_id(), 1, key, "/v1/chat/completions", "tiny", 10, 10)
    waiting = asyncio.ensure_future(house.books.open(ask, "worker-1"))
    await wait_until(lambda: house.places.waiting)
    house.books.abandon("worker-1")
    house.places.release("one", 1, suspect=False)
    await refused(waiting)
    assert house.places.free == 1
    assert house.books.running() == 0


# -- who ---------------------------------------------------------------------------------------------------------------


async def test_a_key_is_found_by_its_keyed_hash(house) -> None:
    await house.add_user("ann")
    made = await house.management.add_key(OPERATOR, KeyAsk("ann", scopes=("inference", "admin"), models=("tiny",)))
    principal = await house.books.find_principal(house.digest(made.key))
    assert principal is not None
    assert (principal.key_id, principal.tier_id, principal.key_hint) == (made.made.id, "payg", made.key[-4:])
    assert (principal.scopes, principal.models) == ({"inference", "admin"}, {"tiny"})
    assert await house.books.find_principal(house.digest(made.key[:-1] + "!")) is None
    assert await house.books.find_principal(bytes(32)) is None


async def test_a_key_ends_with_its_date(house, key: KeyId) -> None:
    made = await house.management.add_key(OPERATOR, KeyAsk("ann", expires_us=house.clock.now_us() + 60_000_000))
    digest = house.digest(made.key)
    principal = await house.books.find_principal(digest)
    assert principal.expires_us == house.clock.now_us() + 60_000_000
    house.clock.advance(60)
    assert await house.books.find_principal(digest) is None
    assert (await refused(house.open(made.made.id))).code == "invalid_api_key"


async def test_an_unknown_key_is_asked_for_once_until_keys_change(house, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.add_user("ann")
    if isinstance(house.books, SharedBooks):
        house.books.follower.stop()  # it reads, too, and takes the user for a change
    reads = 0
    read = house.database.read

    async def counted(work):
        nonlocal reads
        reads += 1
        return await read(work)

    monkeypatch.setattr(house.database, "read", counted)
    for _ in range(3):
        assert await house.books.find_principal(bytes(32)) is None
    assert reads == 1
    made = await house.management.add_key(OPERATOR, KeyAsk("ann"))
    assert await house.books.find_principal(house.digest(made.key)) is not None
    assert await house.books.find_principal(bytes(32)) is None
    assert reads == 3


async def test_a_key_made_while_it_is_looked_up_is_found(house, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read began before the key was there and ends after it was made."""
    await house.add_user("ann")
    read, made, text = house.database.read, [], "sk-" + "a" * 48
    monkeypatch.setattr("stentor.control.management.new_key", lambda: text)

    async def slow(work):
        result = await read(work)
        if not made:
            made.append(None)
            made.append(await house.management.add_key(OPERATOR, KeyAsk("ann")))
        return result

    monkeypatch.setattr(house.database, "read", slow)
    assert await house.books.find_principal(house.digest(text)) is not None


async def test_a_top_up_during_the_first_load_is_counted_once(house, key: KeyId, monkeypatch) -> None:
    await house.start_books()
    read, done = house.database.read, []

    async def slow(work):
        result = await read(work)
        if not done:
            done.append(None)
            await house.management.top_up(OPERATOR, "ann", 5 * USD)
        return result

    monkeypatch.setattr(house.database, "read", slow)
    account = await house.books.roll.find(key)
    assert account.user.balance.free() == 6 * USD


async def test_what_was_read_before_midnight_counts_against_that_day(house, key: KeyId, monkeypatch) -> None:
    limited = await house.add_key("ann", limits=KeyLimits(budget_day_nano=3000))
    await house.close(await house.open(limited))
    await house.start_books()
    read, done = house.database.read, []

    async def slow(work):
        result = await read(work)
        if not done:
            done.append(house.clock.advance(86_400))
        return result

    monkeypatch.setattr(house.database, "read", slow)
    await house.close(await house.open(limited))
    await house.check()


async def test_many_first_looks_at_a_key_read_it_once(house, key: KeyId) -> None:
    await house.start_books()
    accounts = await asyncio.gather(*(house.books.roll.find(key) for _ in range(50)))
    assert len({id(account) for account in accounts}) == 1


async def test_a_second_key_shares_the_balance_in_memory(house, key: KeyId) -> None:
    grant = await house.open(key, 10, 10)
    second = await house.add_key("ann")
    await house.books.roll.find(second)
    assert house.books.roll.keys[second].user is house.books.roll.keys[key].user
    assert house.books.roll.keys[second].user.balance.held == 3000
    await house.close(grant)


async def test_unknown_keys_cannot_open(house) -> None:
    assert (await refused(house.open(KeyId("nobody")))).code == "invalid_api_key"


# -- limits over restarts ----------------------------------------------------------------------------------------------


async def test_the_last_minute_is_remembered_over_a_restart(house) -> None:
    await house.set_tier("sub", requests_per_minute=3, tokens_per_minute=1000)
    await house.add_user("sub", tier="sub")
    key = await house.add_key("sub")
    for _ in range(3):
        await house.close(await house.open(key), (100, 200))
        house.clock.advance(5)
    await house.start_books()
    refusal = await refused(house.open(key))
    assert refusal.details["rule"] == "requests_per_minute"
    assert refusal.retry_after_s == 46
    house.clock.advance(46)
    await house.open(key)
    assert house.books.roll.keys[key].user.tokens.total == 600


async def test_quotas_and_spending_survive_a_restart(house, key: KeyId) -> None:
    limits = KeyLimits(token_limit=100, spending_limit_nano=10_000)
    narrow = await house.add_key("ann", limits=limits)
    await house.close(await house.open(narrow), (30, 10))
    await house.start_books()
    account = await house.books.roll.find(narrow)
    assert (account.quota.used, account.spending.used) == (40, 5000)
    assert account.user.balance.free() == USD - 5000
    await house.check()


async def test_a_pace_for_each_key_holds(house, key: KeyId) -> None:
    await house.start_books(AccountingSettings(default_max_tokens=100, rate_limit_qps=1.0))
    await house.open(key)
    refusal = await refused(house.open(key))
    assert (refusal.code, refusal.details["rule"]) == ("rate_limit_exceeded", "requests_per_second")
    house.clock.advance(1)
    await house.open(key)


# -- all together ------------------------------------------------------------------------------------------------------


async def test_many_requests_at_once_never_overdraw_and_always_add_up(house) -> None:
    await house.set_tier("payg", prepaid=True)
    await house.add_user("ann", 200_000)
    key = await house.add_key("ann", limits=KeyLimits(token_limit=900))
    outcomes = {"paid": 0, "refused": 0}
    if isinstance(house.books, SharedBooks):
        assert house.books.follower is not None
        house.books.follower.stop()  # a balance that is read amid requests counts what is being written as left

    async def one(number: int) -> None:
        try:
            grant = await house.open(key, 10, None)
        except Refused:
            outcomes["refused"] += 1
            return
        await asyncio.sleep(number % 7 / 1000)
        await house.close(grant, (number % 11, min(number % 150, grant.output_cap)))
        outcomes["paid"] += 1

    for _ in range(3):
        await asyncio.gather(*(one(number) for number in range(150)))
    account = house.books.roll.keys[key]
    assert min(outcomes.values()) > 0
    assert account.user.balance.free() >= 0
    assert account.quota.free() >= 0
    assert account.user.balance.free() == await house.balance("ann")
    assert (account.user.balance.held, account.quota.held, account.gauge.running) == (0, 0, 0)
    await house.check()


async def test_request_ids_of_one_group_may_come_in_any_order(house, key: KeyId) -> None:
    grants = [await house.open(key, request_id=RequestId(f"{n:036d}")) for n in (5, 3, 9, 1)]
    await asyncio.gather(*(house.close(grant) for grant in grants))
    assert len(await events(house)) == 4
    await house.check()
