"""Every change that a manager or a user makes leaves one entry at least, and no secret in it."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

from stentor.http.surface import SURFACE
from tests.http.harness import Gate
from tests.http.test_sessions import Browser

SECRET = "canary-Zq9x-6f1d2c-never-shown"
# What these change is no state of the books: they ask somebody, or have entries tested where models and slots are.
ELSEWHERE = {
    "admin_login", "user_login", "test_provider", "test_webhook", "start_model", "stop_model", "register_model",
    "download_model", "change_model", "delete_model", "update_model", "cancel_download", "retry_download", "load_slot",
    "unload_slot", "drain_slot", "rotate_master_key", "rotate_receipt_key", "pass_on", "user_logout", "admin_logout",
    "user_password", "end_own_session", "admin_password", "reject_signup", "approve_signup",
    "swap_unload",
}  # fmt: skip


class Clerk:
    """Makes changes, and looks at what each left in the audit."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.done: set[str] = set()
        self.name = "n" + uuid.uuid4().hex[:8]

    def change(self, handler: str, path: str, body: Any = None, *, key: str | None = None) -> Any:
        """Have ``handler``'s route change something; ``path`` without its area."""
        (route,) = [route for route in SURFACE if route.handler == handler and route.access in ("admin", "user")]
        area = "/user/api" if route.access == "user" else "/admin/api"
        before = self.newest()
        answer = self.gate.ask(route.method, area + path, body, key=key or self.gate.key)
        assert answer.status == 200, (handler, answer.body)
        entries = [entry for entry in self.gate.admin("GET", "/audit?limit=20")["data"] if entry["id"] > before]
        assert entries, f"{handler} left no entry"
        assert all(entry["actor"] and entry["origin"] and entry["address"] for entry in entries), entries
        text = json.dumps(entries)
        assert SECRET not in text
        row = answer.json()
        for name in ("key", "secret"):
            assert not row.get(name) or row[name] not in text
        self.done.add(handler)
        return row

    def newest(self) -> int:
        return int(self.gate.admin("GET", "/audit?limit=1")["data"][0]["id"])


def test_each_change_is_on_record_and_no_secret_with_it(gate: Gate) -> None:
    clerk = Clerk(gate)
    change_people(clerk)
    change_own(clerk)
    change_offers(clerk)
    change_credentials(clerk)
    browser = Browser(gate)
    user = gate.make_user()
    browser.ask("POST", "/user/api/login", {"api_key": gate.make_key(user["id"])["key"]})
    (session,) = gate.admin("GET", f"/sessions?user={user['id']}")["data"]
    clerk.change("end_session", f"/sessions/{session['id']}")
    assert set(changing()) - clerk.done == ELSEWHERE & set(changing())


def changing() -> Iterator[str]:
    """Handlers of what changes anything."""
    for route in SURFACE:
        if route.method != "GET" and (route.access in ("admin", "user") or route.sign_in) and route.path != "/chat":
            yield route.handler


def change_people(clerk: Clerk) -> None:
    name = clerk.name
    user = clerk.change("create_user", "/users", {"name": name, "password": SECRET})
    clerk.change("change_user", f"/users/{user['id']}", {"password": SECRET + "2", "email": f"{name}@example.org"})
    clerk.change("top_up", f"/users/{user['id']}/topup", {"amount_nano": 5})
    key = clerk.change("create_key", "/api-keys", {"user": name})
    clerk.change("create_user_key", f"/users/{user['id']}/apikey", {})
    clerk.change("change_key", f"/api-keys/{key['id']}", {"limits": {"token_limit": 5}})
    key = clerk.change("rotate_key", f"/api-keys/{key['id']}/rotate", {})
    clerk.change("revoke_key", f"/api-keys/{key['id']}/revoke")
    clerk.change("deactivate_user", f"/users/{user['id']}")


def change_own(clerk: Clerk) -> None:
    key = clerk.gate.make_key(clerk.gate.make_user()["id"])["key"]
    own = clerk.change("create_own_key", "/keys", {"name": "phone"}, key=key)
    clerk.change("change_own_key", f"/keys/{own['id']}", {"name": "telephone"}, key=key)
    own = clerk.change("rotate_own_key", f"/keys/{own['id']}/rotate", {}, key=key)
    clerk.change("revoke_own_key", f"/keys/{own['id']}/revoke", key=key)


def change_offers(clerk: Clerk) -> None:
    tier = clerk.change("create_tier", "/tiers", {"id": clerk.name})["id"]
    clerk.change("change_tier", f"/tiers/{tier}", {"concurrency": 3})
    clerk.change("delete_tier", f"/tiers/{tier}")
    project = clerk.change("create_project", "/projects", {"name": "team", "owner": "admin"})["id"]
    clerk.change("change_project", f"/projects/{project}", {"budgets": {"day": 7}})
    clerk.change("deactivate_project", f"/projects/{project}")
    clerk.change("set_price", "/pricing", {"model": clerk.name, "input_nano": 1, "output_nano": 1})


def change_credentials(clerk: Clerk) -> None:
    name = clerk.name
    provider = {"name": name, "kind": "openai", "base_url": "https://api.acme.example/v1", "credential": SECRET}
    clerk.change("create_provider", "/providers", provider)
    clerk.change("change_provider", f"/providers/{name}", {"credential": SECRET + "3"})
    clerk.change("delete_provider", f"/providers/{name}")
    clerk.change("set_hub_token", "/hf-tokens", {"name": name, "token": SECRET})
    clerk.change("delete_hub_token", f"/hf-tokens/{name}")
    hook = {"name": name, "url": "https://hooks.acme.example/x", "secret": SECRET}
    clerk.change("create_webhook", "/webhooks", hook)
    clerk.change("delete_webhook", f"/webhooks/{name}")
