"""Times as the protocol writes them, and what it means by a day."""

from datetime import UTC, datetime, timedelta
from typing import Literal

from stentor.core.clock import DAY_US, EPOCH

Period = Literal["day", "week", "month"]


def parse_time(text: str, *, end: bool = False) -> int:
    """RFC 3339, or a date, as UTC microseconds; a date is its midnight, as an ``end`` the next. Raises ValueError."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    time_us = (time - EPOCH) // timedelta(microseconds=1)
    return time_us + DAY_US if end and len(text) == 10 else time_us


def period_start(day: int, period: Period) -> str:
    """The date on which the period of a day (days since 1970) begins: the day, its Monday, or its first."""
    date = (EPOCH + timedelta(days=day)).date()
    if period == "week":
        date -= timedelta(days=date.weekday())
    elif period == "month":
        date = date.replace(day=1)
    return date.isoformat()
