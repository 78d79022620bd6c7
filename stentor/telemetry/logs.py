"""Logs on stderr: one line an event, allow-listed fields, never in anybody's way.

``log.event("request_closed", request_id=…, model=…)`` costs a filter and a queue entry; a daemon thread formats and
writes. Where stderr is a pipe that nobody reads, the queue fills and further events are dropped and counted: a log
line is never worth a stalled request. Fields outside :data:`FIELDS` are dropped and counted too, so that a header, a
body or a prompt can't slip into a log by being passed along.
"""

import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import msgspec

from stentor.telemetry.scrub import explain_error, locate_error, scrub_text
from stentor.telemetry.settings import TelemetrySettings

Level = Literal["debug", "info", "warning", "error"]
Value = str | int | float | bool | None

FIELDS = frozenset({
    # who and what
    "request_id", "client_request_id", "attempt", "key_id", "key_hint", "user_id", "project_id", "client",
    "model", "engine", "instance", "generation", "endpoint", "method", "route", "status", "outcome", "code", "reason",
    # how much and how long
    "latency_ms", "first_token_ms", "overhead_ms", "queued_ms", "took_ms", "took_s", "delay_s", "timeout_s",
    "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "estimated", "cost_nano", "absorbed_nano",
    "reserved_nano", "balance_nano", "size_bytes", "count", "total", "percent", "limit", "restarts",
    # processes, places, things of the house
    "address", "url", "host", "port", "pid", "worker", "workers", "signal", "exit_status", "state", "running",
    "waiting", "places", "path", "file", "source", "version", "revision", "schema", "setting", "origin", "alias",
    "job", "action", "subject", "name", "kind", "hint",
    # errors
    "message", "error", "error_type", "error_at", "logger",
})  # fmt: skip

