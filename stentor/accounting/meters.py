"""The buckets in memory: what is used up, what is held for running requests, what is left.

Each belongs to one event loop and changes only between two awaits, so nothing here locks. ``held`` is the sum of the
reservations of running requests: ``used + held`` never passes ``limit`` by an admission.
"""

from collections import deque
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

WINDOW_S = 60
_SECOND_US = 1_000_000


class Moment(NamedTuple):
    """Now: microseconds UTC for calendars, seconds of a steady clock for the minute windows."""

    us: int
    steady_s: float


class Meter:
    """A limit on a sum: a balance, a spending limit, a token limit, a budget. Units: nano-USD or tokens.

    ``code`` is the refusal it leads to; (kind, subject, window, window_start) is its row in the table ``bucket``.
    ``lease`` is None on a machine that has the bucket alone; else what this node has borrowed of it and not used up.
    """

    __slots__ = ("code", "held", "kind", "lease", "limit", "subject", "used", "window", "window_end", "window_start")

    def __init__(self, code: str, kind: str, subject: str, limit: int, used: int) -> None:
        self.code = code
        self.kind = kind
        self.subject = subject
        self.limit = limit
        self.used = used
        self.held = 0
        self.window = "none"
        self.window_start = 0
        self.window_end: int | None = None
        self.lease: int | None = None

    def left(self) -> int:
        """What a new request may still reserve."""
        left = self.limit - self.used - self.held
        return left if self.lease is None else min(left, self.lease - self.held)

    def free(self) -> int:
        """What is left as far as this node knows, borrowed or not."""
        return self.limit - self.used - self.held

    def spend(self, amount: int) -> None:
        """Use ``amount`` up, or (negative) take that back."""
        self.used += amount
        if self.lease is not None:
            self.lease -= amount

    def turn(self, now_us: int) -> None:
        """Go on to the window that ``now_us`` lies in, if it is another one."""


class CalendarMeter(Meter):
    """A limit for each day or month, UTC. What is held carries over; it is used up when it is settled.

    A clock that is set back finds the window before as it was left, or the budget would be new once more.
    """

    __slots__ = ("_before",)

    def __init__(self, code: str, kind: str, subject: str, limit: int, window: str, now_us: int) -> None:
        super().__init__(code, kind, subject, limit, 0)
        self.window = window
        self.window_start, self.window_end = calendar_window(window, now_us)
        self._before = (-1, 0)  # another window's start, and what was used of it

    def turn(self, now_us: int) -> None:
        if self.window_end is not None and not self.window_start <= now_us < self.window_end:
            left = (self.window_start, self.used)
            self.window_start, self.window_end = calendar_window(self.window, now_us)
            self.used = self._before[1] if self._before[0] == self.window_start else 0
            self._before = left
            if self.lease is not None:
                self.lease = 0  # what was borrowed was the other window's


def calendar_window(window: str, now_us: int) -> tuple[int, int]:
    """Start and end in microseconds of the UTC day or month that ``now_us`` lies in."""
    now = datetime.fromtimestamp(now_us // _SECOND_US, UTC)
    start = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if window == "day":
        end = start + timedelta(days=1)
    else:
        start = start.replace(day=1)
        end = (start + timedelta(days=32)).replace(day=1)
    return int(start.timestamp()) * _SECOND_US, int(end.timestamp()) * _SECOND_US


class Minute:
    """A limit for any 60 seconds, kept in one-second cells: the running second and the sixty full ones before it.

    Seconds are those of the monotonic clock. A cell is dropped when all of it is older than 60 s, so the sum over the
    cells is never less than what the last 60 s saw.
    """

    __slots__ = ("_cells", "held", "lease", "leased_s", "limit", "subject", "total", "unit")

    def __init__(self, limit: int, unit: str, subject: str = "") -> None:
        """``subject``: whose it is, where several nodes share it (``lease`` as of :class:`Meter`)."""
        self.limit = limit
        self.unit = unit
        self.subject = subject
        self.lease: int | None = None
        self.leased_s = 0  # the second in which borrowed requests must be used
        self.held = 0
        self.total = 0
        self._cells: deque[list[int]] = deque()

    def left(self, now_s: int) -> int:
        """What may still be used at second ``now_s``."""
        left = self.free(now_s)
        return left if self.lease is None else min(left, self.borrowed(now_s) - self.held)

    def free(self, now_s: int) -> int:
        """What is left at second ``now_s`` as far as this node knows, borrowed or not."""
        cells = self._cells
        while cells and cells[0][0] < now_s - WINDOW_S:
            self.total -= cells.popleft()[1]
        return self.limit - self.total - self.held

    def borrowed(self, now_s: int) -> int:
        """What of this window's lease can be used at second ``now_s``."""
        if self.lease is None or (self.unit == "requests" and now_s != self.leased_s):
            return 0
        return self.lease

    def add(self, now_s: int, amount: int) -> None:
        """Count ``amount`` in second ``now_s``."""
        if self.lease is not None:
            self.lease -= amount
        cells = self._cells
        self.total += amount
        if cells and cells[-1][0] >= now_s:
            cells[-1][1] += amount
        else:
            cells.append([now_s, amount])

    def take_back(self, then_s: int, amount: int) -> None:
        """Undo an :meth:`add` of second ``then_s``; nothing to do once its cell was dropped."""
        # A request borrowed in another second than what is lent now stays counted in the shared bucket.
        if self.lease is not None and (self.unit != "requests" or then_s == self.leased_s):
            self.lease += amount
        for cell in reversed(self._cells):
            if cell[0] <= then_s:
                if cell[0] == then_s:
                    cell[1] -= amount
                    self.total -= amount
                return

    def retry_after_s(self, now_s: int, wanted: int) -> int:
        """Seconds until ``wanted`` fits if nothing more is used; a minute if that depends on running requests."""
        missing = wanted - self.free(now_s)
        for second, amount in self._cells:
            missing -= amount
            if missing <= 0:
                return max(1, second + WINDOW_S + 1 - now_s)
        return WINDOW_S


class Gauge:
    """A limit on what runs at once. ``lease`` as of :class:`Meter`; ``subject`` is whose limit it is."""

    __slots__ = ("lease", "limit", "running", "subject")

    def __init__(self, limit: int | None, subject: str = "") -> None:
        self.limit = limit
        self.subject = subject
        self.running = 0
        self.lease: int | None = None

    def is_full(self) -> bool:
        """Whether nothing more may start."""
        if self.limit is None:
            return False
        return self.running >= self.limit or (self.lease is not None and self.running >= self.lease)


class Pace:
    """A limit on requests per second for one key: the next one may come 1/qps after the last, with a second's burst."""

    __slots__ = ("_burst_s", "_gap_s", "_next_s", "per_second")

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._gap_s = 1.0 / per_second
        self._burst_s = max(1.0, self._gap_s) - self._gap_s
        self._next_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """How long a request that comes now would have to wait; 0 if it may pass."""
        return max(0.0, self._next_s - self._burst_s - now_s)

    def pass_one(self, now_s: float) -> None:
        """Count a request that passes."""
        self._next_s = max(self._next_s, now_s) + self._gap_s

    def take_back(self) -> None:
        """Undo a :meth:`pass_one`."""
        self._next_s -= self._gap_s
