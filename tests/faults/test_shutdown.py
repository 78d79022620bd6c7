"""SIGTERM, Ctrl-C and their second time; a worker or the authority that is suddenly gone."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stentor.accounting.tokens import count_tokens
from tests.faults.conftest import MakeSubject
from tests.faults.streams import CONNECTIONS, Background, OpenStream, deaf_client, refuses_connections
from tests.faults.subject import Subject, events_on_disk, stopped, wait_for
from tests.scripted_engine import script
from tests.serving import SCRIPTED, gone_within, scripted_model

WORKERS = pytest.mark.parametrize("workers", [1, 2], ids=["1-worker", "2-workers"])
GONE_S = 25.0  # a second or two on a machine that has time, and less than a server waits for a client
Send = Callable[[Subject], None]
SIGNALS: dict[str, Send] = {
    "SIGTERM": lambda subject: subject.process.send_signal(signal.SIGTERM),  # type: ignore[union-attr]
    "SIGINT": lambda subject: subject.process.send_signal(signal.SIGINT),  # type: ignore[union-attr]
    "Ctrl-C": lambda subject: subject.kill_group(signal.SIGINT),
}


def model_with_one_place(*arguments: str) -> str:
    """The scripted engine with more arguments, and one request at a time."""
    return scripted_model(command=[sys.executable, SCRIPTED, "--port", "${PORT}", *arguments], parallel=1)


def long_answer(seconds: float) -> dict[str, object]:
    return {"tokens": int(seconds * 20), "delay_s": 0.05}


@pytest.mark.parametrize(("workers", "send"), [(1, "SIGTERM"), (2, "SIGTERM"), (1, "SIGINT"), (2, "Ctrl-C")])
def test_running_answers_end_well_and_new_ones_are_not_taken(
    make_subject: MakeSubject, workers: int, send: str, tmp_path: Path
) -> None:
    subject = make_subject(GATEWAY_WORKERS=workers, DRAIN_S=60)
    subject.start()
    streams = [OpenStream(subject, {"tokens": 5}, {"until": str(tmp_path / "go")}, {"tokens": 5}) for _ in range(4)]
    children = subject.children()
    SIGNALS[send](subject)
    assert wait_for(lambda: refuses_connections(subject.port))
    assert all(not stream.is_whole for stream in streams), "too quick to have waited for anything"
    (tmp_path / "go").touch()
    with gone_within(GONE_S, children):
        assert subject.wait_ended() == 0
    for stream in streams:
        assert stream.wait().is_whole, stream.body[-200:]
    assert b"Traceback" not in subject.log
    events = events_on_disk(subject)
    assert {events[stream.request_id]["status"] for stream in streams} == {"completed"}


@WORKERS
def test_the_drain_time_is_given_in_full(make_subject: MakeSubject, workers: int, tmp_path: Path) -> None:
    subject = make_subject(GATEWAY_WORKERS=workers, DRAIN_S=50)
    subject.start()
    steps = ({"tokens": 5}, {"until": str(tmp_path / "go")}, {"tokens": 5})
    stream = OpenStream(subject, *steps)
    whole = Background(lambda: subject.chat(script(*steps)))
    assert wait_for(lambda: subject.metric("stentor_running_requests") == 2)
    SIGNALS["SIGTERM"](subject)
    time.sleep(6.5)  # longer than anything that isn't told of the drain time
    (tmp_path / "go").touch()
    assert subject.wait_ended() == 0
    assert stream.wait().is_whole, stream.body[-200:]
    assert whole.result().status == 200


@WORKERS
def test_an_answer_that_outlasts_the_drain_time_is_ended_and_says_so(make_subject: MakeSubject, workers: int) -> None:
    subject = make_subject(GATEWAY_WORKERS=workers, DRAIN_S=1)
    subject.start()
    stream = OpenStream(subject, long_answer(30.0))
    started = time.monotonic()
    with gone_within(GONE_S, subject.children()):
        assert subject.stop() == 0
    assert 1.0 <= time.monotonic() - started < 20.0
    assert stream.wait().error == "server_shutdown"
    assert not stream.is_whole
    assert b"Traceback" not in subject.log
    event = events_on_disk(subject)[stream.request_id]
    assert (event["status"], event["reason"]) == ("failed", "server_shutdown")
    # Charged is what reached the client, no more: this engine counts nothing before the end.
    assert event["estimated"]
    assert event["output_tokens"] == pytest.approx(count_tokens(stream.text), abs=2)
    assert event["input_tokens"] == 0


@pytest.mark.parametrize(("workers", "second"), [(1, "SIGTERM"), (2, "SIGTERM"), (2, "Ctrl-C")])
def test_a_second_signal_hurries(make_subject: MakeSubject, workers: int, second: str) -> None:
    subject = make_subject(GATEWAY_WORKERS=workers, DRAIN_S=60)
    subject.start()
    stream = OpenStream(subject, long_answer(40.0))
    children = subject.children()
    SIGNALS["SIGTERM"](subject)
    assert wait_for(lambda: refuses_connections(subject.port))  # two that come at once are one
    assert not stream.error
    started = time.monotonic()
    SIGNALS[second](subject)
    with gone_within(GONE_S, children):
        assert subject.wait_ended() == 0
    assert time.monotonic() - started < 30.0
    assert stream.wait().error == "server_shutdown"


@WORKERS
def test_a_request_that_waits_for_a_place_is_told_of_the_end(
    make_subject: MakeSubject, workers: int, tmp_path: Path
) -> None:
    subject = make_subject(model_with_one_place(), GATEWAY_WORKERS=workers, DRAIN_S=50)
    subject.start()
    first = OpenStream(subject, {"tokens": 3}, {"until": str(tmp_path / "go")}, {"tokens": 3})
    waiting = Background(lambda: subject.chat(script({"tokens": 2})))
    assert wait_for(lambda: subject.metric("stentor_queue_depth") == 1)
    SIGNALS["SIGTERM"](subject)
    assert wait_for(lambda: refuses_connections(subject.port))
    (tmp_path / "go").touch()
    answer = waiting.result()
    # Either there was time for it within the drain, or it is told to come again: never a broken connection.
    assert answer.status == 200 or (answer.status, answer.json()["error"]["code"]) == (503, "server_shutdown")
    assert subject.wait_ended() == 0
    assert first.wait().is_whole


def test_a_stop_while_the_engines_load_leaves_nothing(make_subject: MakeSubject) -> None:
    subject = make_subject(model_with_one_place("--load-s", "30"))
    started = Background(subject.start)
    assert wait_for(lambda: subject.process is not None and subject.engines())
    children = subject.children()
    SIGNALS["SIGTERM"](subject)
    assert isinstance(started.failure(), AssertionError), "it said that it was ready"
    with gone_within(GONE_S, children):
        assert subject.wait_ended() == 0
    assert b'"error"' not in subject.log, subject.log.decode()
    # What is shown only once was not made for nobody to see.
    subject.config.write_text(scripted_model())
    subject.start()
    assert subject.ready["api_key"]
    assert subject.ready["admin_password"]


def test_a_killed_worker_takes_only_its_own_streams_along(make_subject: MakeSubject, tmp_path: Path) -> None:
    subject = make_subject(GATEWAY_WORKERS=2)
    subject.start()
    steps = ({"tokens": 3}, {"until": str(tmp_path / "go")}, {"tokens": 3})
    streams = [OpenStream(subject, *steps) for _ in range(CONNECTIONS)]
    by_worker = {stream: stream.worker(subject).pid for stream in streams}
    victim = subject.workers()[0]
    lost = [stream for stream in streams if by_worker[stream] == victim.pid]
    others = [stream for stream in streams if by_worker[stream] != victim.pid]
    assert 0 < len(lost) < len(streams), "all connections went to one worker"
    victim.kill()
    for stream in lost:
        assert stream.wait().problem, "the cut isn't visible"
        assert not stream.is_whole
    assert wait_for(lambda: len([w for w in subject.workers() if w.pid != victim.pid]) == 2)
    (tmp_path / "go").touch()
    for stream in others:
        assert stream.wait().is_whole
    assert wait_for(lambda: len(subject.rows("/usage")) == len(streams))
    events = {event["request_id"]: event for event in subject.rows("/usage")}
    for stream in lost:
        event = events[stream.request_id]
        assert (event["status"], event["reason"], event["cost_nano"]) == ("failed", "worker_lost", 0)
    assert all(events[stream.request_id]["status"] == "completed" for stream in others)
    assert wait_for(lambda: subject.metric("stentor_open_requests") == 0)
    assert wait_for(lambda: subject.metric("stentor_running_requests") == 0)


def test_workers_whose_authority_is_gone_say_so_and_leave(make_subject: MakeSubject) -> None:
    subject = make_subject(GATEWAY_WORKERS=2)
    subject.start()
    streams = [OpenStream(subject, long_answer(30.0)) for _ in range(6)]
    with gone_within(GONE_S, subject.workers()), gone_within(GONE_S, subject.engines()):
        subject.kill()
    for stream in streams:
        assert not stream.wait().is_whole
    # The engines die in the same moment, so some hear of that first.
    assert {stream.error for stream in streams} <= {"server_restarting", "engine_failed", ""}


def test_workers_notice_a_killed_authority_even_when_an_engine_lives_on_in_silence(make_subject: MakeSubject) -> None:
    subject = make_subject(GATEWAY_WORKERS=2)
    subject.start()
    streams = [OpenStream(subject, {"tokens": 3}, {"hang": True}) for _ in range(4)]
    with gone_within(GONE_S, subject.workers()), gone_within(GONE_S, subject.engines()):
        subject.kill()
    assert all(not stream.wait().is_whole for stream in streams)


def test_workers_whose_authority_is_killed_leave_even_with_a_client_that_stopped_reading(
    make_subject: MakeSubject,
) -> None:
    subject = make_subject(GATEWAY_WORKERS=2)
    subject.start()
    with deaf_client(subject), gone_within(GONE_S, subject.workers()):
        subject.kill()


def test_an_authority_killed_while_its_workers_drain_ends_them_too(make_subject: MakeSubject) -> None:
    subject = make_subject(GATEWAY_WORKERS=2, DRAIN_S=60)
    subject.start()
    streams = [OpenStream(subject, {"tokens": 3}, {"hang": True}) for _ in range(4)]
    SIGNALS["SIGTERM"](subject)
    assert wait_for(lambda: refuses_connections(subject.port))
    with gone_within(GONE_S, subject.workers()), gone_within(GONE_S, subject.engines()):
        subject.kill()
    assert all(not stream.wait().is_whole for stream in streams)


def test_a_worker_that_stands_still_holds_up_only_itself(make_subject: MakeSubject) -> None:
    subject = make_subject(GATEWAY_WORKERS=2, DRAIN_S=1)
    subject.start()
    worker = subject.workers()[0]
    with stopped(worker), gone_within(GONE_S, [worker]):
        started = time.monotonic()
        assert subject.stop() == 0
        assert time.monotonic() - started < 30
