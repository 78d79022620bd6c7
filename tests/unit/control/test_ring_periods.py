"""Sums by day, week and month over several of each: exact, and each under the date it begins with."""

from datetime import date

import pytest

from stentor.control.ring.usage import summarize
from stentor.history.logs import UsageGroup

EPOCH = date(1970, 1, 1)


def group(day: str, model: str, requests: int, cost_nano: int) -> UsageGroup:
    return UsageGroup((date.fromisoformat(day) - EPOCH).days, model, "app", None, requests, cost_nano, 10, 5)


GROUPS = [
    group("2026-10-31", "a", 1, 100_000_001),  # a Saturday
    group("2026-11-01", "a", 2, 200_000_002),  # the Sunday of the same week, in another month
    group("2026-11-02", "b", 5, 3),  # a Monday
    group("2026-11-08", "a", 4, 4),  # its Sunday
    group("2026-12-31", "b", 1, 5),
    group("2027-01-01", "a", 1, 6),  # the same week, in another year
]


@pytest.mark.parametrize(
    ("period", "wanted"),
    [
        (
            "day",
            [
                ("2026-10-31", 1, "0.100000001", "a"),
                ("2026-11-01", 2, "0.200000002", "a"),
                ("2026-11-02", 5, "0.000000003", "b"),
                ("2026-11-08", 4, "0.000000004", "a"),
                ("2026-12-31", 1, "0.000000005", "b"),
                ("2027-01-01", 1, "0.000000006", "a"),
            ],
        ),
        (
            "week",
            [
                ("2026-10-26", 3, "0.300000003", "a"),
                ("2026-11-02", 9, "0.000000007", "b"),
                ("2026-12-28", 2, "0.000000011", "b"),
            ],
        ),
        (
            "month",
            [
                ("2026-10-01", 1, "0.100000001", "a"),
                ("2026-11-01", 11, "0.200000009", "a"),
                ("2026-12-01", 1, "0.000000005", "b"),
                ("2027-01-01", 1, "0.000000006", "a"),
            ],
        ),
    ],
)
def test_sums_by_period(period: str, wanted: list[tuple[str, int, str, str]]) -> None:
    stats = summarize(GROUPS, period)  # type: ignore[arg-type]
    fields = stats.by_day[0].__struct_fields__
    told = [tuple(str(getattr(one, name)) for name in fields) for one in stats.by_day]
    assert told == [tuple(map(str, row)) for row in wanted]


def test_the_whole_is_the_sum_of_its_parts() -> None:
    for period in ("day", "week", "month"):
        stats = summarize(GROUPS, period)  # type: ignore[arg-type]
        assert sum(one.requests for one in stats.by_day) == 14
        assert sum(one.requests for one in stats.by_model.values()) == 14
