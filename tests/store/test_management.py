"""Management: keys, users, money, limits; what holds at once, what is written, and who did it."""

import asyncio
import contextlib
import re
import threading

import msgspec
import pytest

from stentor.accounting.price import Price
from stentor.accounting.prices import load_prices
from stentor.accounting.usage import UsageFilter
from stentor.audit.log import Actor
from stentor.control.people.account_operations import _OwnKey
from stentor.control.people.changes import Changes, KeyChange, LimitsChange
from stentor.control.people.first_run import ensure_first_run, ensure_fixed_key
from stentor.control.people.operations import _UserKey
from stentor.control.wanted import KeyAsk, UserAsk
from stentor.core.errors import Refused, StentorError
from stentor.core.ids import KeyId
from stentor.people.signups import SignupAsk, add_signup
from stentor.people.values import KeyLimits

KEY = re.compile(r"sk-[0-9A-Za-z]{48}")
USD = 1_000_000_000
OPERATOR = Actor("tester", "cli")


async def refused(awaitable) -> Refused:
    with pytest.raises(Refused) as caught:
        await awaitable
    return caught.value


@pytest.fixture
async def ann(house) -> str:
    await house.set_tier("payg", prepaid=True)
    await house.add_user("ann", USD)
    return "ann"


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_a_new_key_is_shown_once_and_stored_as_a_hash(house, ann: str) -> None:
    made = await house.management.add_key(OPERATOR, KeyAsk(ann, "laptop"))
    assert KEY.fullmatch(made.key)
    (listed,) = await house.management.list_keys()
    assert listed == made.made
    assert listed.hint == made.key[-4:]
    dump = await house.database.read(lambda c: repr(c.exec_driver_sql("SELECT * FROM api_keys").fetchall()))
    audit = repr(await house.management.list_changes())
    assert made.key not in dump + audit
    assert made.row()["key"] == made.key


async def test_keys_are_listed_newest_first_in_pages(house, ann: str) -> None:
    await house.add_user("bob")
    made = []
    for _ in range(5):
        made.append(await house.add_key("ann"))
        await asyncio.sleep(0.002)
    await house.add_key("bob")
    first = await house.management.list_keys(user="ann", limit=3)
    rest = await house.management.list_keys(user="ann", after=first[-1].id, limit=3)
    assert [key.id for key in first + rest] == made[::-1]
    assert len(await house.management.list_keys()) == 6


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (KeyAsk("nobody"), "not_found"),
        (KeyAsk("ann", scopes=()), "invalid_request"),
        (KeyAsk("ann", scopes=("root",)), "invalid_request"),
        (KeyAsk("ann", models=("a b",)), "invalid_request"),
        (KeyAsk("ann", "n" * 129), "invalid_request"),
        (KeyAsk("ann", limits=KeyLimits(token_limit=-1)), "invalid_request"),
        (KeyAsk("ann", project="none"), "not_found"),
    ],
)
async def test_a_bad_key_is_refused(house, ann: str, ask: KeyAsk, code: str) -> None:
    assert (await refused(house.management.add_key(OPERATOR, ask))).code == code
    assert await house.management.list_keys() == []


async def test_a_key_may_do_no_more_than_its_makers(house, ann: str) -> None:
    limits = KeyLimits(token_limit=100)
    maker = await house.add_key(ann, scopes=("ring", "admin"), models=("tiny",), limits=limits)
    good = KeyAsk(ann, scopes=("ring",), models=("tiny",), limits=KeyLimits(token_limit=50))
    await house.management.add_key(OPERATOR, good, creator=maker)
    for bad in (
        KeyAsk(ann, scopes=("inference",), models=("tiny",), limits=limits),
        KeyAsk(ann, scopes=("ring",), models=(), limits=limits),
        KeyAsk(ann, scopes=("ring",), models=("tiny", "big"), limits=limits),
        KeyAsk(ann, scopes=("ring",), models=("tiny",), limits=KeyLimits(token_limit=101)),
        KeyAsk(ann, scopes=("ring",), models=("tiny",)),
    ):
        assert (await refused(house.management.add_key(OPERATOR, bad, creator=maker))).code == "insufficient_scope"


