"""Times as the protocol writes them, and what it means by a day."""

from datetime import UTC, datetime, timedelta
from typing import Literal

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
Period = Literal["day", "week", "month"]


def time_text(time_us: int) -> str:
    """UTC microseconds as RFC 3339 with six decimals and ``Z``."""
    return (_EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str, *, end: bool = False) -> int:
    """RFC 3339, or a date, as UTC microseconds; a date is its midnight, as an ``end`` the next. Raises ValueError."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    time_us = (time - _EPOCH) // timedelta(microseconds=1)
    return time_us + DAY_US if end and len(text) == 10 else time_us


def period_start(day: int, period: Period) -> str:
    """The date on which the period of a day (days since 1970) begins: the day, its Monday, or its first."""
    date = (_EPOCH + timedelta(days=day)).date()
    if period == "week":
        date -= timedelta(days=date.weekday())
    elif period == "month":
        date = date.replace(day=1)
    return date.isoformat()
