"""Users, keys, tiers, projects and prices over the wire, from both kinds of server."""

import uuid

from tests.http.harness import Gate, until


def test_a_user_is_changed_and_shut_out(each: Gate):
    user = each.make_user(tier="payg", balance_nano=5_000_000)
    key = each.ask("POST", f"/admin/api/users/{user['id']}/apikey", {"name": "from the path"}).json()
    assert each.chat(key=key["key"]).status == 200
    changed = each.ask("PATCH", f"/admin/api/users/{user['name']}", {"tier": "sub", "email": None}).json()
    assert (changed["tier_id"], changed["active"]) == ("sub", True)
    assert each.ask("GET", f"/admin/api/users/{user['id']}").json() == changed
    assert each.ask("DELETE", f"/admin/api/users/{user['id']}").json()["active"] is False
    until(lambda: each.chat(key=key["key"]).status, lambda status: status == 401)
    ledger = each.ask("GET", f"/admin/api/users/{user['id']}/ledger").json()
    assert [(row["kind"], row["amount_nano"]) for row in ledger["data"]] == [("top_up", 5_000_000)]


def test_a_keys_limits_are_changed_while_it_is_used(each: Gate):
    user = each.make_user()
    key = each.make_key(user["id"])
    cost = each.event(each.chat(key=key["key"]).request_id)["cost_nano"]
    changed = each.ask("PATCH", f"/admin/api/api-keys/{key['id']}", {"limits": {"budget_day_nano": cost}}).json()
    assert changed["limits"]["budget_day_nano"] == cost
    answer = each.chat(key=key["key"])
    assert (answer.status, answer.json()["error"]["code"]) == (402, "budget_exceeded")
    each.ask("PATCH", f"/admin/api/api-keys/{key['id']}", {"limits": {"budget_day_nano": None}})
    assert each.chat(key=key["key"]).status == 200
    each.ask("PATCH", f"/admin/api/api-keys/{key['id']}", {"models": ["narrow"]})
    until(lambda: each.chat(key=key["key"]).status, lambda status: status == 404)


def test_a_project_pays_within_its_budget(each: Gate):
    user = each.make_user()
    body = {"name": "team", "owner": user["name"], "budgets": {"month": 0}}
    project = each.ask("POST", "/admin/api/projects", body).json()
    key = each.make_key(user["id"], project=project["id"])
    assert each.chat(key=key["key"]).json()["error"]["code"] == "budget_exceeded"
    each.ask("PATCH", f"/admin/api/projects/{project['id']}", {"budgets": {"month": 10**9}})
    cost = each.event(each.chat(key=key["key"]).request_id)["cost_nano"]
    (budget,) = each.ask("GET", f"/admin/api/projects/{project['id']}").json()["budgets"]
    assert (budget["window"], budget["used_nano"]) == ("month", cost)
    assert budget["resets_us"] > 0
    assert project["id"] in [
        row["id"] for row in each.ask("GET", f"/admin/api/projects?user={user['id']}").json()["data"]
    ]
    assert each.ask("DELETE", f"/admin/api/projects/{project['id']}").json()["active"] is False
    until(lambda: each.chat(key=key["key"]).status, lambda status: status == 401)


def test_a_tier_comes_and_goes(each: Gate):
    name = "t" + uuid.uuid4().hex[:8]
    assert each.ask("POST", "/admin/api/tiers", {"id": name, "concurrency": 3}).json()["concurrency"] == 3
    assert each.ask("PATCH", f"/admin/api/tiers/{name}", {"concurrency": None}).json()["concurrency"] is None
    assert name in [tier["id"] for tier in each.ask("GET", "/admin/api/tiers").json()["data"]]
    assert each.ask("DELETE", f"/admin/api/tiers/{name}").json()["id"] == name
    assert name not in [tier["id"] for tier in each.ask("GET", "/admin/api/tiers").json()["data"]]


def test_a_price_holds_from_the_next_request_on(each: Gate):
    model = "narrow"
    each.ask(
        "POST", "/admin/api/pricing", {"model": model, "input_nano": 0, "output_nano": 0, "request_nano": 7 * 10**6}
    )
    assert each.event(each.chat(model=model).request_id)["cost_nano"] == 7
    prices = {row["model"]: row for row in each.ask("GET", "/admin/api/pricing").json()["data"]}
    assert prices[model]["request_nano"] == 7 * 10**6
    assert prices["*"]["input_nano"] == 100_000_000
    assert each.ask("GET", f"/admin/api/pricing/{model}").json()["data"][0]["version"] == prices[model]["version"]
