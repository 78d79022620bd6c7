"""What users see and do about themselves, sign-ups, usage reports, the audit log and the settings."""

import csv
import io
import random
import uuid

import pytest

from tests.http.harness import Gate
from tests.http.test_sessions import Browser, make_person


def test_users_see_themselves_and_nobody_else(each: Gate):
    user = each.make_user(tier="payg", balance_nano=5_000_000)
    key = each.make_key(user["id"])["key"]
    me = each.ask("GET", "/user/api/me", key=key).json()
    assert (me["name"], me["balance_nano"], me["tier"]["id"]) == (user["name"], 5_000_000, "payg")
    other = each.make_key(each.make_user()["id"])
    each.chat(key=key)
    usage = each.ask("GET", "/user/api/usage?days=7", key=key).json()
    assert (usage["days"], usage["totals"]["events"], len(usage["daily"])) == (7, 1, 1)
    assert [row["group"] for row in usage["models"]] == ["scripted"]
    assert each.ask("GET", "/user/api/usage", key=other["key"]).json()["totals"]["events"] == 0
    assert each.ask("GET", "/user/api/usage?days=0", key=key).status == 400
    for method, path in (("PATCH", ""), ("POST", "/revoke"), ("POST", "/rotate")):
        assert each.ask(method, f"/user/api/keys/{other['id']}{path}", {}, key=key).status == 404


def test_what_is_left_of_the_limits(each: Gate):
    user = each.make_user(tier="payg", balance_nano=5_000_000_000)
    key = each.make_key(user["id"])["key"]
    assert each.ask("GET", "/user/api/ratelimit", key=key).json()["requests"] == {"limit": 25, "remaining": 25}
    each.chat(key=key)
    limits = each.ask("GET", "/user/api/ratelimit", key=key).json()
    assert limits["requests"] == {"limit": 25, "remaining": 24}
    assert limits["tokens"] == {"limit": None, "remaining": None}


def test_models_are_listed_as_the_key_may_use_them(each: Gate):
    key = each.make_key(each.make_user()["id"], models=["narrow"])["key"]
    (model,) = each.ask("GET", "/user/api/models", key=key).json()["data"]
    assert (model["id"], model["price"]["version"] >= 1) == ("narrow", True)
    public = each.ask("GET", "/api/models", key="").json()["data"]
    assert {"scripted", "narrow"} <= {row["id"] for row in public}
    assert "source" not in public[0]


def test_users_keep_their_own_keys(each: Gate):
    user = each.make_user()
    key = each.make_key(user["id"])["key"]
    made = each.ask("POST", "/user/api/keys", {"name": "phone"}, key=key).json()
    assert each.chat(key=made["key"]).status == 200
    assert made["id"] in [row["id"] for row in each.ask("GET", "/user/api/keys", key=key).json()["data"]]
    for bad in ({"scopes": ["admin"]}, {"project": "nothing"}, {"user": "admin"}):
        assert each.ask("POST", "/user/api/keys", bad, key=key).status in (400, 403, 404)
    changed = each.ask("PATCH", f"/user/api/keys/{made['id']}", {"limits": {"concurrency": 1}}, key=key).json()
    assert changed["limits"]["concurrency"] == 1
    rotated = each.ask("POST", f"/user/api/keys/{made['id']}/rotate", {}, key=key).json()
    assert each.ask("POST", f"/user/api/keys/{rotated['id']}/revoke", key=key).json()["revoked_us"]


def test_a_session_sees_the_account_too(each: Gate):
    browser = Browser(each)
    name = make_person(each, role="user")
    browser.sign_in(name, area="user")
    assert browser.ask("GET", "/user/api/me")[1]["name"] == name
    status, made = browser.ask("POST", "/user/api/keys", {"name": "from the page"})
    assert (status, made["scopes"]) == (200, ["inference"])
    assert browser.ask("POST", "/user/api/keys", {"scopes": ["inference", "admin"]})[0] == 403


# -- sign-ups ----------------------------------------------------------------------------------------------------------


def somewhere() -> str:
    """An address that no other test asks from: few sign-ups an hour are taken from each."""
    return f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"


def ask_signup(gate: Gate, source: str, email: str, **more: str):
    return gate.ask("POST", "/api/signup", {"email": email, **more}, key="", source=source)


