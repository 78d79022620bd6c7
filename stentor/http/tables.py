"""Rows as CSV, for spreadsheets."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import msgspec

CSV = b"text/csv; charset=utf-8"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def wants_csv(accept: bytes | None) -> bool:
    """Whether ``Accept`` asks for CSV and not for JSON."""
    text = (accept or b"").decode("latin-1").lower()
    return "text/csv" in text and "json" not in text


def csv_of(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows with a head line; what is within a value is JSON. No text can be taken for a formula."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(out)
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return out.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, (dict, list, tuple)):
        value = msgspec.json.encode(value).decode()
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return value
