"""Rows as CSV, for spreadsheets."""

import csv
import io
import typing
from collections.abc import Sequence
from typing import Any

import msgspec

CSV = b"text/csv; charset=utf-8"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def wants_csv(accept: bytes | None) -> bool:
    """Whether ``Accept`` asks for CSV and not for JSON."""
    text = (accept or b"").decode("latin-1").lower()
    return "text/csv" in text and "json" not in text


def columns_of(page: Any) -> tuple[str, ...]:
    """The columns of a page's rows: the fields of what its ``data`` lists."""
    (kind,) = typing.get_args(next(field.type for field in msgspec.structs.fields(page) if field.name == "data"))
    return tuple(field.encode_name for field in msgspec.structs.fields(kind))


def csv_of(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows with a head line; what is within a value is JSON. No text can be taken for a formula."""
    out = io.StringIO()
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