LIMITED = {
    "tokens": KeyLimits(token_limit=100),
    "money": KeyLimits(spending_limit_nano=100),
    "a day": KeyLimits(budget_day_nano=100),
    "a minute": KeyLimits(requests_per_minute=1),
}


@pytest.mark.parametrize("limits", LIMITED.values(), ids=LIMITED)
async def test_a_limited_key_does_not_multiply(house, ann: str, limits: KeyLimits) -> None:
    """Each key counts by itself: whoever holds a limited one would have as much as they make keys."""
    maker = await house.add_key(ann, limits=limits)
    sibling = await house.add_key(ann, limits=limits)
    ask = KeyAsk(ann, limits=limits)
    assert (await refused(house.management.add_key(OPERATOR, ask, creator=maker))).code == "insufficient_scope"
    for key in (maker, sibling):
        rotation = house.management.rotate_key(OPERATOR, key, creator=maker)
        assert (await refused(rotation)).code == "insufficient_scope"
    assert len(await house.management.list_keys(user=ann)) == 2


async def test_a_key_stays_in_its_project_with_all_that_it_makes(house, ann: str) -> None:
    """A project's budget holds for whoever has one of its keys."""
    team = await house.management.add_project(OPERATOR, "team", ann)
    maker = await house.add_key(ann, project=team.id)
    made = await house.management.add_key(OPERATOR, KeyAsk(ann), creator=maker)
    assert made.made.project_id == team.id
    own = await house.add_key(ann)
    personal = next(key for key in await house.management.list_keys(user=ann) if key.id == own).project_id
    ask = KeyAsk(ann, project=personal)
    assert (await refused(house.management.add_key(OPERATOR, ask, creator=maker))).param == "project"
    assert (await refused(house.management.rotate_key(OPERATOR, own, creator=maker))).param == "project"


async def test_a_revoked_key_stops_at_once_and_listeners_hear(house, ann: str) -> None:
    made = await house.management.add_key(OPERATOR, KeyAsk(ann))
    digest = house.digest(made.key)
    assert await house.books.find_principal(digest) is not None
    heard: list[KeyId] = []
    house.books.on_revoked(heard.append)
    await house.management.revoke_key(OPERATOR, made.made.id)
    assert set(heard) == {made.made.id}
    assert await house.books.find_principal(digest) is None
    assert (await refused(house.open(made.made.id))).code == "invalid_api_key"
    again = await house.management.revoke_key(OPERATOR, made.made.id)
    assert again.revoked_us == (await house.management.list_keys())[0].revoked_us
    await house.start_books()
    assert await house.books.find_principal(digest) is None


async def test_what_runs_with_a_revoked_key_is_still_settled(house, ann: str) -> None:
    key = await house.add_key(ann)
    grant = await house.open(key)
    await house.management.revoke_key(OPERATOR, key)
    assert (await house.close(grant)).cost_nano > 0
    await house.check()


async def test_a_rotated_key_keeps_rights_and_project_and_the_old_one_a_grace(house, ann: str) -> None:
    limits = KeyLimits(token_limit=500, concurrency=2)
    old = await house.management.add_key(
        OPERATOR, KeyAsk(ann, "bot", scopes=("ring",), models=("tiny",), limits=limits)
    )
    await house.books.find_principal(house.digest(old.key))
    heard: list[KeyId] = []
    house.books.on_revoked(heard.append)
    new = await house.management.rotate_key(OPERATOR, old.made.id, grace_s=60)
    same = ("name", "user_id", "project_id", "scopes", "models", "limits")
    assert all(getattr(new.made, field) == getattr(old.made, field) for field in same)
    assert new.made.rotated_from == old.made.id
    assert new.key != old.key
    assert heard == []  # what runs with it goes on
    principal = await house.books.find_principal(house.digest(old.key))
    assert principal.expires_us == house.clock.now_us() + 60_000_000
    house.clock.advance(60)
    assert await house.books.find_principal(house.digest(old.key)) is None
    assert await house.books.find_principal(house.digest(new.key)) is not None


