"""Models over the admin API: found, fetched, registered, changed, updated, removed, while the server runs."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.tiny_gguf import write_tiny_gguf
from tests.http.harness import Gate, Stream, until
from tests.hub import Hub, running_hub
from tests.serving import Server, scripted_model


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "sub").mkdir()
    write_tiny_gguf(folder / "sub" / "tiny.gguf")
    write_tiny_gguf(folder.parent / "outside.gguf")
    (folder / "link.gguf").symlink_to(folder.parent / "outside.gguf")
    (folder / "text.gguf").write_text("not a model")
    os.mkfifo(folder / "pipe.gguf")
    return folder


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory, hub: Hub, folder: Path) -> Iterator[Gate]:
    """A server of two workers, so that everything passes through their lines."""
    settings = {"GATEWAY_WORKERS": "2", "HF_ENDPOINT": hub.url, "MODEL_DIRS": str(folder), "DEFAULT_CTX": "512"}
    with Server(tmp_path_factory.mktemp("server"), scripted_model(), "--admin-key", slots=6, **settings) as server:
        gate = Gate(server)
        yield gate
        assert server.stop() == 0
    assert b"request_crashed" not in server.log, server.log.decode(errors="replace")


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest, hub: Hub) -> Iterator[None]:
    """Afterwards no model is registered, whatever became of the test."""
    yield
    hub.most = None
    if "gate" not in request.fixturenames:
        return
    gate: Gate = request.getfixturevalue("gate")
    for row in call(gate, "GET", "/models")["data"]:
        if row["id"] != "scripted":
            gate.ask("POST", f"/admin/api/models/{row['id']}/stop")
            gate.ask("DELETE", f"/admin/api/models/{row['id']}?files=true")


def fresh(name: str) -> str:
    """A repository that nothing was fetched from. In digits: letters might spell a kind of model, as e5 does."""
    return f"org/{name}-{uuid.uuid4().int % 10**8:08}-GGUF"


@pytest.fixture
def tiny(tmp_path: Path) -> bytes:
    return write_tiny_gguf(tmp_path / "t.gguf").read_bytes()


def call(gate: Gate, method: str, path: str, body: Any = None, status: int = 200) -> Any:
    answer = gate.ask(method, f"/admin/api{path}", body)
    assert answer.status == status, answer.body
    return answer.json()


def ended(gate: Gate, job: Any) -> Any:
    done = ("done", "failed", "cancelled", "interrupted")
    return until(lambda: call(gate, "GET", f"/downloads/{job['id']}"), lambda found: found["state"] in done, 60)


def ask_for(model: str) -> Any:
    return {"model": model, "prompt": "a", "max_tokens": 2}


def complete(gate: Gate, model: str) -> Any:
    answer = gate.ask("POST", "/v1/completions", ask_for(model))
    assert answer.status == 200, answer.body
    return answer.json()


def test_a_model_from_the_hub_is_fetched_registered_served_updated_and_removed(gate: Gate, hub: Hub, tiny: bytes):
    name = fresh("Tiny")
    repo = hub.add(name, {"Tiny-Q8_0.gguf": tiny})
    job = call(gate, "POST", "/models/download", {"repo_id": name, "quant": "Q8_0"})
    assert job["source"] == f"hf:{name}:Q8_0"
    job = ended(gate, job)
    assert (job["state"], job["done_bytes"], job["total_bytes"]) == ("done", len(tiny), len(tiny))
    made = call(gate, "POST", "/models", {"source": job["source"], "id": "tiny", "aliases": ["little"], "parallel": 2})
    assert made == {
        "id": "tiny",
        "defined_in": "registered",
        "definition": {"source": job["source"], "aliases": ["little"], "parallel": 2},
    }
    written = json.loads((gate.server.data_dir / "config" / "tiny.json").read_text())
    assert written == {"model_repo": name, "model_name": "Q8_0", "model_type": "text"}
    assert complete(gate, "little")["usage"]["completion_tokens"] > 0
    assert call(gate, "DELETE", "/models/tiny", status=409)["code"] == "conflict"
    local = call(gate, "GET", "/models/local")["data"]
    (row,) = [row for row in local if row["models"] == ["tiny"]]
    assert (row["quant"], row["architecture"], row["size_bytes"]) == ("Q8_0", "llama", len(tiny))

    repo.commit({"Tiny-Q8_0.gguf": tiny + b"\0" * 32})
    pid = gate.slot("tiny")["pid"]
    job = ended(gate, call(gate, "POST", "/models/tiny/update"))
    assert job["state"] == "done", job
    assert repo.commits[-1][0] in job["path"]
    until(lambda: gate.slot("tiny"), lambda slot: slot["state"] == "ready" and slot["pid"] != pid, 60)
    assert complete(gate, "tiny")
    assert not Path(job["path"].replace(repo.commits[1][0], repo.commits[0][0])).exists()

    changed = call(gate, "PATCH", "/models/tiny", {"parallel": 3, "aliases": None})
    assert changed["definition"] == {"source": f"hf:{name}:Q8_0", "parallel": 3}
    until(lambda: gate.slot("tiny"), lambda slot: slot["state"] == "ready" and slot["places"] == 3, 60)
    call(gate, "POST", "/models/tiny/stop")
    gone = call(gate, "DELETE", "/models/tiny?files=true")
    assert gone["freed_bytes"] == len(tiny) + 32
    assert gate.ask("POST", "/v1/completions", {"model": "tiny", "prompt": "a"}).status == 404
    assert not (gate.server.data_dir / "config" / "tiny.json").exists()


def test_progress_is_told_as_events(gate: Gate, hub: Hub, tiny: bytes):
    repo = fresh("Slow")
    hub.add(repo, {"Slow-Q4_0.gguf": tiny})
    hub.most = len(tiny) // 3
    job = call(gate, "POST", "/models/download", {"source": f"hf:{repo}:Q4_0"})
    again = call(gate, "POST", "/models/download", {"source": f"hf:{repo}:Q4_0"})
    assert again["id"] == job["id"], "one source was begun twice"
    connection = gate.server.connect()
    headers = {"Authorization": f"Bearer {gate.key}", "Accept": "text/event-stream"}
    connection.request("GET", f"/admin/api/downloads/{job['id']}", headers=headers)
    stream = Stream(connection, connection.getresponse())
    seen = _wait_for_progress(stream, 0)
    hub.most = 2 * len(tiny) // 3
    _wait_for_progress(stream, seen)
    hub.most = None
    answer = stream.answer()
    gate.contract.check("GET", f"/admin/api/downloads/{job['id']}", answer)
    events = answer.events()
    assert answer.headers["content-type"] == "text/event-stream"
    assert events[-1]["state"] == "done"
    done = [event["done_bytes"] for event in events]
    assert done == sorted(done)
    assert len({event["done_bytes"] for event in events if 0 < event["done_bytes"] < len(tiny)}) >= 2, done
    assert {event["total_bytes"] for event in events} <= {0, len(tiny)}


def _wait_for_progress(stream: Stream, seen: int) -> int:
    """How many bytes are there, once they are more than ``seen``."""
    while True:
        frame = stream.frame()
        assert frame, "the stream of events ended"
        done = [json.loads(line[6:])["done_bytes"] for line in frame.splitlines() if line.startswith(b"data: ")]
        if done and done[0] > seen:
            return int(done[0])


def test_a_download_is_cancelled_and_gone_on_with(gate: Gate, hub: Hub, tiny: bytes):
    repo = fresh("Stop")
    hub.add(repo, {"Stop-Q4_0.gguf": tiny})
    hub.most = len(tiny) // 2
    job = call(gate, "POST", "/models/download", {"source": f"hf:{repo}:Q4_0"})
    path = f"/downloads/{job['id']}"
    until(lambda: call(gate, "GET", path), lambda found: found["done_bytes"] > 0, 60)
    assert call(gate, "POST", f"{path}/cancel")["state"] == "cancelled"
    call(gate, "POST", f"{path}/cancel", status=409)
    hub.most = None
    assert call(gate, "POST", f"{path}/retry")["id"] == job["id"]
    assert ended(gate, job)["state"] == "done"
    assert hub.ranges()[-1].startswith("bytes=")
    call(gate, "POST", f"{path}/retry", status=409)
    assert call(gate, "GET", "/downloads")["data"][0]["id"] >= job["id"]


def test_a_first_request_fetches_its_model_as_a_download_like_others(gate: Gate, hub: Hub, tiny: bytes):
    repo = fresh("First")
    source = f"hf:{repo}:Q4_0"
    hub.add(repo, {"First-Q4_0.gguf": tiny})
    call(gate, "POST", "/models", {"source": source, "id": "first", "ctx": 256})

    def find_job(*states: str) -> Any:
        jobs = [job for job in call(gate, "GET", "/downloads")["data"] if job["source"] == source]
        assert len(jobs) <= 1, "one model was fetched twice"
        return jobs[0] if jobs and jobs[0]["state"] in states and jobs[0]["done_bytes"] > 0 else None

    hub.most = len(tiny) // 2
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(gate.ask, "POST", "/v1/completions", ask_for("first")) for _ in range(2)]
        job = until(lambda: find_job("running"), bool, 60)
        until(lambda: gate.metric("stentor_queue_depth"), lambda depth: depth == 2)
        (card,) = [row for row in call(gate, "GET", "/models")["data"] if row["id"] == "first"]
        assert "is being downloaded (" in card["reason"]
        assert call(gate, "POST", f"/downloads/{job['id']}/cancel")["state"] == "cancelled"
        for answer in (each.result(60) for each in asked):
            assert (answer.status, answer.json()["error"]["code"]) == (503, "model_unavailable")
            assert "the download of its file was cancelled" in answer.json()["error"]["message"]
    assert find_job("cancelled"), "a cancelled download was begun again by itself"
    hub.most = None
    assert call(gate, "POST", f"/downloads/{job['id']}/retry")["id"] == job["id"]
    assert ended(gate, job)["state"] == "done"
    call(gate, "POST", "/models/first/start", {"instances": 1})
    assert complete(gate, "first")
    call(gate, "POST", "/models/first/stop")
    call(gate, "DELETE", "/models/first?files=true")


def test_who_waits_for_a_download_is_told_how_far_it_is(tmp_path: Path, hub: Hub, tiny: bytes):
    repo = fresh("Wait")
    hub.add(repo, {"Wait-Q4_0.gguf": tiny})
    model = scripted_model()
    with Server(tmp_path, model, "--admin-key", slots=3, HF_ENDPOINT=hub.url, QUEUE_TIMEOUT_S="3") as server:
        gate = Gate(server)
        call(gate, "POST", "/models", {"source": f"hf:{repo}:Q4_0", "id": "wait", "ctx": 256})
        hub.most = len(tiny) // 2
        answer = gate.ask("POST", "/v1/completions", ask_for("wait"))
        hub.most = None
        assert (answer.status, answer.json()["error"]["code"]) == (503, "overloaded")
        assert "The model 'wait' is being downloaded" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"]
        until(lambda: call(gate, "GET", "/downloads")["data"], lambda jobs: jobs[0]["state"] == "done", 60)
        assert complete(gate, "wait")


def test_a_failed_download_says_why(gate: Gate, hub: Hub, tiny: bytes):
    repo = fresh("Gated")
    hub.add(repo, {"G-Q4_0.gguf": tiny}, gated=True)
    job = ended(gate, call(gate, "POST", "/models/download", {"repo_id": repo, "filename": "G-Q4_0.gguf"}))
    assert job["state"] == "failed"
    assert "is gated" in job["problem"]
    assert "HF_TOKEN" in job["problem"]
    call(gate, "GET", "/downloads/nothing", status=404)
    call(gate, "POST", "/hf-tokens", {"token": hub.token, "name": "tests"})
    try:
        call(gate, "POST", f"/downloads/{job['id']}/retry")
        assert ended(gate, job)["state"] == "done", "the vault's token wasn't used"
    finally:
        call(gate, "DELETE", "/hf-tokens/tests")


def test_the_hub_is_searched(gate: Gate, hub: Hub):
    for number in range(3):
        hub.add(f"org/Find-{number}-GGUF", {}, downloads=number)
    page = call(gate, "GET", "/models/search?q=find&limit=2")
    assert [row["repo"] for row in page["data"]] == ["org/Find-2-GGUF", "org/Find-1-GGUF"]
    page = call(gate, "GET", f"/models/search?q=find&limit=2&after={page['next']}")
    assert ([row["repo"] for row in page["data"]], page["next"]) == (["org/Find-0-GGUF"], None)
    hub.api_mishaps += [{"html": "<html>no</html>"}]
    assert call(gate, "GET", "/models/search?q=find", status=503)["code"] == "hub_unavailable"


def test_a_file_in_a_model_folder_is_named_by_its_relative_path(gate: Gate, folder: Path):
    made = call(gate, "POST", "/models", {"path": "sub/tiny.gguf", "type": "text", "cache_type_k": "q8_0"})
    assert made["id"] == "tiny"
    assert made["definition"]["source"] == f"file:{folder}/sub/tiny.gguf"
    assert complete(gate, "tiny")
    call(gate, "POST", "/models", {"path": "sub/tiny.gguf"}, status=409)
    call(gate, "POST", "/models/tiny/stop")
    call(gate, "DELETE", "/models/tiny?files=true")
    assert (folder / "sub" / "tiny.gguf").exists(), "a file of the operator's was deleted"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"path": "../outside.gguf"}, "relative path"),
        ({"path": "/etc/passwd"}, "relative path"),
        ({"path": "link.gguf"}, "no model file"),
        ({"path": "pipe.gguf"}, "no model file"),
        ({"path": "text.gguf"}, "no model file"),
        ({"path": "sub"}, "no model file"),
        ({"path": "a\0b"}, "U+0000"),
        ({"path": 7}, "must be a text"),
        ({}, "either a source or a path"),
        ({"source": "hf:a/b", "path": "x"}, "either a source or a path"),
        ({"source": "file:/etc/passwd"}, "file: sources are the operator's"),
        ({"source": "http://x/y.gguf"}, "not understood"),
        ({"source": "hf:a/b", "arguments": ["--x"]}, "'arguments' can only be set in the settings file"),
        ({"source": "hf:a/b", "env": {"A": "b"}}, "'env' can only be set in the settings file"),
        ({"source": "hf:a/b", "binary": "/bin/sh"}, "'binary' can only be set in the settings file"),
        ({"source": "hf:a/b", "engine": "command"}, "can only be set in the settings file"),
        ({"source": "hf:a/b", "id": "../x"}, "can't be used"),
        ({"source": "hf:a/b", "ctx": 1}, "can't be used"),
        ({"source": "hf:a/b", "flash_attention": "maybe"}, "can't be used"),
        ({"source": "hf:a/b", "wings": 2}, "no field of a model"),
        ({"source": "hf:a/b", "mmproj": "../x.gguf"}, "relative path"),
    ],
)
def test_what_api_callers_may_not_say_is_refused(gate: Gate, body: dict[str, Any], words: str):
    answer = gate.ask("POST", "/admin/api/models", body)
    assert answer.status in (400, 404)
    assert words in answer.json()["detail"]
    assert [row["id"] for row in call(gate, "GET", "/models")["data"]] == ["scripted"]


def test_models_of_the_settings_file_are_changed_there(gate: Gate):
    assert call(gate, "GET", "/models/scripted")["defined_in"] == "settings"
    for method, path, body in (("PATCH", "", {"ctx": 4096}), ("DELETE", "", None)):
        answer = call(gate, method, f"/models/scripted{path}", body, status=409)
        assert "change it there" in answer["detail"]
    call(gate, "POST", "/models/scripted/update", status=400)
    call(gate, "POST", "/models", {"source": "hf:a/b", "id": "x", "aliases": ["scripted"]}, status=409)
    for method in ("GET", "PATCH", "DELETE"):
        call(gate, method, "/models/scrip", {} if method == "PATCH" else None, status=404)


def test_local_files_are_listed(gate: Gate, folder: Path):
    rows = {row["path"]: row for row in call(gate, "GET", "/models/local")["data"] if row["folder"] == str(folder)}
    assert rows["sub/tiny.gguf"]["architecture"] == "llama"
    assert rows["text.gguf"]["architecture"] == ""
    assert "pipe.gguf" not in rows


def test_registered_models_and_interrupted_downloads_survive_a_restart(tmp_path: Path, hub: Hub, tiny: bytes):
    repo = fresh("Long")
    hub.add(repo, {"Long-Q4_0.gguf": tiny})
    server = Server(tmp_path, scripted_model(), "--admin-key", slots=3, HF_ENDPOINT=hub.url)
    hub.most = len(tiny) // 2
    with server:
        gate = Gate(server)
        call(gate, "POST", "/models", {"source": f"hf:{repo}:Q4_0", "id": "long", "ctx": 256})
        job = call(gate, "POST", "/models/download", {"source": f"hf:{repo}:Q4_0"})
        until(lambda: call(gate, "GET", f"/downloads/{job['id']}"), lambda found: found["done_bytes"] > 0, 60)
    hub.most = None
    with server:
        gate = Gate(server)
        assert [row["id"] for row in call(gate, "GET", "/models")["data"]] == ["long", "scripted"]
        assert call(gate, "GET", f"/downloads/{job['id']}")["state"] == "interrupted"
        call(gate, "POST", f"/downloads/{job['id']}/retry")
        assert ended(gate, job)["state"] == "done"
        assert complete(gate, "long")
    shutil.rmtree(server.data_dir)
