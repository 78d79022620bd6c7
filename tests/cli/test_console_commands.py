"""Commands of operators beside a running server and without one: the same answers, for people and for programs."""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stentor.cli.root import run
from tests.serving import Server, scripted_model

Stentor = Callable[..., Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("console"), scripted_model(), "--admin-key", DURABILITY="process") as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(params=["beside a server", "without one"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "without one":
        return tmp_path / "data"
    found: Path = request.getfixturevalue("server").data_dir
    return found


@pytest.fixture
def stentor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stentor:
    monkeypatch.chdir(tmp_path)

    def call(place: Path, *arguments: str, status: int = 0) -> Any:
        capsys.readouterr()
        assert run([*arguments, "--data-dir", str(place)]) == status
        out, err = capsys.readouterr()
        if status:
            return err
        return json.loads(out) if "--json" in arguments else out

    return call


def test_tiers(stentor: Stentor, place: Path) -> None:
    made = stentor(place, "tiers", "set", "gold", "--concurrency", "3", "--json")
    assert made[0]["concurrency"] == 3
    assert stentor(place, "tiers", "set", "gold", "--concurrency", "-1", "--prepaid", "--json")[0]["prepaid"] is True
    assert "gold" in stentor(place, "tiers", "list")
    assert stentor(place, "tiers", "delete", "gold", "--json")["id"] == "gold"
    assert "always exists" in stentor(place, "tiers", "delete", "payg", status=1)


def test_users_projects_and_keys(stentor: Stentor, place: Path) -> None:
    name = f"ann-{uuid.uuid4().hex[:8]}"
    stentor(place, "users", "create", name)
    stentor(place, "users", "topup", name, "12.5")
    assert stentor(place, "users", "ledger", name, "--json")[0]["amount_nano"] == 12_500_000_000
    stentor(place, "users", "set", name, "--tier", "payg", "--email", f"{name}@example.org")
    rows = stentor(place, "users", "list", "--json")
    assert [(row["tier_id"], row["email"]) for row in rows if row["name"] == name] == [("payg", f"{name}@example.org")]
    password = stentor(place, "users", "passwd", name).strip()
    assert re.fullmatch(r"[a-z2-9]{5}(-[a-z2-9]{5}){3}", password)
    project = stentor(place, "projects", "create", "team", "--owner", name, "--json")[0]["id"]
    stentor(place, "projects", "budget", project, "day", "5")
    assert "$0.00 of $5.00 a day" in stentor(place, "projects", "list", "--user", name)
    made = ("--project", project, "--budget-day", "3", "--budget-month", "9")
    within = stentor(place, "keys", "create", "--user", name, *made, "--json")
    assert within["project_id"] == project
    assert (within["limits"]["budget_day_nano"], within["limits"]["budget_month_nano"]) == (3 * 10**9, 9 * 10**9)
    key = stentor(place, "keys", "create", "--user", name, "--json")["id"]
    limited = stentor(place, "keys", "limit", key, "--budget-day", "2", "--concurrency", "4", "--json")
    assert (limited["limits"]["budget_day_nano"], limited["limits"]["concurrency"]) == (2_000_000_000, 4)
    lifted = stentor(place, "keys", "limit", key, "--lift", "budget-day", "--concurrency", "-1", "--json")
    assert (lifted["limits"]["budget_day_nano"], lifted["limits"]["concurrency"]) == (None, None)
    stentor(place, "users", "set", name, "--inactive")
    assert "user_change" in stentor(place, "audit")
    assert password not in str(stentor(place, "audit", "--json"))
    stentor(place, "projects", "close", project)
    opened = stentor(place, "projects", "set", project, "--name", "crew", "--open", "--json")[0]
    assert (opened["name"], opened["active"]) == ("crew", True)
    assert "what is to change" in stentor(place, "projects", "set", project, status=2)


def test_prices_and_reports(stentor: Stentor, place: Path) -> None:
    stentor(place, "prices", "set", "scripted", "--input", "0.5", "--output", "1.25")
    rows = {row["model"]: row for row in stentor(place, "prices", "list", "--json")}
    assert (rows["scripted"]["input_nano"], rows["scripted"]["output_nano"]) == (500_000_000, 1_250_000_000)
    assert "$1.25" in stentor(place, "prices", "history", "scripted")
    assert isinstance(stentor(place, "report", "--by", "model", "--last", "7d", "--json"), list)
    assert stentor(place, "signups", "list", "--json") == []
    assert stentor(place, "sessions", "list", "--json") == []


def test_what_runs_and_what_it_says(stentor: Stentor, server: Server) -> None:
    place = server.data_dir
    (row,) = stentor(place, "ps", "--json")
    assert (row["model"], row["status"]) == ("scripted", "loaded")
    assert "empty" in stentor(place, "slots", "list")
    assert stentor(place, "logs", "scripted").strip()
    assert stentor(place, "logs", str(row["port"]), "--json")
    assert stentor(place, "slots", "unload", str(row["port"]), "--json")["status"] == "unloaded"
    loaded = stentor(place, "slots", "load", "scripted", "--slot", str(row["port"]), "--json")
    assert (loaded["status"], loaded["slot"]) == ("loaded", row["port"])
    assert "no engine" in stentor(place, "logs", "nothing", status=1)


def test_engines_need_a_server(stentor: Stentor, tmp_path: Path) -> None:
    for command in (["ps"], ["slots", "list"], ["logs", "x"]):
        assert "No server is running" in stentor(tmp_path / "data", *command, status=1)