COST = 3000  # what ten tokens in and ten out cost
LINE_LIMITS = {
    "token_limit": (60, "quota_exceeded"),
    "spending_limit_nano": (3 * COST, "spending_limit"),
    "budget_day_nano": (3 * COST, "budget_exceeded"),
    "budget_month_nano": (3 * COST, "budget_exceeded"),
    "requests_per_minute": (3, "rate_limit_exceeded"),
    "tokens_per_minute": (60, "rate_limit_exceeded"),
    "concurrency": (3, "rate_limit_exceeded"),
}


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("limit", LINE_LIMITS)
async def test_a_rotated_key_goes_on_with_what_the_old_one_left(house, ann: str, limit: str, restarted: bool) -> None:
    allowed, code = LINE_LIMITS[limit]
    old = await house.add_key(ann, limits=KeyLimits(**{limit: allowed}))
    running = [await house.open(old)]
    if limit != "concurrency":
        await house.close(running.pop())
    new = (await house.management.rotate_key(OPERATOR, old, grace_s=3600)).made.id
    if restarted and not running:
        await house.start_books()
    running += [await house.open(key) for key in (new, old)]
    for key in (new, old):
        assert (await refused(house.open(key))).code == code
    for grant in running:
        await house.close(grant)
    await house.check()


async def test_a_line_of_keys_has_the_limits_of_its_newest(house, ann: str) -> None:
    changes = Changes(house.database, house.books, house.management, house.clock)
    old = await house.add_key(ann)
    await house.close(await house.open(old))
    new = (await house.management.rotate_key(OPERATOR, old, grace_s=3600)).made.id
    limits = KeyChange(limits=LimitsChange(token_limit=40, budget_day_nano=3 * COST))
    refusal = await refused(changes.change_key(OPERATOR, old, limits))
    assert (refusal.code, new in refusal.message) == ("conflict", True)
    assert (await refused(house.management.rotate_key(OPERATOR, old))).code == "conflict"
    await changes.change_key(OPERATOR, new, limits)
    await house.close(await house.open(old))
    assert (await refused(house.open(new))).code == (await refused(house.open(old))).code == "quota_exceeded"
    await changes.change_key(OPERATOR, old, KeyChange(name="going"))
    assert (await refused(house.open(old))).code == "quota_exceeded"
    await house.check()
    if house.database.is_shared:
        await house.books.return_spare()
    await house.start_books()
    assert (await refused(house.open(old))).code == "quota_exceeded"
    changes = Changes(house.database, house.books, house.management, house.clock)
    await changes.change_key(OPERATOR, new, KeyChange(limits=LimitsChange(token_limit=None)))
    await house.close(await house.open(old))
    assert (await refused(house.open(new))).code == "budget_exceeded"
    await house.check()


async def test_rotation_without_grace_ends_the_old_key_now(house, ann: str) -> None:
    old = await house.management.add_key(OPERATOR, KeyAsk(ann))
    heard: list[KeyId] = []
    house.books.on_revoked(heard.append)
    await house.management.rotate_key(OPERATOR, old.made.id)
    assert set(heard) == {old.made.id}
    assert await house.books.find_principal(house.digest(old.key)) is None
    assert (await refused(house.management.rotate_key(OPERATOR, old.made.id))).code == "conflict"


async def test_the_end_of_a_grace_is_told(house, ann: str, wait_until) -> None:
    old = await house.add_key(ann)
    heard: list[KeyId] = []
    house.books.on_revoked(heard.append)
    await house.management.rotate_key(OPERATOR, old, grace_s=1)
    await wait_until(lambda: heard)
    assert set(heard) == {old}


# -- users -------------------------------------------------------------------------------------------------------------


