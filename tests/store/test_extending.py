"""An attempt whose worst case is known only when it runs: what it holds is replaced, in one step, or stays."""

import asyncio

import pytest

from stentor.control.money.plans import Plans, PriceAsk
from stentor.core.books import Close, Extend, Usage
from stentor.core.errors import Refused
from stentor.core.ids import new_request_id
from stentor.people.values import KeyLimits
from tests.store.house import OPERATOR, USD, House

SECOND = USD // 100  # what one second of sound costs


async def priced(house: House, **limits: object):
    """A key of somebody with 2 USD, and a price of a cent a second."""
    plans = Plans(house.database, house.books, house.management, house.clock)
    await plans.set_price(OPERATOR, PriceAsk("tiny", 0, 0, audio_second_nano=SECOND * 1_000_000))
    await house.add_user("ann", 2 * USD)
    return await house.add_key("ann", **limits)


def more(grant, seconds: int, output: int = 10) -> Extend:
    return Extend(grant.request_id, grant.attempt, output, seconds * 1000)


async def test_what_is_found_out_is_reserved_and_what_was_used_is_charged(house: House) -> None:
    key = await priced(house)
    grant = await house.open(key, prompt=0, asked=0)
    await house.books.extend(more(grant, 150))
    other = await house.open(key, prompt=0, asked=0)
    with pytest.raises(Refused) as refusal:
        await house.books.extend(more(other, 51))
    assert refusal.value.code == "insufficient_balance"
    await house.books.extend(more(other, 50))
    settled = await house.books.close(Close(grant.request_id, 1, "completed", Usage(output_tokens=3, audio_ms=149_500)))
    assert settled.cost_nano == SECOND * 1495 // 10
    await house.books.close(Close(other.request_id, 1, "failed", Usage(), billable=False))
    assert await house.balance("ann") == 2 * USD - settled.cost_nano
    await house.check()


async def test_a_refused_attempt_still_holds_what_it_held(house: House) -> None:
    key = await priced(house, limits=KeyLimits(spending_limit_nano=USD))
    grant = await house.open(key, prompt=0, asked=0)
    await house.books.extend(more(grant, 60))
    with pytest.raises(Refused) as refusal:
        await house.books.extend(more(grant, 101))
    assert refusal.value.code == "spending_limit"
    other = await house.open(key, prompt=0, asked=0)
    with pytest.raises(Refused):
        await house.books.extend(more(other, 41))
    await house.books.extend(more(other, 40))
    for each in (grant, other):
        await house.books.close(Close(each.request_id, 1, "failed", Usage(), billable=False))
    # Everything came back.
    again = await house.open(key, prompt=0, asked=0)
    await house.books.extend(more(again, 100))
    await house.books.close(Close(again.request_id, 1, "failed", Usage(), billable=False))
    await house.check()


async def test_it_counts_as_one_request_and_one_at_a_time(house: House) -> None:
    await house.set_tier("one", requests_per_minute=2, concurrency=1)
    await house.add_user("ben", tier="one")
    key = await house.add_key("ben")
    grant = await house.open(key, prompt=0, asked=0)
    await house.books.extend(more(grant, 10))
    await house.books.extend(more(grant, 20))
    with pytest.raises(Refused) as refusal:
        await house.open(key)
    assert refusal.value.code == "rate_limit_exceeded"
    await house.close(grant)
    await house.close(await house.open(key))
    with pytest.raises(Refused):
        await house.open(key)


async def test_tokens_of_the_transcript_are_reserved(house: House) -> None:
    await house.add_user("cid", tier="sub")
    key = await house.add_key("cid", limits=KeyLimits(token_limit=1000))
    grant = await house.open(key, prompt=0, asked=0)
    with pytest.raises(Refused) as refusal:
        await house.books.extend(more(grant, 10, output=1001))
    assert refusal.value.code == "quota_exceeded"
    await house.books.extend(more(grant, 10, output=900))
    with pytest.raises(Refused):
        await house.open(key, prompt=50, asked=60)
    await house.close(grant, tokens=(0, 100))
    await house.close(await house.open(key, prompt=50, asked=60))


async def test_what_is_not_open_can_not_grow(house: House) -> None:
    key = await priced(house)
    grant = await house.open(key)
    await house.close(grant)
    for request_id in (grant.request_id, new_request_id()):
        with pytest.raises(Refused) as refusal:
            await house.books.extend(Extend(request_id, 1, 10))
        assert refusal.value.code == "conflict"


async def test_many_at_once_never_hold_more_than_there_is(house: House) -> None:
    key = await priced(house)
    grants = [await house.open(key, prompt=0, asked=0) for _ in range(20)]
    found = await asyncio.gather(*(house.books.extend(more(grant, 30)) for grant in grants), return_exceptions=True)
    assert sum(each is None for each in found) == 6
    for grant, each in zip(grants, found, strict=True):
        usage = Usage(audio_ms=30_000) if each is None else Usage()
        await house.books.close(Close(grant.request_id, 1, "completed", usage, billable=each is None))
    assert await house.balance("ann") == 2 * USD - 6 * 30 * SECOND
    await house.check()
