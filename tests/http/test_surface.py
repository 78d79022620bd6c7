"""Every route of the surface against every kind of caller, and the pages that anyone may see."""

import json
import re

import pytest
from jsonschema import Draft202012Validator

from stentor.http.openapi import openapi_document
from stentor.http.surface import SURFACE, Route
from tests.http.harness import CHAT, Gate, RawConnection, chat_body, raw_request, until
from tests.scripted_engine import script

CALLERS = ("nobody", "a ring key", "an inference key", "an admin key", "a revoked key", "the operator")
PARAMETERS = {
    "{model}": "scripted",
    "{id}": "nothing-of-this-name",
    "{slot}": "1",
    "{instance}": "nothing-of-this-name",
    "{rest}": "x",
    "{user}": "nobody-of-this-name",
    "{provider}": "openai",
    "{version}": "1",
    "{level}": "0",
    "{index}": "0",
}

EMPTYING = ("/unload", "/api/models/unload")
BODIES = {"create_user_key": {"scopes": ["admin"]}}


def target(route: Route) -> str:
    path = route.path
    for name, value in PARAMETERS.items():
        path = path.replace(name, value)
    return path


@pytest.fixture(scope="session")
def keys(request: pytest.FixtureRequest):
    """Key texts by caller, made once a server."""
    made: dict[int, dict[str, str]] = {}

    def keys_of(gate: Gate) -> dict[str, str]:
        if gate.port not in made:
            revoked = gate.make_key(scopes=["inference", "admin"])
            gate.admin("POST", f"/api-keys/{revoked['id']}/revoke")
            made[gate.port] = {
                "nobody": "",
                "a ring key": gate.make_key(scopes=["ring"])["key"],
                "an inference key": gate.make_key()["key"],
                "an admin key": gate.make_key(scopes=["admin"])["key"],
                "a revoked key": revoked["key"],
            }
        return made[gate.port]

    return keys_of


def may(route: Route, caller: str) -> bool:
    """Who may call what, said once more in other words than the server's."""
    if route.access in ("public", "metrics") or caller == "the operator":
        return True
    if (route.handler, caller) == ("create_own_key", "an admin key"):
        return False  # a key that only manages has nothing to give
    if route.access == "user":
        return caller in ("a ring key", "an inference key", "an admin key")
    scopes = {"an inference key": "inference", "a ring key": "ring", "an admin key": "admin"}
    return caller in scopes and route.scope == scopes[caller]


def is_as_promised(route: Route, caller: str, status: int) -> bool:
    if may(route, caller):
        return status not in (401, 403, 405, 500)
    return status == (401 if caller in ("nobody", "a revoked key") else 403)


@pytest.mark.parametrize("caller", CALLERS)
def test_who_may_call_what(each: Gate, keys, caller):
    """Every route; one test a caller, as thousands of small ones cost more than what they ask."""
    wrong = []
    for route in SURFACE:
        if route.path in EMPTYING and may(route, caller):
            continue  # it would unload the models of all other tests; tried where there is a server for it
        body = BODIES.get(route.handler, {}) if route.method != "GET" else None
        if caller == "the operator":
            answer = each.operate(route.method, target(route), body)
        else:
            answer = each.ask(route.method, target(route), body, key=keys(each)[caller])
        if not is_as_promised(route, caller, answer.status):
            wrong.append((route.method, route.path, answer.status, answer.body[:200]))
    assert wrong == []


def test_every_route_says_who_may_call_it():
    assert {route.access for route in SURFACE} == {"public", "key", "user", "admin", "metrics"}
    assert [route.path for route in SURFACE if route.access in ("key", "admin", "metrics") and not route.scope] == []
    admin = [route for route in SURFACE if route.path.startswith(("/admin", "/upstream"))]
    assert [route.path for route in admin if route.access != "admin"] == ["/admin/api/login"]
    own = [route for route in SURFACE if route.path.startswith("/user")]
    assert [route.path for route in own if route.access != "user"] == ["/user/api/login"]
    public = {route.path for route in SURFACE if route.access == "public"}
    ring = {path for path in public if path.startswith(("/receipts/", "/registry", "/api/v1/receipts/"))}
    pages = {"/", "/health", "/api/version", "/openapi.json", "/docs", "/swagger-ui/"}
    console = {
        "/admin/api/login",
        "/user/api/login",
        "/api/models",
        "/api/signup",
        "/api/v1/cli/register",
        "/api/uptime",
    }
    assert public - ring == pages | console
    # Keys, checkpoints, proofs, hashes and the registry are for everyone; contents are not.
    assert "/receipts/log/entries" not in ring
    assert {path for path in ring if path.startswith("/api/v1")} == {
        "/api/v1/receipts/verify", "/api/v1/receipts/public-key.pem", "/api/v1/receipts/public-keys.json",
    }  # fmt: skip