async def test_users_are_listed_by_name_with_their_balance(house, ann: str) -> None:
    await house.add_user("zoe")
    await house.add_user("bob", 5)
    listed = await house.management.list_users()
    assert [(view.user.name, view.balance_nano) for view in listed] == [("ann", USD), ("bob", 5), ("zoe", 0)]
    assert [view.user.name for view in await house.management.list_users(after="ann", limit=1)] == ["bob"]
    assert listed[0].row()["balance_nano"] == USD


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (UserAsk("ann"), "conflict"),
        (UserAsk("bob", email="ann@example.org"), "conflict"),
        (UserAsk("a b"), "invalid_request"),
        (UserAsk("bob", email="nowhere"), "invalid_request"),
        (UserAsk("bob", role="root"), "invalid_request"),
        (UserAsk("bob", tier="gold"), "not_found"),
    ],
)
async def test_a_bad_or_taken_user_is_refused(house, ask: UserAsk, code: str) -> None:
    await house.management.add_user(OPERATOR, UserAsk("ann", email="ann@example.org"))
    assert (await refused(house.management.add_user(OPERATOR, ask))).code == code
    assert len(await house.management.list_users()) == 1


async def test_a_user_shut_out_loses_all_keys_at_once_and_gets_them_back(house, ann: str) -> None:
    key = await house.add_key(ann)
    await house.books.roll.find(key)
    heard: list[KeyId] = []
    house.books.on_revoked(heard.append)
    await house.change_user(ann, active=False)
    assert set(heard) == {key}
    assert (await refused(house.open(key))).code == "invalid_api_key"
    await house.change_user(ann, active=True)
    await house.open(key)


async def test_passwords_are_checked_without_telling_names_apart(house) -> None:
    await house.management.add_user(OPERATOR, UserAsk("ann", password="first password"))
    assert (await house.management.passwords.check("ann", "first password")).user.name == "ann"
    assert await house.management.passwords.check("ann", "other") is None
    assert await house.management.passwords.check("nobody", "first password") is None
    await house.change_user("ann", password="second password")
    assert await house.management.passwords.check("ann", "first password") is None
    assert await house.management.passwords.check("ann", "second password") is not None
    assert (await refused(house.change_user("ann", password="short"))).code == "invalid_request"


async def test_a_user_moved_to_another_tier_has_its_limits_at_once(house, ann: str) -> None:
    await house.set_tier("sub", requests_per_minute=1)
    key = await house.add_key(ann)
    await house.open(key)
    await house.change_user(ann, tier="sub")
    await house.open(key)
    assert (await refused(house.open(key))).details["limit"] == 1


async def test_a_changed_tier_holds_for_its_users_at_once(house, ann: str) -> None:
    key = await house.add_key(ann)
    await house.open(key)
    await house.set_tier("payg", prepaid=True, concurrency=1)
    assert (await refused(house.open(key))).details["rule"] == "concurrency"
    await house.set_tier("payg", prepaid=True, concurrency=2)
    await house.open(key)


# -- money -------------------------------------------------------------------------------------------------------------


async def test_a_top_up_counts_at_once_and_in_the_books(house, ann: str) -> None:
    await house.add_user("bob")
    key = await house.add_key("bob")
    assert (await refused(house.open(key))).code == "insufficient_balance"
    view = await house.management.top_up(OPERATOR, "bob", USD, note="welcome")
    assert view.balance_nano == USD
    await house.close(await house.open(key))
    view = await house.management.top_up(OPERATOR, "bob", USD)
    assert view.balance_nano == 2 * USD - 3000
    assert house.books.roll.keys[key].user.balance.free() == view.balance_nano
    await house.check()


async def test_a_reference_counts_once(house, ann: str) -> None:
    for _ in range(3):
        view = await house.management.top_up(OPERATOR, ann, 100, reference="invoice-7")
    assert view.balance_nano == USD + 100
    other = house.management.top_up(OPERATOR, ann, 200, reference="invoice-7")
    assert (await refused(other)).code == "conflict"
    await house.check()


@pytest.mark.parametrize("amount", [0, -USD - 1, 2**62])
async def test_an_impossible_booking_is_refused(house, ann: str, amount: int) -> None:
    assert (await refused(house.management.top_up(OPERATOR, ann, amount))).code == "invalid_request"
    assert await house.balance(ann) == USD
    await house.check()


