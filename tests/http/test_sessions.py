"""Signing in to the console, as a browser does it: cookies, tokens for changes, origins, ends."""

import http.client
import json
import uuid
from typing import Any

import pytest

from tests.http.harness import Gate, Json, until

PASSWORD = "correct horse battery"


class Browser:
    """Keeps cookies by path, and sends the session's token with what changes something."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.cookies: dict[str, tuple[str, str]] = {}
        self.csrf = ""
        self.set_cookie = ""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Json]:
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        kept = [f"{name}={value}" for name, (where, value) in self.cookies.items() if path.startswith(where)]
        if kept:
            sent["Cookie"] = "; ".join(kept)
        if self.csrf and method != "GET":
            sent.setdefault("X-CSRF-Token", self.csrf)
        connection = self.gate.server.connect()
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        value = json.loads(answer.read())
        self._keep(answer)
        connection.close()
        if isinstance(value, dict) and value.get("csrf_token"):
            self.csrf = value["csrf_token"]
        return answer.status, value

    def _keep(self, answer: http.client.HTTPResponse) -> None:
        self.set_cookie = answer.headers.get("set-cookie", "")
        if self.set_cookie:
            first, *rest = self.set_cookie.split("; ")
            name, _, value = first.partition("=")
            path = next(part[5:] for part in rest if part.startswith("Path="))
            self.cookies[name] = (path, value)
            if "Max-Age=0" in rest:
                del self.cookies[name]

    def sign_in(self, name: str, password: str = PASSWORD, area: str = "admin") -> tuple[int, Json]:
        return self.ask("POST", f"/{area}/api/login", {"username": name, "password": password})


def make_person(gate: Gate, role: str = "admin", **more: Any) -> str:
    name = "p" + uuid.uuid4().hex[:10]
    gate.admin("POST", "/users", {"name": name, "role": role, "tier": "admin", "password": PASSWORD})
    if more:
        gate.admin("PATCH", f"/users/{name}", more)
    return name


@pytest.fixture
def signed(each: Gate) -> Browser:
    browser = Browser(each)
    status, session = browser.sign_in(make_person(each))
    assert status == 200, session
    return browser


def test_a_session_does_what_its_admin_may(each: Gate, signed: Browser):
    assert "HttpOnly" in signed.set_cookie
    assert "SameSite=Lax" in signed.set_cookie
    assert "Path=/admin" in signed.set_cookie
    status, session = signed.ask("GET", "/admin/api/session")
    assert (status, session["kind"], session["must_change_password"]) == (200, "admin", False)
    each.contract.validate({"$ref": "#/components/schemas/SessionView"}, session)
    assert signed.ask("GET", "/admin/api/users")[0] == 200
    status, made = signed.ask(
        "POST", "/admin/api/api-keys", {"user": session["user"], "scopes": ["inference", "admin"]}
    )
    assert (status, made["key"][:3]) == (200, "sk-")


def test_the_cookie_opens_nothing_but_its_own_area(each: Gate, signed: Browser):
    cookie = "stentor_admin=" + signed.cookies["stentor_admin"][1]
    for path in ("/v1/models", "/metrics-not", "/user/api/session", "/upstream/scripted/health"):
        status, _ = Browser(each).ask("GET", path, Cookie=cookie)
        assert status in (401, 404), path


def test_a_change_needs_the_token(signed: Browser):
    token, signed.csrf = signed.csrf, ""
    status, body = signed.ask("POST", "/admin/api/users", {"name": "never"})
    assert (status, body["code"]) == (403, "csrf_failed")
    assert signed.ask("POST", "/admin/api/users", {"name": "never"}, X_CSRF_Token=token[:-1] + "x")[0] == 403
    assert signed.ask("POST", "/admin/api/logout", X_CSRF_Token=token)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_another_websites_page_changes_nothing(signed: Browser, headers):
    status, body = signed.ask("POST", "/admin/api/users", {"name": "never"}, **headers)
    assert (status, body["code"]) == (403, "csrf_failed")
    status, body = signed.ask("POST", "/admin/api/login", {"username": "x", "password": "y"}, **headers)
    assert (status, body["code"]) == (403, "csrf_failed")


def test_our_own_page_may(each: Gate, signed: Browser):
    for unreadable in ("null", "http://[", "http://[" + "x" * 2000):
        status, body = signed.ask("POST", "/admin/api/logout", Origin=unreadable)
        assert (status, body["code"]) == (403, "csrf_failed")
    origin = f"http://127.0.0.1:{each.port}"
    status, _ = signed.ask("POST", "/admin/api/logout", Origin=origin, Sec_Fetch_Site="same-origin")
    assert status == 200


def test_signed_out_is_out(signed: Browser):
    cookie = "stentor_admin=" + signed.cookies["stentor_admin"][1]
    assert signed.ask("POST", "/admin/api/logout") == (200, {"ended": True})
    assert signed.cookies == {}
    status, body = signed.ask("GET", "/admin/api/users", Cookie=cookie)
    assert (status, body["code"]) == (401, "session_ended")


def test_sessions_are_listed_and_ended_by_others(each: Gate, signed: Browser):
    _, session = signed.ask("GET", "/admin/api/session")
    rows = each.admin("GET", f"/sessions?user={session['user']}")["data"]
    assert [(row["address"], row["current"]) for row in rows] == [("127.0.0.1", False)]
    assert "digest" not in rows[0]
    each.admin("DELETE", f"/sessions/{rows[0]['id']}")
    assert signed.ask("GET", "/admin/api/users")[0] == 401
    assert each.operate("DELETE", f"/admin/api/sessions/{rows[0]['id']}").status == 404


@pytest.mark.parametrize("change", [{"active": False}, {"role": "user"}, {"password": "another password"}])
def test_a_change_of_the_user_ends_their_sessions(each: Gate, change):
    make_person(each)  # so that one admin is left
    name = make_person(each)
    browser = Browser(each)
    assert browser.sign_in(name)[0] == 200
    each.admin("PATCH", f"/users/{name}", change)
    assert browser.ask("GET", "/admin/api/users")[0] == 401


def test_a_generated_password_must_be_changed_first(each: Gate):
    name = make_person(each, password=PASSWORD, password_temporary=True)
    browser, other = Browser(each), Browser(each)
    assert browser.sign_in(name)[1]["must_change_password"] is True
    other.sign_in(name)
    status, body = browser.ask("GET", "/admin/api/users")
    assert (status, body["code"]) == (403, "password_change_required")
    new = "a password of my own"
    wrong = browser.ask("POST", "/admin/api/password", {"password": "not it", "new_password": new})
    assert (wrong[0], wrong[1]["code"]) == (401, "wrong_password")
    assert browser.ask("POST", "/admin/api/password", {"password": PASSWORD, "new_password": PASSWORD})[0] == 400
    assert browser.ask("POST", "/admin/api/password", {"password": PASSWORD, "new_password": new})[0] == 200
    assert browser.ask("GET", "/admin/api/users")[0] == 200
    assert other.ask("GET", "/admin/api/session")[0] == 401
    assert Browser(each).sign_in(name, new)[0] == 200


def test_a_user_is_no_admin(each: Gate):
    name = make_person(each, role="user")
    browser = Browser(each)
    status, body = browser.sign_in(name)
    assert (status, body["code"]) == (401, "wrong_password")
    status, session = browser.sign_in(name, area="user")
    assert (status, session["kind"]) == (200, "user")
    assert "Path=/user" in browser.set_cookie
    cookie = "stentor_admin=" + browser.cookies["stentor_user"][1]
    assert Browser(each).ask("GET", "/admin/api/users", Cookie=cookie)[0] == 401


def test_a_key_is_exchanged_for_its_users_session(each: Gate):
    user = each.make_user()
    key = each.make_key(user["id"])
    browser = Browser(each)
    status, session = browser.ask("POST", "/user/api/login", {"api_key": key["key"]})
    assert (status, session["user"], session["kind"]) == (200, user["name"], "user")
    rows = browser.ask("GET", "/user/api/sessions")[1]["data"]
    assert [row["current"] for row in rows] == [True]
    stranger = each.make_key(each.make_user()["id"])["key"]
    other = Browser(each)
    other.ask("POST", "/user/api/login", {"api_key": stranger})
    assert other.ask("DELETE", f"/user/api/sessions/{rows[0]['id']}")[0] == 404
    assert browser.ask("DELETE", f"/user/api/sessions/{rows[0]['id']}")[0] == 200
    assert browser.ask("GET", "/user/api/session")[0] == 401


def test_a_session_that_a_key_opened_may_do_no_more_than_the_key(each: Gate):
    user = each.make_user()
    narrow = each.make_key(user["id"], models=["scripted"], scopes=["inference"], limits={"token_limit": 50})
    wide = each.make_key(user["id"])
    browser = Browser(each)
    status, session = browser.ask("POST", "/user/api/login", {"api_key": narrow["key"]})
    assert status == 200
    csrf = {"X-CSRF-Token": session["csrf_token"]}
    limits = {"token_limit": 50}
    for body in (
        {},
        {"models": ["scripted"]},
        {"models": ["scripted", "narrow"], "limits": limits},
        {"limits": limits},
    ):
        status, answer = browser.ask("POST", "/user/api/keys", body, **csrf)
        assert (status, answer["code"]) == (403, "insufficient_scope"), body
    lifted = {"limits": {"token_limit": None}}
    assert browser.ask("PATCH", f"/user/api/keys/{narrow['id']}", lifted, **csrf)[0] == 403
    assert browser.ask("POST", f"/user/api/keys/{wide['id']}/rotate", {}, **csrf)[0] == 403
    assert [row["id"] for row in browser.ask("GET", "/user/api/models")[1]["data"]] == ["scripted"]
    # Each key counts by itself, so one with limits makes none, however narrow.
    body = {"models": ["scripted"], "limits": limits}
    assert browser.ask("POST", "/user/api/keys", body, **csrf)[0] == 403
    each.admin("POST", f"/api-keys/{narrow['id']}/revoke")
    until(lambda: browser.ask("GET", "/user/api/me")[0], lambda status: status == 401, 30.0)


def test_a_session_does_only_what_its_key_may_call(gate: Gate):
    user = gate.make_user()
    other = gate.make_key(user["id"])
    narrow = gate.make_key(user["id"], endpoints=["/v1/chat/completions", "/user/api/me"])
    browser = Browser(gate)
    assert browser.ask("POST", "/user/api/login", {"api_key": narrow["key"]})[0] == 200
    for method, path in (("GET", "/user/api/keys"), ("POST", f"/user/api/keys/{other['id']}/revoke")):
        status, answer = browser.ask(method, path)
        assert (status, answer["code"]) == (403, "insufficient_scope"), path
    assert browser.ask("GET", "/user/api/me")[0] == 200


def test_a_first_password_is_set_over_a_key(gate: Gate):
    user = gate.make_user()
    browser = Browser(gate)
    browser.ask("POST", "/user/api/login", {"api_key": gate.make_key(user["id"])["key"]})
    assert browser.ask("POST", "/user/api/password", {"new_password": PASSWORD})[0] == 200
    assert Browser(gate).sign_in(user["name"], area="user")[0] == 200


def test_a_key_does_not_lift_its_own_limits(each: Gate):
    narrow = each.make_key(each.make_user()["id"], models=["scripted"], limits={"token_limit": 50})
    for change in ({"limits": {"token_limit": None}}, {"limits": {"token_limit": 51}}, {"models": []}):
        answer = each.ask("PATCH", f"/user/api/keys/{narrow['id']}", change, key=narrow["key"])
        assert (answer.status, answer.json()["code"]) == (403, "insufficient_scope"), change
    (key,) = each.ask("GET", "/user/api/keys", key=narrow["key"]).json()["data"]
    assert (key["limits"]["token_limit"], key["models"]) == (50, ["scripted"])
    tighter = {"limits": {"token_limit": 40}}
    assert each.ask("PATCH", f"/user/api/keys/{narrow['id']}", tighter, key=narrow["key"]).status == 200


def test_a_key_asks_who_it_is(each: Gate):
    key = each.make_key(scopes=["admin"])["key"]
    answer = each.ask("GET", "/admin/api/session", key=key).json()
    assert (answer["kind"], answer["csrf_token"]) == ("key", None)
    assert each.ask("GET", "/user/api/session", key=each.make_key()["key"]).json()["kind"] == "key"


def test_nothing_of_a_session_lies_readable(each: Gate, signed: Browser):
    token = signed.cookies["stentor_admin"][1]
    texts = [each.server.log, *(path.read_bytes() for path in each.server.data_dir.glob("stentor.db*"))]
    assert not any(token.encode() in text or PASSWORD.encode() in text for text in texts)
