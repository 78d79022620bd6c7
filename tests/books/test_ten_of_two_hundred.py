"""What a limit has for ten requests admits exactly ten of 200 at once, through real servers of every kind.

The engine holds its answers until all 200 are decided, and then uses exactly what was reserved.
"""

import time
from collections.abc import Callable

import pytest

from tests.books.deployment import COST, PARALLEL, TOKENS, Deployment, Storm

TEN = 10


def _limited(deployment: Deployment, **limits: int) -> str:
    return str(deployment.first.make_key(limits=limits)["key"])


def _budgeted(deployment: Deployment, window: str) -> str:
    gate = deployment.first
    project = gate.admin("POST", "/projects", {"name": window, "owner": "admin", "budgets": {window: TEN * COST}})
    return str(gate.make_key(project=project["id"])["key"])


RULES: dict[str, tuple[Callable[[Deployment], str], tuple[int, str]]] = {
    "token_limit": (lambda d: _limited(d, token_limit=TEN * TOKENS), (429, "quota_exceeded")),
    "spending_limit": (lambda d: _limited(d, spending_limit_nano=TEN * COST), (402, "spending_limit")),
    "key_budget_day": (lambda d: _limited(d, budget_day_nano=TEN * COST), (402, "budget_exceeded")),
    "key_budget_month": (lambda d: _limited(d, budget_month_nano=TEN * COST), (402, "budget_exceeded")),
    "project_budget": (lambda d: _budgeted(d, "none"), (402, "budget_exceeded")),
    "project_budget_day": (lambda d: _budgeted(d, "day"), (402, "budget_exceeded")),
    "project_budget_month": (lambda d: _budgeted(d, "month"), (402, "budget_exceeded")),
}


@pytest.fixture(autouse=True)
def _not_at_midnight() -> None:
    """A budget of the day begins anew at midnight, UTC."""
    left_s = 86_400 - time.time() % 86_400
    if left_s < 60:
        time.sleep(left_s + 1)


def check_storm(deployment: Deployment, storm: Storm, refusal: tuple[int, str]) -> None:
    """Ten were served whole, at the price that was reserved; all others met the rule; nothing was overspent."""
    assert storm.refusals == {refusal: PARALLEL - TEN}
    assert [told.whole for told in storm.admitted] == [True] * TEN
    for told in storm.admitted:
        event = deployment.first.event(told.request_id)
        assert (event["status"], event["cost_nano"], event["absorbed_nano"]) == ("completed", COST, 0)
        assert event["input_tokens"] + event["output_tokens"] == TOKENS
    deployment.check()


async def test_a_balance_for_ten_admits_ten(deployment: Deployment) -> None:
    payer = deployment.make_payer(TEN * COST)
    key = deployment.first.make_key(payer["id"])["key"]
    storm = await deployment.storm(key)
    check_storm(deployment, storm, (402, "insufficient_balance"))
    assert [gate.balance(payer["id"]) for gate in deployment.nodes] == [0] * len(deployment.nodes)
    again = await deployment.storm(key, 2 * len(deployment.nodes))
    assert again.refusals == {(402, "insufficient_balance"): 2 * len(deployment.nodes)}


@pytest.mark.parametrize("rule", RULES)
async def test_a_limit_for_ten_admits_ten(deployment: Deployment, rule: str) -> None:
    make, refusal = RULES[rule]
    key = make(deployment)
    check_storm(deployment, await deployment.storm(key), refusal)
    again = await deployment.storm(key, 2 * len(deployment.nodes))
    assert again.refusals == {refusal: 2 * len(deployment.nodes)}


async def test_ten_at_once_are_ten_and_their_places_come_back(deployment: Deployment) -> None:
    key = _limited(deployment, concurrency=TEN)
    for _ in range(2):
        check_storm(deployment, await deployment.storm(key), (429, "rate_limit_exceeded"))


async def test_a_minutes_requests_for_ten_admit_ten(deployment: Deployment) -> None:
    key = _limited(deployment, requests_per_minute=TEN)
    check_storm(deployment, await deployment.storm(key), (429, "rate_limit_exceeded"))
