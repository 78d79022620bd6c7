"""``tool_choice`` as an object: which of the tools may be called, in the words of OpenAI's API.

llama.cpp knows the words "auto", "none" and "required" alone and takes anything else for "auto" without a word; so what
an engine of ours is asked for is said by the tools that it is shown.
"""

from collections.abc import Mapping, MutableMapping
from typing import Literal

import msgspec

from stentor.core.errors import UNREADABLE, Refused

_PLACE = "tool_choice"
_WORDS = (b'"auto"', b'"none"', b'"required"', b"null")


class _Name(msgspec.Struct):
    name: str


class _Tool(msgspec.Struct):
    function: _Name | None = None


class _Allowed(msgspec.Struct):
    tools: list[_Tool]
    mode: Literal["auto", "required"] = "auto"


class _Choice(msgspec.Struct):
    type: str
    function: _Name | None = None
    allowed_tools: _Allowed | None = None


_decode_choice = msgspec.json.Decoder(_Choice).decode
_decode_tools = msgspec.json.Decoder(list[msgspec.Raw] | None).decode
_decode_tool = msgspec.json.Decoder(_Tool).decode
_encode = msgspec.json.Encoder().encode


def check_tool_choice(fields: Mapping[str, msgspec.Raw]) -> None:
    """Raises Refused (400) for a choice that can't be read, or that names a tool which isn't there."""
    if bytes(fields[_PLACE]) not in _WORDS:
        _chosen(fields)


def write_tool_choice(fields: Mapping[str, msgspec.Raw], out: MutableMapping[str, bytes | msgspec.Raw]) -> None:
    """Say the choice in ``out`` as llama.cpp reads it. Raises Refused (400) for one that it can't make."""
    if bytes(fields[_PLACE]) in _WORDS:
        return
    found = _chosen(fields)
    if found is None:
        raise _refuse("must be 'auto', 'none', 'required', a function, or 'allowed_tools'", "unsupported_parameter")
    mode, tools = found
    out["tools"] = _encode(tools)
    out[_PLACE] = b'"%b"' % mode.encode()


def _chosen(fields: Mapping[str, msgspec.Raw]) -> tuple[str, list[msgspec.Raw]] | None:
    """The mode and the tools that may be called; None for a choice that an upstream may know better than we do."""
    raw = fields[_PLACE]
    if bytes(memoryview(raw)[:1]) != b"{":
        return None
    try:
        choice = _decode_choice(raw)
        tools = {_name_of(tool): tool for tool in _decode_tools(fields.get("tools", msgspec.Raw(b"null"))) or ()}
    except UNREADABLE as error:
        raise _refuse(f"can't be read: {error}") from None
    if choice.type == "function" and choice.function is not None:
        mode, names = "required", [choice.function.name]
    elif choice.type == "allowed_tools" and choice.allowed_tools is not None:
        mode = choice.allowed_tools.mode
        names = [tool.function.name for tool in choice.allowed_tools.tools if tool.function is not None]
    elif choice.type in ("function", "allowed_tools"):
        raise _refuse(f"has the type '{choice.type}' and must have a '{choice.type}', too")
    else:
        return None
    missing = [name for name in names if name not in tools]
    if missing:
        raise _refuse(f"names the tool '{missing[0][:100]}', which is not among 'tools'")
    return mode, [tool for name, tool in tools.items() if name in names]


def _name_of(tool: msgspec.Raw) -> str:
    function = _decode_tool(tool).function
    return function.name if function is not None else ""


def _refuse(problem: str, code: str = "invalid_request") -> Refused:
    return Refused(code, f"'{_PLACE}' {problem}.", param=_PLACE)