async def test_a_balance_stays_within_what_a_column_holds(house, ann: str) -> None:
    await house.management.top_up(OPERATOR, ann, 2**62 - USD - 1)
    for _ in range(3):
        assert (await refused(house.management.top_up(OPERATOR, ann, 2**62 - 1))).code == "invalid_request"
    assert await house.balance(ann) == 2**62 - 1
    await house.check()


async def test_what_was_taken_off_is_gone_at_once(house, ann: str) -> None:
    key = await house.add_key(ann)
    await house.open(key)
    await house.management.top_up(OPERATOR, ann, -USD + 3000)
    assert (await refused(house.open(key))).code == "insufficient_balance"
    await house.check()


async def test_what_running_requests_hold_cannot_be_taken_off(house, ann: str) -> None:
    await house.add_user("bob", 5000)
    key = await house.add_key("bob")
    grant = await house.open(key)  # it holds 3000
    refusal = await refused(house.management.top_up(OPERATOR, "bob", -3000))
    assert (refusal.code, refusal.param) == ("invalid_request", "amount")
    await house.management.top_up(OPERATOR, "bob", -1500)
    await house.close(grant)
    assert await house.balance("bob") == 500
    # Among others it may have been read before the request was settled; then it is thought to be more, until one asks.
    assert house.books.roll.keys[key].user.balance.free() in ({500, 3500} if house.database.is_shared else {500})
    assert (await refused(house.open(key))).code == "insufficient_balance"
    await house.check()


# Among others a request has to borrow first, and gets in line behind what is being written.
@pytest.mark.parametrize("system", ["sqlite"], indirect=True)
@pytest.mark.parametrize("loaded", [True, False])
async def test_what_is_being_taken_off_is_nobody_elses_meanwhile(house, ann: str, loaded: bool, wait_until) -> None:
    key = await house.add_key(ann)
    if loaded:
        await house.close(await house.open(key), billable=False)
    release = threading.Event()
    blocked = asyncio.create_task(house.database.write(lambda _: release.wait(30)))
    taking = asyncio.create_task(house.management.top_up(OPERATOR, ann, -USD))
    try:
        await wait_until(lambda: house.database.queued_writes() > 0 or taking.done())
        opening = asyncio.create_task(house.open(key))
        await asyncio.wait([opening], timeout=30)
    finally:
        release.set()
    assert (await taking).balance_nano == 0
    assert (await refused(opening)).code == "insufficient_balance"
    await blocked
    await house.management.top_up(OPERATOR, ann, 3000)
    await house.close(await house.open(key))
    await house.check()


async def test_what_could_not_be_taken_off_can_be_spent(house, ann: str) -> None:
    key = await house.add_key(ann)
    await house.close(await house.open(key), billable=False)
    taken = await house.management.top_up(OPERATOR, ann, -1000, reference="back-1")
    again = await house.management.top_up(OPERATOR, ann, -1000, reference="back-1")
    assert taken.balance_nano == again.balance_nano == USD - 1000
    other = house.management.top_up(OPERATOR, ann, -2000, reference="back-1")
    assert (await refused(other)).code == "conflict"
    meter = house.books.roll.keys[key].user.balance
    assert (meter.held, meter.free()) == (0, USD - 1000)
    await house.management.top_up(OPERATOR, ann, 4000 - meter.free())
    grant = await house.open(key)  # it holds 3000 of 4000
    assert (await refused(house.management.top_up(OPERATOR, ann, -1001))).code == "invalid_request"
    await house.management.top_up(OPERATOR, ann, -1000, reference="back-1")  # booked before: nothing is taken off
    await house.close(grant)
    assert await house.balance(ann) == 1000