RANGED = [
    (path, parameter["name"], parameter["schema"]["maximum"])
    for path, operations in openapi_document("0")["paths"].items()
    for parameter in operations.get("get", {}).get("parameters", ())
    if "maximum" in parameter["schema"]
]


def test_what_the_document_promises_of_numbers_is_taken_and_no_more(gate: Gate):
    key = gate.make_key(scopes=["ring", "admin"])["key"]
    assert {"days", "limit"} <= {name for _, name, _ in RANGED}
    for path, name, most in RANGED:
        place = path.replace("{id}", "nothing-of-this-name")
        more = "&q=x" if path.endswith("/search") else ""
        at_most = gate.ask("GET", f"{place}?{name}={most}{more}", key=key)
        assert at_most.status not in (400, 422), (path, name, at_most.body)
        beyond = gate.ask("GET", f"{place}?{name}={most + 1}{more}", key=key)
        assert beyond.status in (400, 404, 422), (path, name, beyond.status)


def test_the_document_says_why_anyone_may_be_refused(gate: Gate):
    paths = gate.contract.document["paths"]
    assert {"403", "413", "429", "503"} <= set(paths["/api/signup"]["post"]["responses"])
    assert {"401", "403", "429"} <= set(paths["/user/api/login"]["post"]["responses"])


def test_the_document_lists_the_surface(each: Gate):
    document = each.contract.document
    assert document["openapi"] == "3.1.0"
    listed = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    assert listed == {(route.method, route.path) for route in SURFACE}
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names <= set(document["components"]["schemas"])


def test_the_document_is_the_same_from_every_worker(double: Gate):
    assert {double.ask("GET", "/openapi.json", key="").body for _ in range(8)} == {
        double.operate("GET", "/openapi.json").body
    }


# -- the operator's answers, validated as they come


def test_management_goes_through_either_server(each: Gate):
    user = each.make_user(tier="payg", balance_nano=5_000_000)
    key = each.make_key(user["id"], limits={"concurrency": 3}, models=["scripted"])
    assert each.chat(key=key["key"]).status == 200
    for path in ("/api-keys", "/users", "/usage", "/models", "/slots", "/system", "/doctor"):
        over_http = each.ask("GET", f"/admin/api{path}")
        assert over_http.status == 200
        assert set(over_http.json()) == set(each.admin("GET", path))
    rotated = each.admin("POST", f"/api-keys/{key['id']}/rotate", {"grace_s": 60})
    assert each.chat(key=rotated["key"]).status == each.chat(key=key["key"]).status == 200
    made = each.ask("POST", "/admin/api/api-keys", {"user": user["id"], "name": "over http"}).json()
    assert made["key"].startswith("sk-")
    assert made["key"] not in each.ask("GET", "/admin/api/api-keys").body.decode()


