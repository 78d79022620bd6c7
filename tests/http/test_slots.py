"""Slots as LLM Gateway's API has them: listed, loaded, drained, unloaded; and the machine below them."""

from pathlib import Path

import pytest

from tests.engine.tiny_gguf import write_tiny_gguf
from tests.http.harness import CHAT, Gate, Json, chat_body, until
from tests.scripted_engine import script
from tests.serving import Server, scripted_model


def rows(gate: Gate) -> list[Json]:
    return list(gate.ask("GET", "/admin/api/slots").json()["data"])


def test_slots_are_listed_empty_ones_too(each: Gate):
    listed = rows(each)
    ports = [row["port"] for row in listed if row["status"] == "empty"]
    assert ports
    assert len({row["port"] for row in listed}) >= each.server.slots
    slot = each.slot()
    assert (slot["status"], slot["model_name"], slot["model_type"]) == ("loaded", "scripted", "text")
    assert slot["ctx_size"] > 0
    assert slot["capabilities"]["text"] is True
    assert slot["capabilities"]["tts"] is False
    assert slot["abilities"] == ["text"]
    assert slot["ram_mb"] > 1
    assert slot["cpu_percent"] >= 0


def test_a_model_is_loaded_into_a_slot_drained_and_unloaded(gate: Gate):
    model = "mortal-15"
    port = [row["port"] for row in rows(gate) if row["status"] == "empty"][-1]
    loaded = gate.ask("POST", "/admin/api/slots/load", {"model": model, "slot": port}).json()
    assert (loaded["status"], loaded["slot"], loaded["model"], loaded["model_type"]) == ("loaded", port, model, "text")
    row = next(row for row in rows(gate) if row["port"] == port)
    assert (row["status"], row["model"], row["pid"]) == ("loaded", model, loaded["pid"])
    stream = gate.open(script({"say": "a"}, {"sleep": 0.5}, {"say": "b"}), model=model)
    stream.content()
    drained = gate.ask("POST", f"/admin/api/slots/{port}/drain").json()
    assert (drained["status"], drained["model"]) == ("drained", model)
    assert b"[DONE]" in stream.rest()
    unloaded = gate.ask("POST", f"/admin/api/slots/{port}/unload").json()
    assert (unloaded["status"], unloaded["slot"]) == ("unloaded", port)
    assert next(row for row in rows(gate) if row["port"] == port)["status"] == "empty"
    assert gate.ask("POST", f"/admin/api/slots/{port}/unload").status == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"model": "scripted", "model_path": "x.gguf"}, 400),
        ({"model": "nothing"}, 404),
        ({"model": "scripted", "slot": 1}, 404),
        ({"model": "scripted", "instances": 0}, 400),
        ({"model": "scripted", "ctx_size": 4000}, 409),
        ({"model": "scripted", "model_type": "magic"}, 400),
        ({"model": "scripted", "arguments": ["--port", "1"]}, 400),
        ({"model_path": "../../etc/passwd"}, 400),
        ({"model_path": "/etc/passwd"}, 400),
        ({"model_path": "nothing.gguf"}, 404),
    ],
)
def test_a_bad_load_is_refused(each: Gate, body, status):
    answer = each.ask("POST", "/admin/api/slots/load", body)
    assert answer.status == status, answer.body
    assert answer.json()["detail"]


@pytest.mark.parametrize("slot", ["1", "x", "99999999", "-4801", "４８０１"])
def test_no_slot_of_that_name(each: Gate, slot):
    assert (
        each.operate("POST", f"/admin/api/slots/{slot.encode().hex() if slot[0] == '４' else slot}/unload").status
        == 404
    )


def test_the_machine_and_its_slots(each: Gate):
    system = each.ask("GET", "/admin/api/system").json()
    assert system["cpu"]["cores"] >= 1
    assert 0 < system["memory"]["used"] <= system["memory"]["total"]
    assert system["disk"]["total"] > 0
    assert [row["port"] for row in system["slots"]] == [row["port"] for row in rows(each)]


def test_a_file_below_the_model_folders_is_loaded_with_its_own_settings(tmp_path: Path):
    folder = tmp_path / "weights"
    folder.mkdir()
    write_tiny_gguf(folder / "tiny.gguf")
    with Server(tmp_path, scripted_model(), "--admin-key", DURABILITY="process", MODEL_DIRS=str(folder)) as server:
        gate = Gate(server)
        body = {"model_path": "tiny.gguf", "ctx_size": 256, "threads": 1, "model_type": "text"}
        loaded = gate.ask("POST", "/admin/api/slots/load", body).json()
        assert (loaded["model"], loaded["status"]) == ("tiny", "loaded")
        row = next(row for row in rows(gate) if row["port"] == loaded["slot"])
        assert (row["ctx_size"], row["threads"], row["model_path"]) == (256, 1, str(folder / "tiny.gguf"))
        assert gate.ask("POST", CHAT, chat_body("hello", model="tiny", max_tokens=2)).status == 200
        again = gate.ask("POST", "/admin/api/slots/load", {**body, "ctx_size": 512}).json()
        row = until(lambda: next(row for row in rows(gate) if row["port"] == again["slot"]))
        assert row["ctx_size"] == 512
        assert server.stop() == 0
