"""A chat completion as an Anthropic ``/v1/messages`` request.

What has no counterpart and only colours an answer (``seed``, the penalties) is left out; what the answer would have to
show (several answers, logprobs, free JSON) is refused.
"""

from typing import Any

import msgspec

from stentor.core.errors import Refused
from stentor.flows.failure import EngineRefused

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_PASSED = ("temperature", "top_p", "top_k")
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh"}

Json = dict[str, Any]


def to_messages(body: bytes) -> bytes:
    """The request's body for ``/v1/messages``. Raises EngineRefused (400) naming what can't be said there."""
    ask: Json = _decode(body)
    system, messages = _messages(ask["messages"])
    out: Json = {"model": ask["model"], "max_tokens": ask["max_tokens"], "messages": messages, "stream": True}
    if system:
        out["system"] = system
    out.update({name: ask[name] for name in _PASSED if ask.get(name) is not None})
    if isinstance(out.get("temperature"), int | float):
        out["temperature"] = min(out["temperature"], 1)
    stop = ask.get("stop")
    if stop:
        out["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    _add_tools(ask, out)
    _add_output(ask, out)
    if (ask.get("n") or 1) > 1:
        raise _refuse("n", "more than one answer")
    if ask.get("logprobs"):
        raise _refuse("logprobs", "probabilities of tokens")
    return _encode(out)


def _messages(messages: list[Json]) -> tuple[str, list[Json]]:
    """The system's words, and the turns; a role's consecutive messages are one turn."""
    system: list[str] = []
    turns: list[Json] = []
    for message in messages:
        role = message.get("role")
        if role in ("system", "developer"):
            system += [block["text"] for block in _blocks(message.get("content")) if block["type"] == "text"]
            continue
        blocks = _turn(message)
        if not blocks:
            continue
        side = "assistant" if role == "assistant" else "user"
        if turns and turns[-1]["role"] == side:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": side, "content": blocks})
    return "\n\n".join(system), turns


def _turn(message: Json) -> list[Json]:
    if message.get("role") == "tool":
        result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id")}
        return [{**result, "content": _blocks(message.get("content"))}]
    blocks = _blocks(message.get("content"))
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        blocks.append(
            {
                "type": "tool_use",
                "id": call.get("id"),
                "name": function.get("name"),
                "input": _arguments(function.get("arguments")),
            }
        )
    return blocks


def _arguments(text: Any) -> Any:
    try:
        return _decode(text or "{}")
    except (msgspec.DecodeError, TypeError, RecursionError):
        raise EngineRefused(
            "invalid_request", "The arguments of a tool call in 'messages' aren't JSON.", param="messages"
        ) from None


def _blocks(content: Any) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    blocks = []
    for part in content or ():
        kind = part.get("type")
        if kind in ("text", "refusal") and part.get(kind):
            blocks.append({"type": "text", "text": part[kind]})
        elif kind == "image_url":
            blocks.append(_image(part["image_url"]["url"]))
    return blocks


def _image(url: str) -> Json:
    head, _, data = url.partition(",")
    media, _, coding = head.removeprefix("data:").partition(";")
    if coding != "base64":
        raise EngineRefused("invalid_request", "Images must be base64 in a 'data:' address.", param="messages")
    return {"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}


def _add_tools(ask: Json, out: Json) -> None:
    tools = [tool["function"] for tool in ask.get("tools") or () if isinstance(tool.get("function"), dict)]
    if not tools:
        return
    out["tools"] = [
        {
            "name": tool.get("name"),
            **({"description": tool["description"]} if tool.get("description") else {}),
            "input_schema": tool.get("parameters") or {"type": "object", "properties": {}},
        }
        for tool in tools
    ]
    wanted = ask.get("tool_choice")
    choice: Json | None = None
    if isinstance(wanted, str):
        choice = {"type": _CHOICES.get(wanted, "auto")}
    elif isinstance(wanted, dict):
        choice = {"type": "tool", "name": (wanted.get("function") or {}).get("name")}
    if ask.get("parallel_tool_calls") is False and (choice is None or choice["type"] != "none"):
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice is not None:
        out["tool_choice"] = choice


def _add_output(ask: Json, out: Json) -> None:
    config: Json = {}
    wanted = ask.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        config["format"] = {"type": "json_schema", "schema": (wanted.get("json_schema") or {}).get("schema") or {}}
    elif wanted.get("type") == "json_object":
        raise _refuse("response_format", "JSON without a schema")
    effort = _EFFORTS.get(str(ask.get("reasoning_effort")))
    if effort is not None:
        config["effort"] = effort
    if config:
        out["output_config"] = config


def _refuse(field: str, what: str) -> Refused:
    return EngineRefused(
        "unsupported_parameter", f"This model's upstream can't give {what}; leave it out.", param=field
    )
