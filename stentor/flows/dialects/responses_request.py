"""``POST /v1/responses``: the request of the OpenAI Responses API, read as a chat.

Nothing is kept between requests: the whole conversation comes with each, as items. See
https://platform.openai.com/docs/api-reference/responses for the shapes.
"""

from typing import Any

import msgspec

from stentor.flows.answer import NOTHING
from stentor.flows.ask import bad_request, positive
from stentor.flows.dialects.reading import (
    Json,
    TranslatedAsk,
    choose_tools,
    decode_body,
    given,
    translated,
    unsupported,
    with_instructions,
)

PATH = "/v1/responses"
LOGPROBS_INCLUDED = "message.output_text.logprobs"


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    input_audio: msgspec.Raw = NOTHING


class _Item(msgspec.Struct):
    type: str = "message"
    role: str | None = None
    content: str | list[_Part] | None = None
    summary: list[_Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[_Part] | None = None


class _Tool(msgspec.Struct):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: msgspec.Raw = NOTHING
    strict: bool | None = None


class _Format(msgspec.Struct):
    type: str
    name: str | None = None
    schema: msgspec.Raw = NOTHING
    strict: bool | None = None


class _Text(msgspec.Struct):
    format: _Format | None = None


class _Reasoning(msgspec.Struct):
    effort: str | None = None


class _ChosenTool(msgspec.Struct):
    type: str
    name: str | None = None
    mode: str | None = None
    tools: list[_Tool] | None = None


class _Body(msgspec.Struct):
    input: str | list[_Item]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: msgspec.Raw = NOTHING
    top_p: msgspec.Raw = NOTHING
    top_logprobs: int | None = None
    stream: bool | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    include: list[str] | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: msgspec.Raw = NOTHING
    prompt: msgspec.Raw = NOTHING


_decode = msgspec.json.Decoder(_Body).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# What a response object repeats of its request, and what it says where the request didn't.
_ECHOED: dict[str, Any] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": True, "temperature": None,
    "tool_choice": "auto", "tools": [], "top_p": None, "text": {"format": {"type": "text"}},
    "reasoning": {"effort": None, "summary": None}, "user": None,
}  # fmt: skip


class ResponsesAsk:
    """A checked request: the chat it is, and what its answer repeats of it."""

    def __init__(self, ask: TranslatedAsk, echo: Json) -> None:
        self.ask = ask
        self.echo = echo


def read_responses(body: bytes) -> ResponsesAsk:
    """Read a ``/v1/responses`` body. Raises Refused (400) naming the field."""
    wanted = decode_body(_decode, body)
    _refuse_state(wanted)
    tools, choice = _tools(wanted)
    logprobs = wanted.top_logprobs is not None or LOGPROBS_INCLUDED in (wanted.include or ())
    messages = [{"role": "user", "content": wanted.input}] if isinstance(wanted.input, str) else _messages(wanted.input)
    fields = {
        "model": wanted.model,
        "messages": with_instructions([wanted.instructions or ""], messages),
        "stream": wanted.stream,
        "max_completion_tokens": positive(wanted.max_output_tokens, "max_output_tokens"),
        "temperature": given(wanted.temperature),
        "top_p": given(wanted.top_p),
        "tools": tools or None,
        "tool_choice": choice if tools else None,
        "parallel_tool_calls": wanted.parallel_tool_calls if tools else None,
        "response_format": _response_format(wanted.text),
        "reasoning_effort": wanted.reasoning.effort if wanted.reasoning is not None else None,
        "logprobs": logprobs or None,
        "top_logprobs": wanted.top_logprobs,
    }
    if not fields["messages"]:
        raise bad_request("'input' is empty; send a text or at least one item.", "input")
    return ResponsesAsk(translated(PATH, fields), _echo(body))


def _echo(body: bytes) -> Json:
    given = _decode_fields(body)
    return {name: given.get(name, default) for name, default in _ECHOED.items()}


def _refuse_state(wanted: _Body) -> None:
    """What would need a server that remembers. Raises Refused (400)."""
    if wanted.previous_response_id is not None:
        raise unsupported(
            "previous_response_id", "can't be used: this server keeps no responses. Send the whole conversation."
        )
    if wanted.store:
        raise unsupported("store", "can't be true: this server keeps no responses. Leave it out or send false.")
    if wanted.background:
        raise unsupported("background", "can't be true: an answer lives as long as its connection. Use 'stream'.")
    for name, value in (("conversation", wanted.conversation), ("prompt", wanted.prompt)):
        if given(value) is not None:
            raise unsupported(name, "can't be used: this server keeps none. Send 'instructions' and 'input'.")


# -- items


