"""Time as a thing that is handed over, so that a test can hold it still."""

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol

DAY_US = 86_400_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """Wall time for what is written down, monotonic time for what is measured."""

    def now_us(self) -> int:
        """Microseconds since the Unix epoch, UTC."""
        ...

    def monotonic_s(self) -> float:
        """Seconds on a clock that never steps back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    monotonic_s = staticmethod(time.monotonic)


def us_since(start_s: float) -> int:
    """Microseconds since ``start_s`` of the machine's monotonic clock."""
    return int((time.monotonic() - start_s) * 1_000_000)


def time_text(time_us: int) -> str:
    """UTC microseconds as RFC 3339 with six decimals and ``Z``."""
    seconds, micros = divmod(time_us, 1_000_000)
    return f"{_second_text(seconds)}.{micros:06d}Z"


@lru_cache(256)
def _second_text(seconds: int) -> str:
    return (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