_NUMBERS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_COLOURS = {"debug": "\x1b[2m", "info": "\x1b[36m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_LIBRARIES = ("aiohttp", "asyncio", "alembic", "sqlalchemy")
_CLOSE_S = 1.0
_Line = tuple[float, Level, str, dict[str, Value]]


class Log:
    """The log of one process. Safe to call from any thread and from the event loop; never blocks, never raises."""

    def __init__(self, settings: TelemetrySettings, *, fd: int = 2, colour: bool | None = None) -> None:
        self._level = _NUMBERS[settings.log_level.lower()]
        self._max = settings.log_queue_max
        self._queue: queue.SimpleQueue[_Line | None] = queue.SimpleQueue()
        self._fd = fd
        colour = os.isatty(fd) if colour is None else colour
        pretty = colour if settings.log_format == "auto" else settings.log_format == "pretty"
        self._format: Callable[[_Line], bytes] = format_json
        if pretty:
            self._format = format_coloured if colour else format_plain
        self.dropped_events = 0
        self.dropped_fields = 0
        self._thread = threading.Thread(target=self._write_all, name="stentor-log", daemon=True)
        self._thread.start()

    def event(
        self, name: str, /, *, level: Level = "info", cause: BaseException | None = None, **fields: Value
    ) -> None:
        """Log that ``name`` (``noun_verb``) happened.

        ``fields`` outside :data:`FIELDS`, or of another type than str, int, float, bool, are dropped and counted in
        ``dropped_fields``; None is left out. Of ``cause`` only type, place, and text known to be safe are written.
        """
        if _NUMBERS[level] < self._level:
            return
        if self._queue.qsize() >= self._max:
            self.dropped_events += 1
            return
        said: dict[str, Value] = {}
        for field, value in fields.items():
            if value is None:
                continue
            if field not in FIELDS or not isinstance(value, (str, int, float)):
                self.dropped_fields += 1
            else:
                said[field] = scrub_text(value) if isinstance(value, str) else value
        if cause is not None:
            said |= {"error_type": type(cause).__name__, "error": explain_error(cause), "error_at": locate_error(cause)}
        self._queue.put((time.time(), level, name, said))

    def says(self, level: Level) -> bool:
        """Whether events of this level are written: for those that are too many to be made in vain."""
        return _NUMBERS[level] >= self._level

    def close(self, timeout_s: float = _CLOSE_S) -> bool:
        """Write what waits, at most ``timeout_s`` long, and stop. True when everything is written."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _write_all(self) -> None:
        told = 0
        while (line := self._queue.get()) is not None:
            if not self._write(self._format_safely(line)):
                self.dropped_events += 1
            elif self.dropped_events > told and self._queue.qsize() < self._max // 2:
                lost = self.dropped_events - told
                if self._write(self._format((time.time(), "warning", "logs_dropped", {"count": lost}))):
                    told += lost

    def _format_safely(self, line: _Line) -> bytes:
        try:
            return self._format(line)
        except (ValueError, OverflowError, TypeError):  # half a surrogate pair, an integer beyond 64 bits
            self.dropped_fields += len(line[3])
            return self._format((line[0], line[1], ascii(line[2]).strip("'"), {}))

    def _write(self, data: bytes) -> bool:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody who shares the terminal made it non-blocking
                select.select([], [self._fd], [])
            except OSError:  # stderr is closed or its reader is gone: there is nowhere left to say so
                return False
        return True


def format_json(line: _Line) -> bytes:
    """One JSON object: at (RFC 3339, UTC), level, event, then the fields."""
    at, level, name, fields = line
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return msgspec.json.encode({"at": moment, "level": level, "event": name, **fields}) + b"\n"


def format_plain(line: _Line) -> bytes:
    """``12:00:01.123 info    request_closed  model=… outcome=…`` in local time."""
    return _pretty(line, "", "", "")


def format_coloured(line: _Line) -> bytes:
    """As :func:`format_plain`, for a terminal."""
    return _pretty(line, _COLOURS[line[1]], "\x1b[2m", "\x1b[0m")


def _pretty(line: _Line, colour: str, dim: str, plain: str) -> bytes:
    at, level, name, fields = line
    moment = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"
    parts = [f"{dim}{moment}{plain} {colour}{level:<7}{plain} {name}"]
    parts += [f"{dim}{field}={plain}{_quote(value)}" for field, value in fields.items() if value != ""]
    return (" ".join(parts) + "\n").encode("utf-8", "replace")


def _quote(value: Value) -> str:
    """A value as one word: quoted where it holds spaces, escaped where it could steer a terminal or fake a line."""
    if not isinstance(value, str):
        return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value).lower()
    if not value.isprintable():
        return ascii(value)
    return f'"{value}"' if " " in value or "=" in value else value


class StdlibHandler(logging.Handler):
    """Brings what libraries log through ``logging`` into our log, first lines only.

    Later lines of a library's message hold representations of objects (asyncio prints the failed task with its
    exception's text), which may quote a prompt.
    """

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record as ``library_logged``. A record that can't be formatted is told by its template."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        level: Level = "error" if record.levelno >= 40 else "warning" if record.levelno >= 30 else "info"
        if record.levelno < 20:
            level = "debug"
        cause = record.exc_info[1] if record.exc_info else None
        first = message.strip().partition("\n")[0]
        self._log.event("library_logged", level=level, cause=cause, logger=record.name, message=first)


def route_stdlib(log: Log) -> Callable[[], None]:
    """Send everything that goes through ``logging`` and ``warnings`` to ``log``; the returned function undoes it.

    Libraries speak from ``warning`` up: their chatter below that is theirs.
    """
    root = logging.getLogger()
    handler = StdlibHandler(log)
    libraries = map(logging.getLogger, _LIBRARIES)
    before = [(known, known.handlers[:], known.level, known.propagate) for known in libraries]
    before.append((root, root.handlers[:], root.level, root.propagate))
    for known, *_ in before:
        known.handlers[:] = []
        known.setLevel(logging.NOTSET)
        known.propagate = True
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)

    def undo() -> None:
        logging.captureWarnings(False)
        for known, handlers, level, propagate in before:
            known.handlers[:] = handlers
            known.setLevel(level)
            known.propagate = propagate

    return undo


def route_crashes(log: Log) -> Callable[[], None]:
    """Log uncaught exceptions of threads instead of printing their text; the returned function undoes it."""
    before = threading.excepthook

    def hook(crash: threading.ExceptHookArgs) -> None:
        if crash.exc_type is not SystemExit:
            name = crash.thread.name if crash.thread else ""
            log.event("thread_crashed", level="error", cause=crash.exc_value, name=name)

    threading.excepthook = hook

    def undo() -> None:
        threading.excepthook = before

    return undo
