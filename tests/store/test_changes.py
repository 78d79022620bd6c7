"""Changes to users, keys, tiers, projects and prices: what holds at once, what is counted, what is refused."""

import asyncio

import pytest

from stentor.audit.log import Actor
from stentor.control.money.plans import Plans, PriceAsk, ProjectAsk, ProjectChange, TierAsk, TierChange
from stentor.control.people.changes import Changes, KeyChange, LimitsChange, UserChange
from stentor.control.wanted import KeyAsk, UserAsk
from stentor.core.errors import Refused

USD = 1_000_000_000
OPERATOR = Actor("tester", "cli")
DAY_S = 86_400


async def refused(awaitable) -> Refused:
    with pytest.raises(Refused) as caught:
        await awaitable
    return caught.value


@pytest.fixture
def changes(house) -> Changes:
    return Changes(house.database, house.books, house.management, house.clock)


@pytest.fixture
def plans(house) -> Plans:
    return Plans(house.database, house.books, house.management, house.clock)


@pytest.fixture
async def ann(house) -> str:
    await house.set_tier("payg", prepaid=True)
    await house.add_user("ann", USD)
    return "ann"


def limits(**fields: int | None) -> KeyChange:
    return KeyChange(limits=LimitsChange(**fields))


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("spending_limit_nano", "spending_limit"),
        ("budget_day_nano", "budget_exceeded"),
        ("budget_month_nano", "budget_exceeded"),
    ],
)
@pytest.mark.parametrize("loaded", [True, False])
async def test_a_new_limit_counts_what_the_key_has_spent(house, ann, changes, field, code, loaded) -> None:
    key = await house.add_key(ann)
    spent = (await house.close(await house.open(key))).cost_nano
    if not loaded:
        await house.start_books()
        changes = Changes(house.database, house.books, house.management, house.clock)
    await changes.change_key(OPERATOR, key, limits(**{field: 2 * spent}))
    refusal = await refused(house.open(key, 1000, 1000))
    assert (refusal.code, refusal.details["left_nano"]) == (code, spent)
    await house.close(await house.open(key))
    assert (await refused(house.open(key))).details["left_nano"] == 0
    await changes.change_key(OPERATOR, key, limits(**{field: 5 * spent}))
    await house.close(await house.open(key))
    await house.check()
    await changes.change_key(OPERATOR, key, limits(**{field: None}))
    await house.close(await house.open(key, 500, 500))
    await changes.change_key(OPERATOR, key, limits(**{field: 5 * spent}))
    assert (await refused(house.open(key, 1000, 1000))).details["left_nano"] == spent
    await house.check()


async def test_a_token_limit_set_later_counts_what_was_used(house, ann, changes) -> None:
    key = await house.add_key(ann)
    await house.close(await house.open(key))
    await changes.change_key(OPERATOR, key, limits(token_limit=30))
    refusal = await refused(house.open(key))
    assert (refusal.code, refusal.details["left"]) == ("quota_exceeded", 10)
    await house.check()


@pytest.mark.parametrize("window", ["day", "month"])
async def test_a_keys_budget_is_new_when_its_window_is(house, ann, changes, window) -> None:
    key = await house.add_key(ann)
    cost = (await house.close(await house.open(key))).cost_nano
    await changes.change_key(OPERATOR, key, limits(**{f"budget_{window}_nano": cost}))
    refusal = await refused(house.open(key))
    assert refusal.code == "budget_exceeded"
    assert refusal.details["resets_at"] > house.clock.now_us() / 1e6
    assert "key's budget" in refusal.message
    house.clock.advance(DAY_S if window == "day" else 31 * DAY_S)
    await house.close(await house.open(key))
    await house.check()
    await house.start_books()
    assert (await refused(house.open(key))).code == "budget_exceeded"