async def test_of_two_prices_at_once_both_hold(house, ann: str, monkeypatch) -> None:
    read, both, first = house.database.read, asyncio.Event(), []

    async def slow(work):
        found = await read(work)
        if work is load_prices and not first:
            first.append(None)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(both.wait(), 0.3)
        return found

    monkeypatch.setattr(house.database, "read", slow)
    one = asyncio.create_task(house.management.add_price(OPERATOR, "one", Price(0, 1, 1)))
    while not first:
        await asyncio.sleep(0.001)
    await house.management.add_price(OPERATOR, "two", Price(0, 2, 2))
    both.set()
    await one
    now_us = house.clock.now_us()
    assert [house.books.prices.find_own_price(name, now_us) is not None for name in ("one", "two")] == [True, True]


async def test_a_new_price_holds_from_its_date(house, ann: str) -> None:
    key = await house.add_key(ann)
    start = house.clock.now_us() + 60_000_000
    await house.management.add_price(OPERATOR, "tiny", Price(0, 10**9, 10**9), effective_us=start)
    grant = await house.open(key)
    house.clock.advance(120)
    assert (await house.close(grant, (1, 1))).cost_nano == 300  # the version valid at admission
    settled = await house.close(await house.open(key), (1, 1))
    assert settled.cost_nano == 2000
    events = (await house.management.list_usage(UsageFilter())).events
    assert [event.price_version for event in events] == [2, 1]
    assert len(await house.management.list_prices()) == 2
    past = house.management.add_price(OPERATOR, "tiny", Price(0, 1, 1), effective_us=start)
    assert (await refused(past)).code == "invalid_request"


@pytest.mark.parametrize("window", ["none", "day", "month"])
async def test_a_budget_counts_what_its_window_has_seen(house, ann: str, window) -> None:
    key = await house.add_key(ann)
    await house.close(await house.open(key))  # 3,000 nano-USD
    project = (await house.management.list_projects(user=ann))[0].id
    running = await house.open(key)
    await house.management.set_budget(OPERATOR, project, window, 10_000)
    await house.close(running)
    refusal = await refused(house.open(key, 10, 50))
    assert (refusal.code, refusal.details["left_nano"]) == ("budget_exceeded", 4000)
    await house.check()
    await house.management.set_budget(OPERATOR, project, window, 20_000)
    await house.close(await house.open(key, 10, 50))
    await house.check()
    await house.start_books()
    await house.books.roll.find(key)
    assert house.books.roll.projects[project].budgets[window].used == 9000
    await house.management.set_budget(OPERATOR, project, window, None)
    await house.close(await house.open(key, 10, 5000))
    await house.management.set_budget(OPERATOR, project, window, 12_000)
    assert (await refused(house.open(key, 10, 10))).details["left_nano"] == 0
    await house.check()


async def test_a_days_budget_is_new_the_next_day(house, ann: str) -> None:
    key = await house.add_key(ann)
    project = (await house.management.list_projects(user=ann))[0].id
    await house.management.set_budget(OPERATOR, project, "day", 3000)
    await house.close(await house.open(key))
    assert (await refused(house.open(key))).code == "budget_exceeded"
    house.clock.advance(86_400)
    await house.close(await house.open(key))
    await house.check()


async def test_a_budget_set_under_load_misses_nothing(house, ann: str) -> None:
    key = await house.add_key(ann)
    project = (await house.management.list_projects(user=ann))[0].id
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            await house.close(await house.open(key), (1, 1))

    tasks = [asyncio.ensure_future(load()) for _ in range(8)]
    for limit in (USD, None, USD, None, USD):
        await asyncio.sleep(0.02)
        await house.management.set_budget(OPERATOR, project, "none", limit)
    await asyncio.sleep(0.02)
    stop.set()
    await asyncio.gather(*tasks)
    await house.check()
    spent = USD - await house.balance(ann)
    assert house.books.roll.projects[project].budgets["none"].used == spent


async def test_a_personal_project_takes_only_its_owners_keys(house, ann: str) -> None:
    await house.add_user("bob")
    personal = (await house.management.list_projects(user=ann))[0].id
    assert (
        await refused(house.management.add_key(OPERATOR, KeyAsk("bob", project=personal)))
    ).code == "invalid_request"
    team = await house.management.add_project(OPERATOR, "team", ann)
    made = await house.management.add_key(OPERATOR, KeyAsk("bob", project=team.id))
    assert made.made.project_id == team.id


