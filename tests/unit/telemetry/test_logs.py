"""Logs say what is allowed, in one line, and never stop anybody."""

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import pytest

from stentor.core.errors import Refused
from stentor.telemetry.logs import FIELDS, Log, StdlibHandler, route_crashes, route_stdlib
from stentor.telemetry.scrub import TEXT_MAX, explain_error, locate_error, scrub_text
from stentor.telemetry.settings import TelemetrySettings

KEY = "sk-" + "aB3dE6gH9" * 5 + "xyz"


class Pipe:
    """A stderr of our own: what the log writes into it, and how much it may hold."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.log: Log | None = None

    def open(self, *, colour: bool = False, **settings: object) -> Log:
        self.log = Log(TelemetrySettings(**settings), fd=self.writer, colour=colour)  # type: ignore[arg-type]
        return self.log

    def read(self) -> str:
        assert self.log is not None
        self.log.close()
        os.set_blocking(self.reader, False)
        return os.read(self.reader, 1_000_000).decode()

    def drain(self) -> None:
        """Read until the log's thread is done, else it would write into whoever gets its descriptor next."""
        assert self.log is not None
        os.set_blocking(self.reader, False)
        while not self.log.close(timeout_s=0.001):
            with contextlib.suppress(BlockingIOError):
                os.read(self.reader, 65536)

    def read_json(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.read().splitlines()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reader)
    os.close(made.writer)


def test_writes_one_json_object_per_event(pipe: Pipe) -> None:
    pipe.open(log_format="json").event("request_closed", request_id="r1", input_tokens=12, estimated=False)
    [line] = pipe.read_json()
    assert line["event"] == "request_closed"
    assert line["level"] == "info"
    assert (line["request_id"], line["input_tokens"], line["estimated"]) == ("r1", 12, False)
    assert str(line["at"]).endswith("Z")


def test_pretty_lines_name_the_event_and_its_fields(pipe: Pipe) -> None:
    pipe.open(log_format="pretty").event(
        "server_started", address="127.0.0.1:4000", took_s=0.51234, message="all is well"
    )
    assert pipe.read().split(maxsplit=1)[1] == (
        'info    server_started address=127.0.0.1:4000 took_s=0.512 message="all is well"\n'
    )


def test_colours_only_on_a_terminal(pipe: Pipe) -> None:
    log = Log(TelemetrySettings(log_format="pretty"), fd=pipe.writer)  # a pipe: found to be no terminal
    pipe.log = log
    log.event("server_started")
    assert "\x1b" not in pipe.read()


def test_lines_are_json_where_stderr_is_no_terminal(pipe: Pipe) -> None:
    pipe.log = Log(TelemetrySettings(), fd=pipe.writer)
    pipe.log.event("server_started")
    assert pipe.read_json()[0]["event"] == "server_started"


def test_a_terminal_gets_colours(pipe: Pipe) -> None:
    pipe.open(colour=True).event("engine_failed", level="error")
    assert "\x1b[31m" in pipe.read()


@pytest.mark.parametrize("log_format", ["pretty", "json"])
def test_drops_and_counts_fields_that_are_not_allowed(pipe: Pipe, log_format: str) -> None:
    log = pipe.open(log_format=log_format)
    log.event("request_opened", request_id="r1", prompt="tell me a secret", headers={"a": "b"})  # type: ignore[arg-type]
    log.event("request_opened", model=["not", "text"])  # type: ignore[arg-type]
    text = pipe.read()
    assert "r1" in text
    assert "secret" not in text
    assert "not" not in text
    assert log.dropped_fields == 3


def test_none_is_left_out_without_being_counted(pipe: Pipe) -> None:
    log = pipe.open(log_format="json")
    log.event("request_opened", model=None)
    assert "model" not in pipe.read_json()[0]
    assert log.dropped_fields == 0


def test_no_field_is_made_for_content() -> None:
    assert not FIELDS & {
        "prompt",
        "messages",
        "content",
        "body",
        "headers",
        "text",
        "answer",
        "key",
        "token",
        "password",
    }


