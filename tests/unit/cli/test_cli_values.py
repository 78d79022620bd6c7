"""Values as people type them, and how results are shown to them."""

from datetime import UTC, datetime

import click
import pytest

from stentor.cli.render import format_usd, money_of, plain, printable, time_of
from stentor.cli.values import Dollars, Moment, Span


@pytest.mark.parametrize(
    ("text", "nano"),
    [("12.50", 12_500_000_000), ("$3", 3_000_000_000), ("0.000000001", 1), ("0", 0), ("1e-9", 1)],
)
def test_dollars_are_exact(text, nano):
    assert Dollars().convert(text, None, None) == nano


@pytest.mark.parametrize("text", ["0.0000000001", "abc", "nan", "inf", "-1", "99999999999", ""])
def test_amounts_that_can_not_be_booked_are_refused(text):
    with pytest.raises(click.BadParameter):
        Dollars().convert(text, None, None)


def test_a_correction_may_be_negative():
    assert Dollars(negative=True).convert("-1.5", None, None) == -1_500_000_000


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("24h", 86400), ("30d", 2592000), ("1w", 604800)]
)
def test_spans_become_seconds(text, seconds):
    assert Span().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1 year", ""])
def test_broken_spans_are_refused(text):
    with pytest.raises(click.BadParameter):
        Span().convert(text, None, None)


def test_a_moment_is_a_span_from_now_or_a_date():
    now_us = datetime.now(UTC).timestamp() * 1e6
    assert Moment().convert("1h", None, None) == pytest.approx(now_us + 3600e6, abs=5e6)
    assert (
        Moment().convert("2100-01-31T12:00+01:00", None, None)
        == datetime(2100, 1, 31, 11, tzinfo=UTC).timestamp() * 1e6
    )


@pytest.mark.parametrize("text", ["2001-01-01", "soon", "2100-13-01"])
def test_moments_that_can_not_be_are_refused(text):
    with pytest.raises(click.BadParameter):
        Moment().convert(text, None, None)


@pytest.mark.parametrize(
    ("nano", "text"),
    [(1_500_000_000, "$1.50"), (40, "$0.00000004"), (0, "$0.00"), (-2_000_000_001, "-$2.000000001")],
)
def test_money_is_shown_without_rounding(nano, text):
    assert format_usd(nano) == text


def test_absent_values_are_dashes():
    row = {"a": None, "b": [], "c": ["x", "y"], "d": False, "e": 0}
    assert [plain(name)(row) for name in "abcdef"] == ["–", "–", "x, y", "no", "0", "–"]
    assert time_of("a")(row) == money_of("a")(row) == "–"


def test_text_of_others_loses_what_steers_a_terminal():
    assert printable("a\x1b[2J\x9b1m\r\x07") == "a\ufffd[2J\ufffd1m\ufffd\ufffd"
    assert printable("two\nlines\tand 👩‍🚀 é") == "two\nlines\tand 👩‍🚀 é"