# -- usage, audit, doctor ----------------------------------------------------------------------------------------------


async def test_usage_is_filtered_paged_and_summed(house, ann: str) -> None:
    await house.add_user("bob", USD)
    keys = [await house.add_key("ann"), await house.add_key("bob")]
    for number in range(7):
        await house.close(await house.open(keys[number % 2]), (number, 1))
        house.clock.advance(1 if number % 3 else 0)
    every = (await house.management.list_usage(UsageFilter())).events
    assert [event.input_tokens for event in every] == [6, 5, 4, 3, 2, 1, 0]
    seen, cursor = [], None
    while True:
        page = await house.management.list_usage(UsageFilter(), before=cursor, limit=3)
        seen += page.events
        cursor = page.next
        if cursor is None:
            break
    assert seen == every
    mine = (await house.management.list_usage(UsageFilter(key_id=keys[0]))).events
    assert [event.input_tokens for event in mine] == [6, 4, 2, 0]
    one = await house.management.list_usage(UsageFilter(request_id=every[2].request_id))
    assert one.events == [every[2]]
    late = UsageFilter(since_us=every[1].settled_us, until_us=every[0].settled_us)
    assert {event.input_tokens for event in (await house.management.list_usage(late)).events} <= {4, 5, 6}
    (total,) = await house.management.total_usage(UsageFilter())
    assert (total.events, total.input_tokens, total.cost_nano) == (7, 21, 21 * 100 + 7 * 200)
    by_key = await house.management.total_usage(UsageFilter(), ("key_id",))
    assert {row.subjects: row.events for row in by_key} == {(keys[0],): 4, (keys[1],): 3}


async def test_each_change_says_who_did_it(house, ann: str) -> None:
    actor = Actor("root", "api")
    made = await house.management.add_key(actor, KeyAsk(ann))
    await house.management.revoke_key(actor, made.made.id)
    await house.management.top_up(actor, ann, 7, note="gift")
    changes = await house.management.list_changes(limit=3)
    assert [(change.actor, change.origin, change.action) for change in changes] == [
        ("root", "api", "balance_top_up"),
        ("root", "api", "key_revoke"),
        ("root", "api", "key_create"),
    ]
    older = await house.management.list_changes(before=changes[-1].id)
    assert all(change.id < changes[-1].id for change in older)
    assert {change.action for change in older} >= {"user_create", "tier_set"}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE bucket SET used = used + 1 WHERE kind = 'balance'",
        "UPDATE bucket SET capacity = capacity - 1 WHERE kind = 'balance'",
        "UPDATE bucket SET used = used - 1 WHERE kind = 'key_tokens'",
        "DELETE FROM usage_events",
        "DELETE FROM bucket WHERE kind = 'balance'",
    ],
)
async def test_doctor_sees_books_that_disagree(house, ann: str, damage: str) -> None:
    key = await house.add_key(ann, limits=KeyLimits(token_limit=1000))
    await house.close(await house.open(key))
    await house.check()
    await house.database.write(lambda connection: connection.exec_driver_sql(damage).rowcount)
    findings = await house.management.doctor_books()
    assert any(found.name == "books" and not found.ok and found.step for found in findings)


# -- the first run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("admin_key", "scopes"), [(False, {"inference"}), (True, {"inference", "admin"})])
async def test_the_first_start_makes_the_admin_once(house, admin_key: bool, scopes: set[str]) -> None:
    first = await ensure_first_run(house.database, house.keyring, house.clock, admin_key=admin_key)
    assert first is not None
    assert KEY.fullmatch(first.api_key)
    principal = await house.books.find_principal(house.digest(first.api_key))
    assert (principal.scopes, principal.tier_id) == (scopes, "admin")
    user = (await house.management.passwords.check("admin", first.admin_password)).user
    assert (user.role, user.password_temporary) == ("admin", True)
    for _ in range(500):
        await house.open(principal.key_id, 8000, 8000)
    assert await ensure_first_run(house.database, house.keyring, house.clock) is None