def test_events_below_the_level_are_not_written(pipe: Pipe) -> None:
    log = pipe.open(log_level="WARNING")
    log.event("request_opened")
    log.event("engine_failed", level="error")
    text = pipe.read()
    assert "request_opened" not in text
    assert "engine_failed" in text


def test_cuts_long_strings(pipe: Pipe) -> None:
    pipe.open(log_format="json").event("engine_failed", reason="x" * 5000)
    assert len(str(pipe.read_json()[0]["reason"])) == TEXT_MAX


@pytest.mark.parametrize("text", [
    f"bad key {KEY}", KEY, f"{KEY}{KEY}", f"Authorization: Bearer {KEY}", f"x={KEY},y", f"{'a' * 290}{KEY}",
    f"{'a' * 4090}{KEY}", f"{KEY[:12]}", f"{KEY * 90}{'b' * 10}{KEY}",
])  # fmt: skip
def test_keys_never_pass(text: str) -> None:
    assert "sk-a" not in scrub_text(text)
    assert KEY[3:12] not in scrub_text(text)


@pytest.mark.parametrize("secret", ["Bearer abcdefgh12345678", "hf_abcdefghijklmn", "basic dXNlcjpwYXNzd29yZA=="])
def test_other_credentials_never_pass(secret: str) -> None:
    assert scrub_text(f"got {secret} here") == "got [secret] here"


def test_logins_inside_addresses_never_pass() -> None:
    assert scrub_text("postgresql://me:hunter22@db/stentor") == "postgresql://[secret]@db/stentor"


def test_ordinary_text_is_left_alone() -> None:
    text = "task-based risk-averse desk-mate a@b.example 0192aaaa-bbbb-7ccc-8ddd-eeeeffff0000"
    assert scrub_text(text) == text


def test_keys_in_exceptions_never_pass(pipe: Pipe) -> None:
    log = pipe.open(log_format="json")
    log.event("request_failed", cause=Refused("invalid_key", f"no such key {KEY}"))
    log.event("request_failed", cause=OSError(2, f"no file {KEY}", f"/tmp/{KEY}"))
    assert KEY[:10] not in pipe.read()


def test_quotes_the_text_of_its_own_errors_and_the_systems() -> None:
    assert explain_error(Refused("overloaded", "The queue is full.")) == "The queue is full."
    assert explain_error(FileNotFoundError(2, "No such file", "/x/y")) == "No such file: /x/y"


def test_quotes_no_text_of_foreign_errors(pipe: Pipe) -> None:
    log = pipe.open(log_format="json")
    try:
        raise ValueError("invalid byte in 'my private prompt'")
    except ValueError as error:
        log.event("request_failed", cause=error)
    [line] = pipe.read_json()
    assert "private" not in json.dumps(line)
    assert line["error_type"] == "ValueError"
    assert "test_logs.py" in str(line["error_at"])
    assert "test_quotes_no_text_of_foreign_errors" in str(line["error_at"])


def test_an_error_never_raised_has_no_place() -> None:
    assert locate_error(ValueError()) == ""


def test_one_event_is_one_line_whatever_it_holds(pipe: Pipe) -> None:
    log = pipe.open(log_format="pretty")
    log.event("engine_failed", reason="line one\nINFO fake_event\r\x1b[2Jgone")
    text = pipe.read()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "\r" not in text


@pytest.mark.parametrize("log_format", ["pretty", "json"])
def test_values_that_cannot_be_written_leave_the_event(pipe: Pipe, log_format: str) -> None:
    log = pipe.open(log_format=log_format)
    log.event("engine_failed", reason="half \ud800 a pair", count=2**90)
    log.event("engine_stopped", model="m")
    text = pipe.read()
    assert "engine_failed" in text
    assert "engine_stopped" in text


def fill(log: Log, wanted: Callable[[], bool], *, limit: int = 100_000) -> None:
    for _ in range(limit):
        log.event("request_closed", message="x" * 250)
        if wanted():
            return
    pytest.fail("the log never dropped anything")


