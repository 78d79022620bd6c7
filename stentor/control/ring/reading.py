"""Reading what callers of the LLMRing surface send; what can't be read is refused as a list of errors (422)."""

import re
from typing import Any, TypeVar

import msgspec

from stentor.core.errors import Refused
from stentor.core.ring import RingCall
from stentor.history.times import parse_time

T = TypeVar("T")
_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_PLACE = re.compile(r" - at `(\$[^`]*)`$")
_STEP = re.compile(r"\[(\d+|\.\.\.)\]|\.?([^.\[]+)")
_YES, _NO = frozenset({"true", "1", "on", "yes"}), frozenset({"false", "0", "off", "no"})


def unprocessable(kind: str, place: tuple[str | int, ...], message: str, given: Any) -> Refused:
    """The refusal of a bad value: ``place`` starts with ``body``, ``query`` or ``path``."""
    error = {"type": kind, "loc": list(place), "msg": message, "input": _short(given)}
    return Refused("unprocessable", message, param=str(place[-1]), details={"errors": [error]})


def _short(value: Any) -> Any:
    return value[:200] if isinstance(value, str) else value if isinstance(value, int | float | bool | None) else None


def read_body(call: RingCall, kind: type[T]) -> T:
    """The body as ``kind``. Raises Refused."""
    if call.body is None:
        raise unprocessable("missing", ("body",), "Field required", None)
    return convert(call.body, kind)


def convert(value: Any, kind: type[T], *place: str | int) -> T:
    """A decoded value as ``kind``. Raises Refused."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        found = _PLACE.search(text)
        steps = _steps(found[1]) if found else ()
        missing = re.search(r"missing required field `(\w+)`", text)
        if missing:
            raise unprocessable("missing", ("body", *place, *steps, missing[1]), "Field required", None) from None
        message = text[: found.start()] if found else text
        given = _look(value, steps)
        raise unprocessable("value_error", ("body", *place, *steps), message, given) from None


def _steps(path: str) -> tuple[str | int, ...]:
    steps: list[str | int] = []
    for index, name in _STEP.findall(path.removeprefix("$")):
        steps.append(name if name else int(index) if index.isdigit() else index)
    return tuple(steps)


def _look(value: Any, steps: tuple[str | int, ...]) -> Any:
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def text_of(call: RingCall, name: str) -> str | None:
    """A query parameter, None where it is absent or empty."""
    return call.query.get(name) or None


def number_of(call: RingCall, name: str, default: int, low: int, high: int) -> int:
    """A whole number from the query, within bounds. Raises Refused."""
    text = text_of(call, name)
    if text is None:
        return default
    if not _INTEGER.fullmatch(text):
        raise unprocessable("int_parsing", ("query", name), "Input should be a valid integer", text)
    number = int(text)
    if not low <= number <= high:
        raise unprocessable("out_of_range", ("query", name), f"Input should be {low} to {high}", text)
    return number


def optional_number(call: RingCall, name: str) -> int | None:
    """A whole number from the query that is 0 or more, None where it is absent. Raises Refused."""
    return number_of(call, name, 0, 0, 2**53) if text_of(call, name) is not None else None


def flag_of(call: RingCall, name: str, default: bool) -> bool:
    """A yes or no from the query. Raises Refused."""
    text = text_of(call, name)
    if text is None:
        return default
    if text.lower() in _YES:
        return True
    if text.lower() in _NO:
        return False
    raise unprocessable("bool_parsing", ("query", name), "Input should be a valid boolean", text)


def choice_of(call: RingCall, name: str, choices: tuple[str, ...]) -> str:
    """One of ``choices`` from the query, the first where it is absent. Raises Refused."""
    text = text_of(call, name)
    if text is None:
        return choices[0]
    if text not in choices:
        raise unprocessable("enum", ("query", name), f"Input should be {', '.join(choices)}", text)
    return text


def time_of(call: RingCall, name: str, *, end: bool = False) -> int | None:
    """A time from the query in UTC microseconds, None where it is absent. Raises Refused."""
    return read_time(text_of(call, name), ("query", name), end=end)


def read_time(text: str | None, place: tuple[str, ...], *, end: bool = False) -> int | None:
    """A time in UTC microseconds; a bare date is its midnight, as an end the next. Raises Refused."""
    if not text:
        return None
    try:
        # A plus sign in a query arrives as a blank.
        return parse_time(text.replace(" ", "+") if text.count(":") > 2 else text, end=end)
    except (ValueError, OverflowError):
        raise unprocessable("datetime_parsing", place, "Input should be a valid date or time", text) from None
