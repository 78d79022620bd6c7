"""Reading what a management request says: numbers, pages, bodies, who asks."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from stentor.accounting.usage import UsageFilter
from stentor.audit.log import Actor
from stentor.core.errors import Refused
from stentor.core.operator import Task

Row = dict[str, Any]
Query = Mapping[str, str]
T = TypeVar("T")
Operation = Callable[[Task], Awaitable[Row]]

PAGE_MAX = 1000
_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)  # what a column of the database holds


def actor_of(task: Task) -> Actor:
    """Who the audit names."""
    return Actor(task.actor, task.origin, task.address)


def page_of(rows: list[Any], after: object) -> Row:
    """A page of rows; ``after`` is the cursor of the following one, None on the last."""
    return {"data": rows, "next": after}


def text_of(query: Query, name: str) -> str | None:
    """A parameter's text, None where it is absent or empty."""
    return query.get(name) or None


def number_of(query: Query, name: str) -> int | None:
    """A parameter's whole number. Raises Refused."""
    text = query.get(name)
    if not text:
        return None
    if not _INTEGER.fullmatch(text):
        raise Refused("invalid_request", f"'{name}' is '{text[:40]}'; it must be a whole number.", param=name)
    return int(text)


def usage_filter(query: Query) -> UsageFilter:
    """Which usage events a request is about. Raises Refused."""
    return UsageFilter(
        user_id=text_of(query, "user"),
        project_id=text_of(query, "project"),
        key_id=text_of(query, "key"),
        model=text_of(query, "model"),
        status=text_of(query, "status"),
        since_us=number_of(query, "since_us"),
        until_us=number_of(query, "until_us"),
    )


def limit_of(query: Query) -> int:
    """How many rows a page may have. Raises Refused."""
    limit = number_of(query, "limit")
    if limit is None:
        return 100
    if not 1 <= limit <= PAGE_MAX:
        raise Refused("invalid_request", f"'limit' is {limit}; it must be 1 to {PAGE_MAX}.", param="limit")
    return limit


def read_body(body: Any, kind: type[T]) -> T:
    """The body as a value of ``kind``. Raises Refused naming what is wrong."""
    try:
        return msgspec.convert({} if body is None else body, kind)
    except msgspec.ValidationError as error:
        raise Refused("invalid_request", f"The body can't be used: {error}.") from None


def given(change: msgspec.Struct) -> dict[str, Any]:
    """The fields of a change that are there."""
    return {name: value for name in change.__struct_fields__ if (value := getattr(change, name)) is not UNSET}