def test_a_signup_is_approved_and_its_key_works(single: Gate):
    email, source = f"{uuid.uuid4().hex[:8]}@Example.org", somewhere()
    taken = ask_signup(single, source, email, tier="sub", message="please")
    assert (taken.status, taken.json()["status"]) == (200, "pending")
    assert ask_signup(single, source, email.lower()).body == taken.body
    waiting = [row for row in single.admin("GET", "/signups?state=pending")["data"] if row["email"] == email.lower()]
    assert [(row["tier_id"], row["message"], row["address"]) for row in waiting] == [("sub", "please", source)]
    approved = single.admin("POST", f"/signups/{waiting[0]['id']}/approve", {})
    assert (approved["user"]["email"], approved["user"]["tier_id"]) == (email.lower(), "sub")
    assert single.chat(key=approved["key"]["key"]).status == 200
    assert single.operate("POST", f"/admin/api/signups/{waiting[0]['id']}/approve", {}).status == 409
    assert ask_signup(single, source, email).body == taken.body
    rows = single.admin("GET", "/signups")["data"]
    assert [row["state"] for row in rows if row["email"] == email.lower()] == ["approved"]


def test_signups_from_one_place_are_few(double: Gate):
    emails = [f"{uuid.uuid4().hex[:8]}@example.org" for _ in range(7)]
    source = somewhere()
    statuses = [ask_signup(double, source, email).status for email in emails]
    assert statuses == [200] * 5 + [429] * 2
    row = next(row for row in double.admin("GET", "/signups")["data"] if row["email"] == emails[0])
    assert double.admin("POST", f"/signups/{row['id']}/reject")["state"] == "rejected"


# -- reports, audit, configuration -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["day", "model", "key", "user", "project"])
def test_usage_by_everything(each: Gate, by):
    user = each.make_user()
    keys = [each.make_key(user["id"]) for _ in range(3)]
    for key in keys:
        each.chat(key=key["key"])
    rows = each.ask("GET", f"/admin/api/usage/report?by={by}&user={user['name']}").json()["data"]
    assert sum(row["events"] for row in rows) == 3
    cost = sum(row["cost_nano"] for row in each.admin("GET", f"/usage?user={user['id']}")["data"])
    assert sum(row["cost_nano"] for row in rows) == cost
    if by == "key":
        assert [row["group"] for row in rows] == sorted(key["id"] for key in keys)
        first = each.ask("GET", f"/admin/api/usage/report?by=key&user={user['name']}&limit=2").json()
        rest = each.ask("GET", f"/admin/api/usage/report?by=key&user={user['name']}&after={first['next']}").json()
        assert first["data"] + rest["data"] == rows
    if by == "user":
        assert rows[0]["label"] == user["name"]


def test_usage_as_a_table_for_spreadsheets(each: Gate):
    user = each.make_user()
    key = each.make_key(user["id"])
    each.chat(key=key["key"])
    answer = each.ask("GET", f"/admin/api/usage?user={user['id']}", Accept="text/csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    (row,) = csv.DictReader(io.StringIO(answer.body.decode()))
    assert (row["key_id"], row["status"]) == (key["id"], "completed")
    answer = each.ask("GET", "/admin/api/usage/report?by=day&limit=1", Accept="text/csv")
    assert answer.body.startswith(b"group,label,events,")
    assert answer.headers["cache-control"] == "no-store"
    nobodys = each.make_user()["id"]
    for path in ("/usage", "/usage/report", "/audit"):
        who = f"subject={nobodys}x" if path == "/audit" else f"user={nobodys}"
        answer = each.ask("GET", f"/admin/api{path}?{who}", Accept="text/csv")
        (head,) = answer.body.decode().splitlines()
        assert head.split(",")[0] in ("id", "group"), path
    assert each.ask("GET", "/admin/api/usage/report?by=hour").status == 400


def test_the_audit_says_who_did_what_from_where(each: Gate):
    browser = Browser(each)
    admin = make_person(each)
    browser.sign_in(admin)
    _, key = browser.ask("POST", "/admin/api/api-keys", {"user": admin})
    rows = each.ask("GET", f"/admin/api/audit?subject_kind=key&subject={key['id']}").json()["data"]
    assert [(row["actor"], row["origin"], row["address"], row["action"]) for row in rows] == [
        (admin, "console", "127.0.0.1", "key_create")
    ]
    assert key["key"] not in str(rows)
    first = each.ask("GET", "/admin/api/audit?limit=2").json()
    rest = each.ask("GET", f"/admin/api/audit?limit=2&after={first['next']}").json()
    ids = [row["id"] for row in first["data"] + rest["data"]]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == 4


def test_settings_are_shown_and_secrets_are_not(each: Gate):
    rows = {row["name"]: row for row in each.ask("GET", "/admin/api/config").json()["data"]}
    assert rows["DURABILITY"]["value"] == "process"
    assert rows["DURABILITY"]["origin"] != "default"
    assert rows["MASTER_KEY"]["value"] in ("", "********")


def test_uptime_is_for_everybody(each: Gate):
    uptime = each.ask("GET", "/api/uptime?days=3", key="").json()
    assert (uptime["days"], len(uptime["daily"])) == (3, 3)
    assert uptime["daily"][-1]["status"] == "up"
    assert each.ask("GET", "/api/uptime?days=91", key="").status == 400