def test_usage_is_paged(each: Gate):
    key = each.make_key()
    ids = [each.chat(key=key["key"]).request_id for _ in range(7)]
    seen: list[str] = []
    after = ""
    while True:
        answer = each.admin("GET", f"/usage?key={key['id']}&limit=3" + after)
        seen += [row["request_id"] for row in answer["data"]]
        if answer["next"] is None:
            break
        after = f"&after={answer['next']}"
    assert seen == ids[::-1]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/usage?limit=0", None, 400),
        ("GET", "/usage?limit=ten", None, 400),
        ("GET", "/usage?after=x", None, 400),
        ("GET", "/usage?since_us=yesterday", None, 400),
        ("POST", "/api-keys", b"{", 400),
        ("POST", "/api-keys", b"[]", 400),
        ("POST", "/api-keys", {"user": "nobody-like-that"}, 404),
        ("POST", "/api-keys", {"user": "admin", "scopes": ["everything"]}, 403),
        ("POST", "/users", {"name": 7}, 400),
        ("POST", "/users", {"name": "admin"}, 409),
        ("POST", "/users", {"name": "x", "tier": "gold"}, 404),
        ("POST", "/api-keys/nothing/revoke", {}, 404),
        ("POST", "/users/nothing/topup", {"amount_nano": 1}, 404),
        ("POST", "/users/admin/topup", {"amount_nano": "much"}, 400),
        ("POST", "/models/nothing/start", {}, 404),
        ("POST", "/models/scripted/start", {"instances": 0}, 400),
        ("POST", "/models/scripted/start", {"instances": "two"}, 400),
        ("PATCH", "/users/admin", {"active": "no"}, 400),
        ("PATCH", "/users/admin", {"nonsense": 1}, 400),
        ("PATCH", "/users/admin", {"role": "king"}, 400),
        ("PATCH", "/users/admin", {"tier": "gold"}, 404),
        ("PATCH", "/api-keys/nothing", {"name": "x"}, 404),
        ("POST", "/users/nobody-like-that/apikey", {}, 404),
        ("GET", "/users/admin/ledger?after=x", None, 400),
        ("POST", "/tiers", {"id": "a b"}, 400),
        ("POST", "/tiers", {"id": "payg"}, 409),
        ("PATCH", "/tiers/payg", {"concurrency": -1}, 400),
        ("DELETE", "/tiers/payg", None, 409),
        ("POST", "/projects", {"name": "", "owner": "admin"}, 400),
        ("POST", "/projects", {"name": "x", "owner": "admin", "budgets": {"year": 1}}, 400),
        ("POST", "/projects", {"name": "x", "owner": "admin", "budgets": {"day": -1}}, 400),
        ("POST", "/pricing", {"model": "x", "input_nano": 10**30, "output_nano": 0}, 400),
        ("POST", "/pricing", {"model": "x", "input_nano": 1, "output_nano": 0, "effective_us": 3}, 400),
        ("GET", "/pricing/nothing", None, 404),
    ],
)
def test_wrong_management_calls_are_refused(each: Gate, method, path, body, status):
    answer = each.ask(method, "/admin/api" + path, body)
    assert answer.status == status, answer.body
    assert answer.json()["detail"]


def test_an_unknown_scope_is_refused(each: Gate):
    answer = each.operate("POST", "/admin/api/api-keys", {"user": "admin", "scopes": ["everything"]})
    assert answer.status == 400
    assert "everything" in answer.json()["detail"]


# -- pages


def test_health(each: Gate):
    answer = each.ask("GET", "/health", key="")
    health = answer.json()
    assert (answer.status, health["status"], health["database"]) == (200, "healthy", "connected")
    assert health["workers_idle"] >= 65
    assert health["active_slots"] >= 2


@pytest.mark.parametrize(
    ("accept", "text"),
    [
        ("text/plain", True),
        ("text/plain, application/json", True),
        ("application/json, text/plain", False),
        ("application/json;q=0.1, text/plain;q=0.9", True),
        ("text/plain;q=0.1, application/json;q=0.9", False),
        ("*/*", False),
        ("text/plain;q=nonsense", False),
        ("", False),
        ("text/html", False),
    ],
)
def test_health_in_the_words_that_are_wanted(each: Gate, accept, text):
    answer = each.ask("GET", "/health", key="", Accept=accept)
    if text:
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert re.fullmatch(r"ok – workers idle: \d+", answer.body.decode())
    else:
        assert answer.json()["status"] == "healthy"


def test_idle_workers_are_counted(each: Gate):
    before = each.ask("GET", "/health", key="").json()["workers_idle"]
    stream = each.open(script({"say": "a"}, {"hang": True}))
    until(lambda: each.ask("GET", "/health", key="").json()["workers_idle"], lambda idle: idle == before - 1)
    stream.leave()


