"""The settings file's models are read again while the server runs; a bad file changes nothing and is explained."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.harness import Gate, until
from tests.serving import Server, scripted_model


@pytest.fixture(params=["1", "2"], ids=["one process", "two workers"])
def gate(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Gate]:
    with Server(tmp_path, scripted_model(), "--admin-key", slots=4, GATEWAY_WORKERS=request.param) as server:
        yield Gate(server)
        assert server.stop() == 0
    assert b"request_crashed" not in server.log, server.log.decode(errors="replace")


def write(gate: Gate, text: str) -> None:
    """As an editor does: a fresh file in place of the old one."""
    fresh = gate.server.config.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(gate.server.config)


def read_now(gate: Gate) -> None:
    os.kill(gate.server.pid, signal.SIGHUP)


def names(gate: Gate) -> list[str]:
    return [row["id"] for row in gate.admin("GET", "/models")["data"]]


def said(gate: Gate, event: str) -> list[bytes]:
    return [line for line in gate.server.log.splitlines() if event.encode() in line]


def test_models_come_change_and_go_with_the_file(gate: Gate):
    assert gate.chat().status == 200
    pid = gate.slot()["pid"]
    write(gate, scripted_model() + scripted_model("second", preload=False, aliases=["two"]))
    until(lambda: names(gate), lambda found: found == ["scripted", "second"])
    assert gate.chat(model="two").status == 200
    assert gate.slot()["pid"] == pid, "a model that stays as it was was restarted"

    stream = gate.open("slowly", model="scripted")
    write(gate, scripted_model(parallel=3) + scripted_model("third", preload=False))
    until(lambda: names(gate), lambda found: found == ["scripted", "third"])
    assert stream.rest().endswith(b"data: [DONE]\n\n")
    until(gate.slot, lambda slot: slot["state"] == "ready" and slot["places"] == 3)
    assert gate.slot()["pid"] != pid
    assert gate.chat(model="second").status == 404
    assert gate.chat(model="third").status == 200
    until(lambda: len(said(gate, "models_reloaded")), lambda count: count == 2)


BAD = {
    "[[models]\n": "is not valid TOML",
    scripted_model() + scripted_model(): "'scripted' is the name of two models",
    scripted_model("scripted", wings=2): "wings",
    "prot = 1\n" + scripted_model(): "is not a setting",
    scripted_model("a", aliases=["b"]) + scripted_model("b"): "'b' is the name of two models",
}


def refuse(gate: Gate, text: str, why: str) -> bytes:
    """The line of the log that says ``why`` this file isn't taken."""
    seen = len(said(gate, "models_kept"))
    write(gate, text)
    read_now(gate)
    return until(lambda: [line for line in said(gate, "models_kept")[seen:] if why.encode() in line])[0]


@pytest.mark.parametrize("gate", ["1"], indirect=True)
def test_a_bad_file_keeps_the_models_and_says_why(gate: Gate):
    for text, why in BAD.items():
        line = refuse(gate, text, why)
        assert b"stay as they were" in line
        assert names(gate) == ["scripted"]
        assert gate.chat().status == 200
    # What is refused for the sake of a registered model changes no price either.
    gate.admin("POST", "/models", {"source": "hf:org/repo", "id": "mine", "aliases": ["taken"]})
    price = "\n[models.remote.price]\ninput = 1.0\noutput = 2.0\n"
    elsewhere = '[[models]]\nid = "far"\nengine = "remote"\naliases = ["taken"]\n[models.remote]\nkind = "openai"\n'
    refuse(gate, scripted_model() + elsewhere + 'base_url = "http://127.0.0.1:9/v1"\ntrusted = true\n' + price, "taken")
    assert "far" not in {row["model"] for row in gate.admin("GET", "/pricing")["data"]}
    write(gate, scripted_model() + scripted_model("better", preload=False))
    until(lambda: names(gate), lambda found: found == ["better", "mine", "scripted"])


@pytest.mark.parametrize("gate", ["1"], indirect=True)
def test_a_signal_reads_the_file_again_and_a_registered_model_steps_back_behind_it(gate: Gate):
    read_now(gate)
    until(lambda: said(gate, "models_reloaded"))
    assert names(gate) == ["scripted"]
    assert gate.chat().status == 200
    gate.admin("POST", "/models", {"source": "hf:org/repo", "id": "mine"})
    write(gate, scripted_model() + scripted_model("mine", preload=False))
    until(lambda: gate.admin("GET", "/models/mine"), lambda row: row["defined_in"] == "settings")
    assert gate.chat(model="mine").status == 200
    write(gate, scripted_model())
    until(lambda: gate.admin("GET", "/models/mine"), lambda row: row["defined_in"] == "registered")
