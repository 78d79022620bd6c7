"""What of a management request can't be kept: PostgreSQL has no place for U+0000, so no database is given one."""

from collections.abc import Mapping
from typing import Any

from stentor.core.errors import Refused

NUL = "\0"


def check_texts(query: Mapping[str, str], params: Mapping[str, str], raw: bytes, body: Any) -> None:
    """Raises Refused where a text of the query, the path or the decoded body ``raw`` holds U+0000."""
    for place in (query, params):
        for name, value in place.items():
            if NUL in name or NUL in value:
                raise _refusal(name)
    if rb"\u0000" in raw and _has_nul(body):  # there is no other way to write it in JSON
        raise _refusal("body")


def _has_nul(body: Any) -> bool:
    left = [body]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if NUL in value:
                return True
        elif isinstance(value, dict):
            left += value.keys()
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False


def _refusal(name: str) -> Refused:
    name = name.replace(NUL, "")[:64]
    return Refused("invalid_request", f"'{name}' holds the character U+0000, which can't be kept.", param=name)
