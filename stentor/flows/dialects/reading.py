"""How a dialect's request becomes a chat: decoded by its own shape, checked, written as chat completion fields."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from stentor.core.errors import Refused
from stentor.flows.answer import NOTHING, NULL
from stentor.flows.ask import Ask, bad_request, fill_chat, fill_completion

Json = dict[str, Any]
T = TypeVar("T")

_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")
_BASE64_START = {"iVBOR": "image/png", "/9j/": "image/jpeg", "R0lGO": "image/gif", "UklGR": "image/webp"}
_encode = msgspec.json.Encoder().encode


class TranslatedAsk(Ask):
    """A chat that was asked for in a dialect, at ``surface``."""

    __slots__ = ("surface",)

    is_translated = True

    def __init__(self, surface: str) -> None:
        self.surface = surface

    @property
    def endpoint(self) -> str:
        return self.surface


def given(raw: msgspec.Raw) -> msgspec.Raw | None:
    """A raw value, or None where the field is missing or null."""
    return raw if raw not in (NOTHING, NULL) else None


def decode_body(decode: Callable[[bytes], T], body: bytes) -> T:
    """The body as the dialect's own shape. Raises Refused (400) naming the field."""
    try:
        if not body.isascii():
            body.decode()
        return decode(body)
    except RecursionError:
        raise bad_request("The body is nested too deeply to be read; flatten it.") from None
    except msgspec.ValidationError as error:
        message = str(error)
        place = _PLACE.search(message)
        said = message[: place.start()] if place else message
        missing = _MISSING.search(said)
        name = ".".join(filter(None, (place[1] if place else "", missing[1] if missing else "")))
        raise bad_request(f"'{name}': {said}." if name else f"The body can't be read: {said}.", name or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"The body is not valid JSON: {error}.") from None


def translated(surface: str, fields: Mapping[str, Any], *, kind: str = "chat") -> TranslatedAsk:
    """The ask with these chat completion fields; those that are None are left out. Raises Refused (400)."""
    raw = {name: _raw(value) for name, value in fields.items() if value is not None}
    if fields.get("stream"):
        raw["stream_options"] = msgspec.Raw(b'{"include_usage":true}')
    size_bytes = sum(len(name) + len(memoryview(value)) + 4 for name, value in raw.items())
    ask = TranslatedAsk(surface)
    (fill_chat if kind == "chat" else fill_completion)(ask, raw, size_bytes)
    return ask


def _raw(value: Any) -> msgspec.Raw:
    if isinstance(value, msgspec.Raw):
        return value
    try:
        return msgspec.Raw(_encode(value))
    except RecursionError:
        raise bad_request("The body is nested too deeply to be read; flatten it.") from None


def unsupported(name: str, why: str) -> Refused:
    """A 400 for what this server can't do; ``why`` ends the sentence «'name' …»."""
    return bad_request(f"'{name}' {why}", name, "unsupported_parameter")


def with_instructions(instructions: Sequence[str], messages: list[Json]) -> list[Json]:
    """``messages`` after one system message with all instructions that come first: many templates allow just one."""
    texts = [text for text in instructions if text]
    rest = list(messages)
    while rest and rest[0]["role"] in ("system", "developer") and isinstance(rest[0]["content"], str):
        texts.append(rest.pop(0)["content"])
    if not texts:
        return rest
    return [{"role": "system", "content": "\n\n".join(texts)}, *rest]


def image_part(data: str, media_type: str | None = None) -> Json:
    """A base64 image as a part of a chat message; its kind is told by its first bytes where nobody says it."""
    if data.startswith("data:"):
        return {"type": "image_url", "image_url": {"url": data}}
    if media_type is None:
        media_type = next((kind for start, kind in _BASE64_START.items() if data.startswith(start)), "image/png")
    return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}


def choose_tools(tools: Sequence[Json], wanted: Sequence[str], place: str) -> list[Json]:
    """The tools of these names alone: a small model that sees no other calls no other. Raises Refused (400)."""
    chosen = [tool for tool in tools if tool["function"]["name"] in wanted]
    missing = set(wanted) - {tool["function"]["name"] for tool in chosen}
    if missing:
        raise bad_request(f"'{place}' names the tool '{min(missing)}', which is not among 'tools'.", place)
    return chosen