async def test_a_limit_set_under_load_misses_nothing(house, ann, changes) -> None:
    key = await house.add_key(ann)
    grants = [await house.open(key) for _ in range(40)]
    closing = [asyncio.create_task(house.close(grant)) for grant in grants[:20]]
    await changes.change_key(OPERATOR, key, limits(spending_limit_nano=USD, budget_day_nano=USD, token_limit=10**6))
    closing += [asyncio.create_task(house.close(grant)) for grant in grants[20:]]
    spent = sum(settled.cost_nano for settled in await asyncio.gather(*closing))
    account = house.books.roll.keys[key]
    assert account.spending.used == account.budgets["day"].used == spent
    assert account.quota.used == 40 * 20
    assert account.spending.held == account.quota.held == 0
    await house.check()


async def test_pace_limits_change_at_once(house, ann, changes) -> None:
    key = await house.add_key(ann)
    await house.open(key)
    await changes.change_key(OPERATOR, key, limits(concurrency=1))
    assert (await refused(house.open(key))).code == "rate_limit_exceeded"
    await changes.change_key(OPERATOR, key, limits(concurrency=2, requests_per_minute=1))
    await house.open(key)
    assert (await refused(house.open(key))).code == "rate_limit_exceeded"


async def test_a_narrowed_key_is_told_of_and_a_renamed_one_is_not(house, ann, changes) -> None:
    made = await house.management.add_key(OPERATOR, KeyAsk(ann))
    await house.books.find_principal(house.digest(made.key))
    heard: list[str] = []
    house.books.on_revoked(heard.append)
    await changes.change_key(OPERATOR, made.made.id, KeyChange(name="other", limits=LimitsChange(concurrency=5)))
    assert heard == []
    await changes.change_key(OPERATOR, made.made.id, KeyChange(models=("other",)))
    assert set(heard) == {made.made.id}
    assert (await house.books.find_principal(house.digest(made.key))).models == {"other"}
    assert (await refused(house.open(made.made.id))).code == "model_not_found"


async def test_a_key_is_not_widened_beyond_its_changer(house, ann, changes) -> None:
    maker = await house.add_key(ann, scopes=("inference",), models=("tiny",))
    key = await house.add_key(ann, models=("tiny",))
    assert (await refused(changes.change_key(OPERATOR, key, KeyChange(models=()), creator=maker))).code == (
        "insufficient_scope"
    )
    assert (await house.management.list_keys())[0].models == ("tiny",)
    assert (await refused(changes.change_key(OPERATOR, key, KeyChange(name="x"), owner="else"))).code == "not_found"


@pytest.mark.parametrize(
    "change",
    [
        KeyChange(name="n" * 129),
        KeyChange(models=("a b",)),
        KeyChange(expires_us=-1),
        limits(concurrency=-1),
        limits(spending_limit_nano=2**63),
    ],
)
async def test_a_bad_change_changes_nothing(house, ann, changes, change) -> None:
    key = await house.add_key(ann)
    before = (await house.management.list_keys())[0]
    assert (await refused(changes.change_key(OPERATOR, key, change))).code == "invalid_request"
    assert (await house.management.list_keys())[0] == before


# -- users -------------------------------------------------------------------------------------------------------------


async def test_a_user_is_changed_and_the_audit_says_how(house, ann, changes) -> None:
    change = UserChange(tier="admin", email="ann@example.org", password="a long password", password_temporary=True)
    view = await changes.change_user(OPERATOR, ann, change)
    assert (view.user.tier_id, view.user.email, view.user.password_temporary) == ("admin", "ann@example.org", True)
    (entry,) = [each for each in await house.management.list_changes() if each.action == "user_change"]
    assert '"tier_id":"payg"' in entry.before
    assert '"tier_id":"admin"' in entry.after
    assert "argon2" not in repr(entry)
    assert await house.management.passwords.check("ann@example.org", "a long password") is not None