async def test_an_admin_is_made_though_there_are_users_already(house, ann: str) -> None:
    await house.add_user("admin")
    first = await ensure_first_run(house.database, house.keyring, house.clock)
    assert first is not None
    assert (await house.management.passwords.check(first.admin_user, first.admin_password)).user.role == "admin"
    assert first.admin_user == "admin2"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (KeyAsk, {"user": "ann", "limit": {}}),
        (KeyAsk, {"user": "ann", "limits": {"spending_limit": 5}}),
        (_OwnKey, {"limits": {"spending_limit": 5}}),
        (_UserKey, {"limits": {"spending_limit": 5}}),
        (UserAsk, {"name": "ann", "teir": "sub"}),
    ],
)
def test_what_is_misspelt_is_refused(kind, body) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert(body, kind)


@pytest.mark.parametrize("kind", [KeyAsk, _OwnKey, _UserKey])
def test_no_limits_are_no_limits(kind) -> None:
    assert msgspec.convert({"user": "ann", "limits": None} if kind is KeyAsk else {"limits": None}, kind).limits is None


async def test_an_address_is_the_same_however_it_is_capitalized(house) -> None:
    await house.management.add_user(OPERATOR, UserAsk("eve", email="Eve@Example.org", password="correct horse battery"))
    for address in ("eve@example.org", "EVE@example.ORG"):
        assert (await house.management.passwords.check(address, "correct horse battery")).user.name == "eve"
        with pytest.raises(Refused, match="already"):
            await house.management.add_user(OPERATOR, UserAsk("other", email=address))
    await house.add_user("fay")
    with pytest.raises(Refused, match="already"):
        await house.change_user("fay", email="eVe@example.org")
    await house.change_user("fay", email="Fay@Example.org")
    assert await house.management.list_projects(user="fay@EXAMPLE.org") != []
    asked = SignupAsk("FAY@example.org")
    assert await house.database.write(lambda c: add_signup(c, asked, "", house.clock.now_us())) is None


async def test_the_fixed_key_is_exactly_the_one_in_the_settings(house) -> None:
    async def works(text: str) -> bool:
        await house.start_books()
        return await house.books.find_principal(house.digest(text)) is not None

    for text, other in (("secret-one", "secret-two"), ("secret-two", "secret-one"), ("secret-one", "secret-two")):
        for _ in range(2):
            await ensure_fixed_key(house.database, house.keyring, house.clock, text)
        assert await works(text)
        assert not await works(other)
    await ensure_fixed_key(house.database, house.keyring, house.clock, None)
    assert not await works("secret-one")


@pytest.mark.parametrize("text", ["changeme", "ChangeMe", "", "two words", "x" * 256, "schlüssel"])
async def test_a_bad_fixed_key_is_refused(house, text: str) -> None:
    with pytest.raises(StentorError, match="STENTOR_API_KEY"):
        await ensure_fixed_key(house.database, house.keyring, house.clock, text)


async def test_somebodys_key_in_the_settings_stays_theirs(house, ann: str) -> None:
    """Who has exported it for ``stentor chat`` starts the server in the same shell."""
    made = await house.management.add_key(OPERATOR, KeyAsk(ann, scopes=("ring",)))
    await ensure_fixed_key(house.database, house.keyring, house.clock, "secret-one")
    await ensure_fixed_key(house.database, house.keyring, house.clock, made.key)
    await house.start_books()
    principal = await house.books.find_principal(house.digest(made.key))
    assert (principal.key_id, principal.scopes) == (made.made.id, frozenset({"ring"}))
    assert await house.books.find_principal(house.digest("secret-one")) is None
    await house.management.revoke_key(OPERATOR, made.made.id)
    with pytest.raises(StentorError, match=r"another user that was revoked\. Unset it"):
        await ensure_fixed_key(house.database, house.keyring, house.clock, made.key)
