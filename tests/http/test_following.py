"""What is changed at one of two servers on one database holds at the other, without anybody telling it."""

import http.client
import json
import uuid
from collections.abc import Iterator

import pytest

from tests.http.harness import Gate, until
from tests.http.nodes import PATIENCE_S, cluster
from tests.scripted_engine import EngineProcess
from tests.serving import scripted_model

TOKEN = "canary-upstream-token-77aa01"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[tuple[Gate, Gate]]:
    """Two nodes with a model of the same name each."""
    with cluster(tmp_path_factory.mktemp("two"), postgres_url, scripted_model(), scripted_model()) as (one, other):
        yield one, other


@pytest.fixture(scope="module")
def upstream() -> Iterator[EngineProcess]:
    """A server elsewhere that wants a credential."""
    with EngineProcess(token=TOKEN) as engine:
        yield engine


def fresh(name: str) -> str:
    """A name that nothing has."""
    return f"{name}-{uuid.uuid4().int % 10**8:08}"


def status(gate: Gate, key: str, model: str = "scripted") -> int:
    return gate.chat(model=model, key=key).status


def later(gate: Gate, key: str, wanted: int, model: str = "scripted") -> None:
    """A request with this key gets this status there, soon."""
    until(lambda: status(gate, key, model), lambda found: found == wanted, PATIENCE_S)


def test_a_providers_credential_and_its_models(two: tuple[Gate, Gate], upstream: EngineProcess) -> None:
    one, other = two
    key = other.server.key
    provider, model = fresh("acme"), fresh("elsewhere")
    wrong = {"name": provider, "kind": "openai", "base_url": f"{upstream.url}/v1", "credential": "wrong-credential"}
    one.admin("POST", "/providers", wrong)
    remote = {"provider": provider, "price": {"input": 1, "output": 1}, "health_s": 0}
    one.admin("POST", "/models", {"id": model, "ctx": 8192, "remote": remote})
    later(other, key, 502, model)
    one.admin("PATCH", f"/providers/{provider}", {"credential": TOKEN})
    later(other, key, 200, model)
    other_name = fresh("other-name")
    one.admin("PATCH", f"/models/{model}", {"aliases": [other_name]})
    later(other, key, 200, other_name)
    one.admin("DELETE", f"/models/{model}")
    later(other, key, 404, model)
    assert status(one, key, model) == 404


def test_a_model_of_one_nodes_engines_is_not_registered_at_the_other(two: tuple[Gate, Gate]) -> None:
    one, other = two
    local_only, provider, seen_after = fresh("local-only"), fresh("seen"), fresh("seen-after")
    one.admin("POST", "/models", {"id": local_only, "source": "hf:nobody/nothing", "type": "text"})
    one.admin("POST", "/providers", {"name": provider, "kind": "openai", "base_url": "https://seen.example.org/v1"})
    remote = {"provider": provider, "price": {"input": 1, "output": 1}, "health_s": 0}
    one.admin("POST", "/models", {"id": seen_after, "ctx": 8192, "remote": remote})

    def registered() -> dict[str, str]:
        return {row["id"]: row["source"] for row in other.admin("GET", "/models")["data"]}

    found = until(registered, lambda rows: seen_after in rows, PATIENCE_S)
    assert found.get(local_only) in (None, f"node:{local_only}")
    for model in (local_only, seen_after):
        one.admin("DELETE", f"/models/{model}")


def test_a_price(two: tuple[Gate, Gate]) -> None:
    one, other = two
    key = other.make_key(other.make_user()["id"])["key"]
    price = {"model": "scripted", "input_nano": 0, "output_nano": 0, "request_nano": 7 * 10**6}
    one.admin("POST", "/pricing", price)

    def cost() -> int:
        return int(other.event(other.chat(key=key).request_id)["cost_nano"])

    until(cost, lambda nano: nano == 7, PATIENCE_S)


def test_a_tiers_limit_and_a_users_tier(two: tuple[Gate, Gate]) -> None:
    one, other = two
    name = "t" + uuid.uuid4().hex[:8]
    one.admin("POST", "/tiers", {"id": name})
    user = one.make_user(tier=name)
    key = one.make_key(user["id"])["key"]
    assert status(other, key) == 200
    one.admin("PATCH", f"/tiers/{name}", {"requests_per_minute": 1})
    later(other, key, 429)
    one.admin("PATCH", f"/users/{user['id']}", {"tier": "admin"})
    later(other, key, 200)


def test_a_keys_limit_and_models(two: tuple[Gate, Gate]) -> None:
    one, other = two
    made = one.make_key(one.make_user()["id"])
    assert status(other, made["key"]) == 200
    one.admin("PATCH", f"/api-keys/{made['id']}", {"limits": {"token_limit": 1}})
    later(other, made["key"], 429)
    one.admin("PATCH", f"/api-keys/{made['id']}", {"limits": {"token_limit": None}, "models": ["nothing"]})
    later(other, made["key"], 404)


def test_a_balance(two: tuple[Gate, Gate]) -> None:
    one, other = two
    user = one.make_user(tier="payg")
    key = one.make_key(user["id"])["key"]
    assert status(other, key) == 402
    one.admin("POST", f"/users/{user['id']}/topup", {"amount_nano": 10**9})
    later(other, key, 200)


def test_a_user_who_is_shut_out_is_out_with_key_and_session(two: tuple[Gate, Gate]) -> None:
    one, other = two
    user = one.make_user()
    key = one.make_key(user["id"])["key"]
    assert status(other, key) == 200
    cookie = _sign_in(other, key)
    assert _session_status(other, cookie) == 200
    one.admin("DELETE", f"/users/{user['id']}")
    later(other, key, 401)
    until(lambda: _session_status(other, cookie), lambda found: found == 401, PATIENCE_S)


def test_a_session_that_is_ended_at_one_node_is_over_at_the_other(two: tuple[Gate, Gate]) -> None:
    one, other = two
    user = one.make_user()
    key = one.make_key(user["id"])["key"]
    cookie = _sign_in(other, key)
    assert _session_status(other, cookie) == 200
    for session in one.admin("GET", f"/sessions?user={user['id']}")["data"]:
        one.admin("DELETE", f"/sessions/{session['id']}")
    until(lambda: _session_status(other, cookie), lambda found: found == 401, PATIENCE_S)


def _sign_in(gate: Gate, key: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", gate.server.port, timeout=30)
    try:
        connection.request(
            "POST", "/user/api/login", json.dumps({"api_key": key}), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        return answer.headers["Set-Cookie"].partition(";")[0]
    finally:
        connection.close()


def _session_status(gate: Gate, cookie: str) -> int:
    return gate.ask("GET", "/user/api/me", key="", Cookie=cookie).status