async def test_a_user_who_is_shut_out_loses_all_keys_at_once(house, ann, changes) -> None:
    made = await house.management.add_key(OPERATOR, KeyAsk(ann))
    await house.books.find_principal(house.digest(made.key))
    heard: list[str] = []
    house.books.on_revoked(heard.append)
    await changes.change_user(OPERATOR, ann, UserChange(active=False))
    assert set(heard) == {made.made.id}
    assert await house.books.find_principal(house.digest(made.key)) is None
    await changes.change_user(OPERATOR, ann, UserChange(active=True))
    assert await house.books.find_principal(house.digest(made.key)) is not None


async def test_who_is_no_admin_any_more_keeps_no_admin_key(house, changes) -> None:
    for name in ("one", "two"):
        await house.management.add_user(OPERATOR, UserAsk(name, role="admin", password="a long password"))
    power = await house.management.add_key(OPERATOR, KeyAsk("one", scopes=("admin",)))
    plain = await house.management.add_key(OPERATOR, KeyAsk("one"))
    await changes.change_user(OPERATOR, "one", UserChange(role="user"))
    assert await house.books.find_principal(house.digest(power.key)) is None
    assert await house.books.find_principal(house.digest(plain.key)) is not None


@pytest.mark.parametrize("change", [UserChange(role="user"), UserChange(active=False)])
async def test_the_last_admin_stays(house, changes, change) -> None:
    await house.management.add_user(OPERATOR, UserAsk("one", role="admin", password="a long password"))
    assert (await refused(changes.change_user(OPERATOR, "one", change))).code == "conflict"
    assert (await changes.get_user("one")).user.active


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (UserChange(tier="gold"), "not_found"),
        (UserChange(email="nonsense"), "invalid_request"),
        (UserChange(email="bob@example.org"), "conflict"),
        (UserChange(password="short"), "invalid_request"),
        (UserChange(password="x" * 2000), "invalid_request"),
    ],
)
async def test_a_bad_change_of_a_user_is_refused(house, ann, changes, change, code) -> None:
    await house.management.add_user(OPERATOR, UserAsk("bob", "bob@example.org"))
    assert (await refused(changes.change_user(OPERATOR, ann, change))).code == code


async def test_a_ledger_is_paged(house, ann, changes) -> None:
    for amount in (-1, 2, 3):
        await house.management.top_up(OPERATOR, ann, amount)
    first = await changes.list_ledger(ann, limit=3)
    rest = await changes.list_ledger(ann, before=first[-1].id)
    assert [(row.kind, row.amount_nano) for row in first + rest] == [
        ("top_up", 3), ("top_up", 2), ("adjustment", -1), ("top_up", USD),
    ]  # fmt: skip


# -- tiers, projects, prices -------------------------------------------------------------------------------------------


async def test_tiers_come_change_and_go(house, ann, plans, changes) -> None:
    await plans.add_tier(OPERATOR, TierAsk("gold", requests_per_minute=5))
    assert (await refused(plans.add_tier(OPERATOR, TierAsk("gold")))).code == "conflict"
    await changes.change_user(OPERATOR, ann, UserChange(tier="gold"))
    key = await house.add_key(ann)
    await house.open(key)
    await plans.change_tier(OPERATOR, "gold", TierChange(requests_per_minute=1))
    assert (await refused(house.open(key))).code == "rate_limit_exceeded"
    await plans.change_tier(OPERATOR, "gold", TierChange(requests_per_minute=None, prepaid=True))
    await house.open(key)
    assert (await refused(plans.delete_tier(OPERATOR, "gold"))).code == "conflict"
    await changes.change_user(OPERATOR, ann, UserChange(tier="sub"))
    await plans.delete_tier(OPERATOR, "gold")
    assert (await refused(plans.delete_tier(OPERATOR, "gold"))).code == "not_found"
    assert (await refused(plans.delete_tier(OPERATOR, "payg"))).code == "conflict"


async def test_two_changes_of_a_tier_at_once_both_hold(house, plans) -> None:
    await plans.add_tier(OPERATOR, TierAsk("gold"))
    await asyncio.gather(
        *(plans.change_tier(OPERATOR, "gold", TierChange(**{name: 7})) for name in ("concurrency", "tokens_per_minute"))
    )
    tier = next(tier for tier in await house.management.list_tiers() if tier.id == "gold")
    assert (tier.concurrency, tier.tokens_per_minute) == (7, 7)


