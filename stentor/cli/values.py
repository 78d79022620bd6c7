"""Values as people type them: dollars, spans of time, dates."""

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import click

_SPAN = re.compile(r"(\d+)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_US_PER_S = 1_000_000
_MOST_NANO = 2**63 - 1


class Dollars(click.ParamType[int]):
    """An amount in USD, exact to nine decimals; becomes whole nano-USD."""

    name = "USD"

    def __init__(self, *, negative: bool = False) -> None:
        self._negative = negative

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            nano = Decimal(str(value).removeprefix("$")).scaleb(9)
            whole = int(nano)
        except (InvalidOperation, ValueError, OverflowError):
            self.fail(f"{value!r} is not an amount in USD like 12.50", param, ctx)
        if whole != nano or abs(whole) > _MOST_NANO:
            self.fail(f"{value!r} must have at most nine decimals and be below nine billion", param, ctx)
        if whole < 0 and not self._negative:
            self.fail(f"{value!r} must not be negative", param, ctx)
        return whole


class Span(click.ParamType[int]):
    """A span of time such as ``90s``, ``24h``, ``30d``; becomes seconds."""

    name = "SPAN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _SPAN.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is not a span of time like 90s, 15m, 24h, 30d, 4w", param, ctx)
        return int(found[1]) * _SECONDS[found[2]]


class Moment(click.ParamType[int]):
    """A span from now (``30d``) or a date (``2027-01-31``, ``2027-01-31T12:00+01:00``); becomes µs UTC."""

    name = "WHEN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        now_us = int(datetime.now(UTC).timestamp() * _US_PER_S)
        if _SPAN.fullmatch(text):
            return now_us + Span().convert(text, param, ctx) * _US_PER_S
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{value!r} is neither a span like 30d nor a date like 2027-01-31", param, ctx)
        moment_us = int(moment.astimezone(UTC).timestamp() * _US_PER_S)
        if moment_us <= now_us:
            self.fail(f"{value!r} is in the past", param, ctx)
        return moment_us


class KeyIdText(click.ParamType[str]):
    """A key's id. Who gives the key itself is told, and it isn't repeated."""

    name = "KEY_ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text.startswith("sk-"):
            self.fail("that is a key, not its id: `stentor keys list` has the id beside its last letters", param, ctx)
        return text