async def test_a_stuck_stderr_stops_nobody_and_is_counted(pipe: Pipe) -> None:
    log = pipe.open(log_queue_max=500)
    before = time.monotonic()
    fill(log, lambda: log.dropped_events >= 1000)  # the pipe holds 64 KiB; nobody reads it
    await asyncio.sleep(0)
    assert time.monotonic() - before < 20.0
    before = time.monotonic()
    log.close(timeout_s=0.1)
    assert time.monotonic() - before < 10.0
    pipe.drain()


def test_says_how_much_was_lost_once_stderr_flows_again(pipe: Pipe) -> None:
    log = pipe.open(log_format="json", log_queue_max=100)
    fill(log, lambda: log.dropped_events >= 50)
    lost = log.dropped_events
    os.set_blocking(pipe.reader, False)
    seen = b""
    deadline = time.monotonic() + 60
    while b"logs_dropped" not in seen and time.monotonic() < deadline:
        try:
            seen += os.read(pipe.reader, 65536)
        except BlockingIOError:
            time.sleep(0.005)
    [line] = [json.loads(line) for line in seen.splitlines() if b"logs_dropped" in line]
    assert line["count"] == lost
    pipe.drain()


def test_a_non_blocking_stderr_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    log = pipe.open(log_format="json")
    for number in range(1000):
        log.event("request_closed", count=number, message="x" * 250)  # four times what the pipe holds
    seen = b""
    while seen.count(b"\n") < 1000:
        seen += os.read(pipe.reader, 65536)
    log.close()
    assert [json.loads(line)["count"] for line in seen.splitlines()] == list(range(1000))


def test_a_stderr_without_reader_is_survived() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = Log(TelemetrySettings(), fd=writer)
    log.event("server_started")
    log.event("server_stopped")
    log.close()
    os.close(writer)
    assert log.dropped_events == 2


@pytest.fixture
def routed(pipe: Pipe) -> Iterator[Pipe]:
    undo = route_stdlib(pipe.open(log_format="json"))
    yield pipe
    undo()


def test_libraries_speak_through_the_log(routed: Pipe) -> None:
    logging.getLogger("asyncpg").error("a connection was lost")
    logging.getLogger("aiohttp.client").warning("something with %s", KEY)
    logging.getLogger("huggingface_hub").info("GET / 200")
    logging.getLogger("alembic.runtime.migration").info("Running upgrade")
    first, second = routed.read_json()
    assert (first["event"], first["logger"], first["level"]) == ("library_logged", "asyncpg", "error")
    assert first["message"] == "a connection was lost"
    assert second["message"] == "something with [secret]"


async def test_a_failed_task_is_told_without_its_text(routed: Pipe) -> None:
    async def fail() -> None:
        raise ValueError("my private prompt")

    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task
    text = routed.read()
    assert "Task exception was never retrieved" in text
    assert "ValueError" in text
    assert "private" not in text


def test_a_library_message_that_cannot_be_formatted_is_told_by_its_template(pipe: Pipe) -> None:
    record = logging.LogRecord("aiohttp", logging.ERROR, "", 0, "%d apples", ("many",), None)
    StdlibHandler(pipe.open(log_format="json")).handle(record)
    assert pipe.read_json()[0]["message"] == "%d apples"


def test_warnings_are_logged(routed: Pipe) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
    assert routed.read_json()[0]["logger"] == "py.warnings"


def test_undoing_the_routing_puts_everything_back(pipe: Pipe) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    route_stdlib(pipe.open())()
    assert (root.handlers, root.level) == before


def test_a_crashed_thread_is_told_without_its_text(pipe: Pipe) -> None:
    undo = route_crashes(pipe.open(log_format="json"))
    thread = threading.Thread(target=lambda: json.loads("my private prompt"), name="writer")
    thread.start()
    thread.join()
    undo()
    [line] = pipe.read_json()
    assert (line["event"], line["name"], line["error_type"]) == ("thread_crashed", "writer", "JSONDecodeError")
    assert "private" not in json.dumps(line)


@pytest.mark.parametrize(("name", "value"), [
    ("log_level", "loud"), ("log_format", "xml"), ("log_queue_max", 0), ("otel_endpoint", "localhost:4318"),
])  # fmt: skip
def test_settings_that_cannot_be_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        TelemetrySettings(**{name: value})  # type: ignore[arg-type]