async def test_a_projects_budgets_are_seen_with_what_is_used(house, ann, plans) -> None:
    project = (await plans.add_project(OPERATOR, ProjectAsk("team", ann, {"day": USD, "none": 2 * USD}))).project
    key = await house.add_key(ann, project=project.id)
    cost = (await house.close(await house.open(key))).cost_nano
    view = await plans.get_project(project.id)
    assert [(budget.window, budget.limit_nano, budget.used_nano) for budget in view.budgets] == [
        ("day", USD, cost), ("none", 2 * USD, cost),
    ]  # fmt: skip
    view = await plans.change_project(OPERATOR, project.id, ProjectChange(name="crew", budgets={"day": None}))
    assert (view.project.name, [budget.window for budget in view.budgets]) == ("crew", ["none"])
    await house.check()


async def test_a_closed_project_stops_its_keys(house, ann, plans) -> None:
    project = (await plans.add_project(OPERATOR, ProjectAsk("team", ann))).project
    made = await house.management.add_key(OPERATOR, KeyAsk(ann, project=project.id))
    await house.books.find_principal(house.digest(made.key))
    heard: list[str] = []
    house.books.on_revoked(heard.append)
    await plans.change_project(OPERATOR, project.id, ProjectChange(active=False))
    assert set(heard) == {made.made.id}
    assert await house.books.find_principal(house.digest(made.key)) is None
    personal = (await plans.list_projects(user=ann))[0].project
    assert (await refused(plans.change_project(OPERATOR, personal.id, ProjectChange(active=False)))).code == "conflict"


async def test_projects_are_paged(house, ann, plans) -> None:
    made = [(await plans.add_project(OPERATOR, ProjectAsk(f"p{n}", ann))).project.id for n in range(4)]
    first = await plans.list_projects(user=ann, limit=2)
    rest = await plans.list_projects(user=ann, after=first[-1].project.id)
    assert [view.project.id for view in first + rest][1:] == sorted(made)


async def test_prices_hold_from_their_time_on(house, ann, plans) -> None:
    later = house.clock.now_us() + 1_000_000
    await plans.set_price(OPERATOR, PriceAsk("tiny", 10**9, 10**9))
    await plans.set_price(OPERATOR, PriceAsk("tiny", 2 * 10**9, 2 * 10**9, effective_us=later))
    key = await house.add_key(ann)
    assert (await house.close(await house.open(key))).cost_nano == 20_000
    assert [(entry.model, entry.price.input_nano) for entry in await plans.list_current_prices()] == [
        ("*", 100_000_000), ("tiny", 10**9),
    ]  # fmt: skip
    house.clock.advance(2)
    assert (await house.close(await house.open(key))).cost_nano == 40_000
    history = await plans.list_price_history("tiny")
    assert [entry.price.input_nano for entry in history] == [2 * 10**9, 10**9]
    assert [entry.model for entry in await plans.list_current_prices(after="*", limit=1)] == ["tiny"]


@pytest.mark.parametrize(
    "ask",
    [
        PriceAsk("tiny", -1, 0),
        PriceAsk("tiny", 10**18, 0),
        PriceAsk("a b", 1, 1),
        PriceAsk("", 1, 1),
        PriceAsk("tiny", 1, 1, effective_us=5),
        PriceAsk("tiny", 1, 1, effective_us=2**62),
    ],
)
async def test_a_bad_price_is_refused(plans, ask) -> None:
    assert (await refused(plans.set_price(OPERATOR, ask))).code == "invalid_request"


async def test_two_prices_from_one_moment_on_are_refused(plans, house) -> None:
    await plans.set_price(OPERATOR, PriceAsk("tiny", 1, 1))
    assert (await refused(plans.set_price(OPERATOR, PriceAsk("tiny", 2, 2)))).code == "conflict"
