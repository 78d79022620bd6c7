"""Minute windows, calendar windows, pace."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stentor.accounting.meters import CalendarMeter, Minute, Pace, calendar_window


@given(st.integers(1, 20), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 4)), max_size=200))
def test_no_sixty_seconds_ever_see_more_than_the_limit(limit: int, arrivals: list[tuple[float, int]]) -> None:
    window = Minute(limit, "requests")
    now, passed = 1000.0, []
    for gap_s, amount in arrivals:
        now += gap_s
        if window.left(int(now)) >= amount:
            window.add(int(now), amount)
            passed.append((now, amount))
    for start, _ in passed:
        assert sum(amount for then, amount in passed if start <= then <= start + 60) <= limit


@given(st.integers(1, 10), st.lists(st.floats(0, 20), min_size=1, max_size=60))
def test_waiting_as_long_as_told_is_enough(limit: int, gaps: list[float]) -> None:
    window = Minute(limit, "requests")
    now = 1000.0
    for gap_s in gaps:
        now += gap_s
        if window.left(int(now)) >= 1:
            window.add(int(now), 1)
        else:
            assert window.left(int(now) + window.retry_after_s(int(now), 1)) >= 1


def test_a_window_is_free_again_after_a_minute_and_not_before() -> None:
    window = Minute(1, "requests")
    window.add(100, 1)
    assert [window.left(second) for second in (100, 159, 160, 161)] == [0, 0, 0, 1]


def test_what_is_taken_back_is_free_again() -> None:
    window = Minute(5, "tokens")
    window.add(100, 2)
    window.add(101, 3)
    window.take_back(100, 2)
    assert window.left(101) == 2
    window.take_back(99, 7)  # long dropped, or never there
    assert window.left(101) == 2
    assert window.left(162) == 5


def us(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000_000)


@pytest.mark.parametrize(
    ("window", "now", "start", "end"),
    [
        ("day", "2026-03-01T23:59:59.999999", "2026-03-01", "2026-03-02"),
        ("day", "2026-03-02T00:00:00", "2026-03-02", "2026-03-03"),
        ("month", "2026-02-28T12:00:00", "2026-02-01", "2026-03-01"),
        ("month", "2026-12-31T23:00:00", "2026-12-01", "2027-01-01"),
        ("month", "2028-02-29T00:00:00", "2028-02-01", "2028-03-01"),
    ],
)
def test_days_and_months_are_utc(window: str, now: str, start: str, end: str) -> None:
    assert calendar_window(window, us(now)) == (us(start), us(end))


def test_a_new_day_starts_unused_and_keeps_what_is_held() -> None:
    meter = CalendarMeter("budget_exceeded", "project_budget", "p", 100, "day", us("2026-03-01T12:00:00"))
    meter.used, meter.held = 70, 20
    meter.turn(us("2026-03-01T23:59:59"))
    assert meter.left() == 10
    meter.turn(us("2026-03-02T00:00:00"))
    assert meter.left() == 80


def test_pace_lets_a_burst_of_one_second_through() -> None:
    pace = Pace(2.0)
    passed = []
    for step in range(40):
        now = step * 0.1
        if pace.wait_s(now) == 0:
            pace.pass_one(now)
            passed.append(now)
    assert len([then for then in passed if then < 1.0]) <= 3
    assert 7 <= len(passed) <= 9


def test_a_slow_pace_is_one_at_a_time() -> None:
    pace = Pace(0.5)
    pace.pass_one(10.0)
    assert pace.wait_s(10.0) == pytest.approx(2.0)
    assert pace.wait_s(12.0) == 0


def test_a_clock_that_leaps_and_is_set_right_finds_the_budget_as_it_was() -> None:
    meter = CalendarMeter("budget_exceeded", "project_budget", "p", 100, "day", us("2026-03-01T12:00:00"))
    meter.used = 70
    meter.turn(us("2027-06-01T00:00:00"))
    meter.spend(10)
    meter.turn(us("2026-03-01T12:00:01"))
    assert (meter.window_start, meter.left()) == (us("2026-03-01"), 30)
    meter.turn(us("2026-03-02T00:00:00"))
    meter.spend(5)
    meter.turn(us("2026-03-01T23:59:59.990000"))  # a step of some milliseconds, over midnight
    assert meter.left() == 30
    meter.turn(us("2026-03-02T00:00:00"))
    assert meter.left() == 95
