"""A chat completion as an Anthropic ``/v1/messages`` request.

What has no counterpart and only colours an answer (``seed``, the penalties) is left out; what the answer would have to
show (several answers, logprobs, free JSON) is refused.
"""

from typing import Any

import msgspec

from stentor.core.errors import UNREADABLE
from stentor.flows.failure import EngineRefused

_PASSED = ("temperature", "top_p", "top_k")
_COUNTED = ("model", "messages", "system", "tools", "tool_choice", "output_config")
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh"}

THINKING_MIN_TOKENS = 1024

Json = dict[str, Any]


class _Url(msgspec.Struct):
    url: str


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: _Url | None = None


class _CalledFunction(msgspec.Struct):
    name: str
    arguments: str | None = None


class _Call(msgspec.Struct):
    id: str
    function: _CalledFunction


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: Json | None = None


class _Tool(msgspec.Struct):
    function: _Function | None = None


class _Named(msgspec.Struct):
    name: str


class _Choice(msgspec.Struct):
    function: _Named


class _Schema(msgspec.Struct):
    schema: Json | None = None


class _Format(msgspec.Struct):
    type: str
    json_schema: _Schema | None = None


class _Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None


class _Ask(msgspec.Struct):
    """What is read of a chat completion request; what isn't here has no counterpart."""

    model: str
    max_tokens: int
    messages: list[_Message]
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: str | list[str] | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Choice | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    reasoning_effort: str | None = None
    thinking: _Thinking | None = None
    n: int | None = None
    logprobs: bool | None = None


_decode = msgspec.json.Decoder(_Ask).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_arguments = msgspec.json.Decoder(Json).decode
_encode = msgspec.json.Encoder().encode


def to_messages(body: bytes) -> bytes:
    """The request's body for ``/v1/messages``. Raises EngineRefused (400) naming what can't be said there."""
    try:
        ask = _decode(body)
    except UNREADABLE as error:
        raise EngineRefused(
            "invalid_request", f"The request can't be told to this model's upstream: {error}."
        ) from None
    if (ask.n or 1) > 1:
        raise _refuse("n", "more than one answer")
    if ask.logprobs:
        raise _refuse("logprobs", "probabilities of tokens")
    system, messages = _messages(ask.messages)
    out: Json = {"model": ask.model, "max_tokens": ask.max_tokens, "messages": messages, "stream": True}
    if system:
        out["system"] = system
    out.update({name: value for name in _PASSED if (value := getattr(ask, name)) is not None})
    if ask.temperature is not None:
        out["temperature"] = min(ask.temperature, 1.0)
    if ask.stop:
        out["stop_sequences"] = [ask.stop] if isinstance(ask.stop, str) else ask.stop
    _add_tools(ask, out)
    _add_output(ask, out)
    _add_thinking(ask, out)
    return _encode(out)


def to_count(body: bytes) -> bytes:
    """The same request's body for ``/v1/messages/count_tokens``: only what makes the prompt. Raises EngineRefused."""
    fields = _decode_fields(to_messages(body))
    return _encode({name: fields[name] for name in _COUNTED if name in fields})


def _messages(messages: list[_Message]) -> tuple[str, list[Json]]:
    """The system's words, and the turns; a role's consecutive messages are one turn."""
    system: list[str] = []
    turns: list[Json] = []
    for message in messages:
        if message.role in ("system", "developer"):
            system += [block["text"] for block in _blocks(message.content) if block["type"] == "text"]
            continue
        blocks = _turn(message)
        if not blocks:
            continue
        side = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1]["role"] == side:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": side, "content": blocks})
    return "\n\n".join(system), turns


def _turn(message: _Message) -> list[Json]:
    blocks = _blocks(message.content)
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id or "", "content": blocks}]
    for call in message.tool_calls or ():
        function = call.function
        use = {"type": "tool_use", "id": call.id, "name": function.name}
        blocks.append({**use, "input": _arguments(function.arguments)})
    return blocks


def _arguments(text: str | None) -> Json:
    try:
        return _decode_arguments(text or "{}")
    except UNREADABLE:
        raise EngineRefused(
            "invalid_request", "The arguments of a tool call in 'messages' aren't a JSON object.", param="messages"
        ) from None


def _blocks(content: str | list[_Part] | None) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    blocks: list[Json] = []
    for part in content or ():
        text = part.text or part.refusal
        if part.type in ("text", "refusal") and text:
            blocks.append({"type": "text", "text": text})
        elif part.type == "image_url" and part.image_url is not None:
            blocks.append(_image(part.image_url.url))
    return blocks


def _image(url: str) -> Json:
    head, _, data = url.partition(",")
    media, _, coding = head.removeprefix("data:").partition(";")
    if coding != "base64":
        raise EngineRefused("invalid_request", "Images must be base64 in a 'data:' address.", param="messages")
    return {"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}


def _add_tools(ask: _Ask, out: Json) -> None:
    tools = [tool.function for tool in ask.tools or () if tool.function is not None]
    if not tools:
        return
    out["tools"] = [
        {
            "name": tool.name,
            **({"description": tool.description} if tool.description else {}),
            "input_schema": tool.parameters or {"type": "object", "properties": {}},
        }
        for tool in tools
    ]
    choice: Json | None = None
    if isinstance(ask.tool_choice, str):
        choice = {"type": _CHOICES.get(ask.tool_choice, "auto")}
    elif ask.tool_choice is not None:
        choice = {"type": "tool", "name": ask.tool_choice.function.name}
    if ask.parallel_tool_calls is False and (choice is None or choice["type"] != "none"):
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice is not None:
        out["tool_choice"] = choice


def _add_output(ask: _Ask, out: Json) -> None:
    config: Json = {}
    wanted = ask.response_format
    if wanted is not None and wanted.type == "json_schema":
        schema = wanted.json_schema.schema if wanted.json_schema is not None else None
        config["format"] = {"type": "json_schema", "schema": schema or {}}
    elif wanted is not None and wanted.type == "json_object":
        raise _refuse("response_format", "JSON without a schema")
    effort = _EFFORTS.get(ask.reasoning_effort or "")
    if effort is not None:
        config["effort"] = effort
    if config:
        out["output_config"] = config


def _add_thinking(ask: _Ask, out: Json) -> None:
    """Thinking as it was asked for, within the output that is paid for.

    In the middle of a turn that calls tools it is left out: Anthropic then wants the thoughts so far with their
    signatures, which don't pass through here.
    """
    wanted = ask.thinking
    if wanted is None or any(block["type"] == "tool_result" for block in out["messages"][-1]["content"]):
        return
    if wanted.budget_tokens is None:
        out["thinking"] = {"type": wanted.type}
    elif ask.max_tokens > THINKING_MIN_TOKENS:
        out["thinking"] = {"type": wanted.type, "budget_tokens": min(wanted.budget_tokens, ask.max_tokens - 1)}


def _refuse(field: str, what: str) -> EngineRefused:
    text = f"This model's upstream can't give {what}; leave '{field}' out."
    return EngineRefused("unsupported_parameter", text, param=field)