def _messages(items: list[_Item]) -> list[Json]:
    messages: list[Json] = []
    thoughts: list[str] = []
    shown: list[Json] = []
    for number, item in enumerate(items):
        place = f"input[{number}]"
        if shown and item.type != "function_call_output":
            messages.append({"role": "user", "content": shown})
            shown = []
        if item.type == "reasoning":
            thoughts += _thoughts(item)
        elif item.type == "message":
            _add_message(messages, item, place)
        elif item.type == "function_call":
            _add_call(messages, item, place)
        elif item.type == "function_call_output":
            words, pictures = _output(item, place)
            messages.append({"role": "tool", "tool_call_id": item.call_id or "", "content": words})
            shown += pictures
        else:
            raise unsupported(
                f"{place}.type",
                f"is '{item.type[:40]}'; known are 'message', 'function_call', 'function_call_output' and 'reasoning'.",
            )
        if thoughts and messages and messages[-1]["role"] == "assistant" and item.type != "reasoning":
            messages[-1].setdefault("reasoning_content", "\n\n".join(thoughts))
        if item.type != "reasoning":
            thoughts.clear()
    if shown:
        messages.append({"role": "user", "content": shown})
    return messages


def _thoughts(item: _Item) -> list[str]:
    content = item.content if isinstance(item.content, list) else []
    return [part.text for part in content or item.summary or () if part.text]


def _add_message(messages: list[Json], item: _Item, place: str) -> None:
    if item.role not in ("user", "assistant", "system", "developer"):
        raise bad_request(
            f"'{place}.role' must be 'user', 'assistant', 'system' or 'developer', not '{(item.role or '')[:40]}'.",
            f"{place}.role",
        )
    role = "system" if item.role == "developer" else item.role
    messages.append({"role": role, "content": _content(item.content, f"{place}.content")})


def _add_call(messages: list[Json], item: _Item, place: str) -> None:
    if not item.name or item.call_id is None:
        raise bad_request(f"'{place}' is a function_call and needs 'name' and 'call_id'.", place)
    call = {
        "id": item.call_id,
        "type": "function",
        "function": {"name": item.name, "arguments": item.arguments or "{}"},
    }
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)


def _output(item: _Item, place: str) -> tuple[str, list[Json]]:
    """The words of a function's output, and what it shows: templates have no place for that in a tool's message."""
    content = _content(item.output, f"{place}.output")
    if isinstance(content, str):
        return content, []
    words = "\n".join(part["text"] for part in content if part["type"] == "text")
    return words, [part for part in content if part["type"] != "text"]


def _content(content: str | list[_Part] | None, place: str) -> str | list[Json]:
    if content is None:
        raise bad_request(f"'{place}' is missing: send a text or a list of parts.", place)
    if isinstance(content, str):
        return content
    parts = [_part(part, f"{place}[{number}]") for number, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: _Part, place: str) -> Json:
    if part.type in ("input_text", "output_text", "text", "refusal"):
        return {"type": "text", "text": part.refusal or part.text or ""}
    if part.type == "input_image":
        if part.image_url is None:
            raise unsupported(place, "must carry its image in 'image_url'; this server keeps no files.")
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    if part.type == "input_audio":
        return {"type": "input_audio", "input_audio": part.input_audio}
    raise unsupported(
        f"{place}.type",
        f"is '{part.type[:40]}'; known are 'input_text', 'output_text', 'refusal', 'input_image' and 'input_audio'.",
    )


# -- tools and formats


def _tools(wanted: _Body) -> tuple[list[Json], str | None]:
    """The tools, and 'auto', 'none' or 'required'."""
    tools = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(wanted.tools or ())]
    choice = wanted.tool_choice
    if choice is None or isinstance(choice, str):
        if choice not in (None, "auto", "none", "required"):
            raise bad_request("'tool_choice' must be 'auto', 'none', 'required' or name a tool.", "tool_choice")
        return tools, choice
    if choice.type == "function":
        return choose_tools(tools, [choice.name or ""], "tool_choice"), "required"
    if choice.type == "allowed_tools":
        return choose_tools(tools, [tool.name or "" for tool in choice.tools or ()], "tool_choice"), choice.mode
    raise unsupported("tool_choice", f"has the type '{choice.type[:40]}'; known are 'function' and 'allowed_tools'.")


def _tool(tool: _Tool, place: str) -> Json:
    if tool.type != "function":
        raise unsupported(f"{place}.type", f"is '{tool.type[:40]}'; 'function' is known, this server runs no tools.")
    if not tool.name:
        raise bad_request(f"'{place}.name' is missing.", f"{place}.name")
    function: Json = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = given(tool.parameters) or {"type": "object"}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _response_format(text: _Text | None) -> Json | None:
    wanted = text.format if text is not None else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "json_object"}
    if wanted.type != "json_schema" or given(wanted.schema) is None:
        raise bad_request(
            "'text.format' must have the type 'text', 'json_object', or 'json_schema' with a 'schema'.", "text.format"
        )
    schema: Json = {"name": wanted.name or "answer", "schema": wanted.schema}
    if wanted.strict is not None:
        schema["strict"] = wanted.strict
    return {"type": "json_schema", "json_schema": schema}