def test_the_root_in_three_forms(each: Gate):
    page = each.ask("GET", "/", key="", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert b"/docs" in page.body
    assert each.ask("GET", "/", key="", Accept="text/plain").body == b"LMServ is running."
    root = each.ask("GET", "/", key="").json()
    assert set(root) == {"name", "version", "docs", "registry"}


@pytest.mark.parametrize("path", ["/docs", "/swagger-ui/"])
def test_the_reference_page_loads_nothing_from_elsewhere(each: Gate, path):
    answer = each.ask("GET", path, key="")
    text = answer.body.decode()
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<script" not in text
    assert not re.search(r"(src|href)=['\"]?(https?:)?//", text)
    assert all(route.path in text for route in SURFACE)


def test_metrics_are_open_on_loopback_and_name_nobody(each: Gate):
    user = each.make_user()
    key = each.make_key(user["id"])
    answer = each.chat(key=key["key"], user="somebody-special")
    each.chat(key=key["key"], model="a-model-that-is-not-there")
    metrics = each.ask("GET", "/metrics", key="")
    text = metrics.body.decode()
    assert metrics.headers["content-type"].startswith("text/plain; version=")
    for word in (key["id"], key["key"], key["hint"], user["id"], user["name"], answer.request_id, "somebody-special"):
        assert word not in text
    assert "a-model-that-is-not-there" not in text
    assert 'model="scripted"' in text


def test_metrics_count_what_happened(each: Gate):
    before = each.metric("stentor_output_tokens_total"), each.metric("stentor_requests_closed_total")
    each.chat(script({"tokens": 9}))
    after = each.metric("stentor_output_tokens_total"), each.metric("stentor_requests_closed_total")
    assert after == (before[0] + 9, before[1] + 1)


def test_forwarded_headers_of_strangers_are_ignored(each: Gate):
    spoofed = {"X_Forwarded_For": "8.8.8.8", "X_Forwarded_Host": "evil.example", "Forwarded": "for=8.8.8.8"}
    assert each.ask("GET", "/metrics", key="", **spoofed).status == 200
    assert each.ask("GET", "/health", key="", **spoofed).status == 200


def test_request_ids_are_ours_and_never_twice(each: Gate):
    ids = [each.ask("GET", "/health", key="", X_Request_Id="mine").headers["x-request-id"] for _ in range(50)]
    assert len(set(ids)) == 50
    assert "mine" not in ids


def test_a_server_that_says_little_about_itself(each: Gate):
    answer = each.chat()
    assert "server" not in answer.headers
    assert "x-powered-by" not in answer.headers


@pytest.mark.parametrize(
    "path", ["/admin/api/api%2Dkeys", "/%61dmin/api/users", "/admin/api/../api/users", "/admin//api/users"]
)
def test_no_spelling_of_a_path_gets_around_the_door(each: Gate, path):
    with RawConnection(each.port) as connection:
        connection.send(raw_request("GET", path, {"Host": "localhost"}))
        assert connection.answer().status in (401, 404)
        key = each.make_key()["key"]
        connection.send(raw_request("GET", path, {"Host": "localhost", "Authorization": f"Bearer {key}"}))
        assert connection.answer().status in (403, 404)


def test_a_chat_needs_no_content_type(each: Gate):
    data = json.dumps(chat_body()).encode()
    for kind in ({}, {"Content_Type": "text/plain"}, {"Content_Type": "application/json; charset=utf-8"}):
        assert each.ask("POST", CHAT, data, **kind).status == 200


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "did you mean /v1/chat/completions? "),
        ("/v1/v1/chat/completions", "did you mean /v1/chat/completions? "),
        ("/v1/chat/completions/", "did you mean /v1/chat/completions? "),
        ("//v1//models", "did you mean /v1/models? "),
        ("/v1/api/chat", "did you mean /api/chat? "),
        ("/api/pull", "here the operator fetches and removes models, with `stentor models`; "),
        ("/v1/nothing", ""),
    ],
)
def test_a_wrong_base_url_is_told_the_right_path(gate: Gate, path, meant):
    with RawConnection(gate.port) as connection:
        connection.send(raw_request("POST", path, {"Host": "localhost"}))
        answer = connection.answer()
    assert answer.status == 404
    error = json.loads(answer.body)["error"]  # as this client's library reads it, or it would show nothing
    assert f"There is nothing at {path}; {meant}/docs lists" in (error["message"] if isinstance(error, dict) else error)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("Authorization", "The Authorization header doesn't begin with 'Bearer '. Send it as"),
        ("api-key", "the header 'api-key' isn't read. Send it as"),
    ],
)
def test_a_key_in_a_wrong_place_is_told(gate: Gate, header, said):
    with RawConnection(gate.port) as connection:
        connection.send(raw_request("GET", "/v1/models", {"Host": "localhost", header: gate.make_key()["key"]}))
        answer = connection.answer()
    assert answer.status == 401
    assert said in answer.body.decode()


def test_a_browser_of_another_website_is_told_of_the_setting(gate: Gate):
    answer = gate.ask("OPTIONS", "/v1/models", b"", Origin="http://localhost:3000")
    assert answer.status == 405
    assert "CORS_ORIGINS" in answer.body.decode()
