"""``POST /v1/messages``: the request of the Anthropic Messages API, read as a chat.

See https://docs.anthropic.com/en/api/messages for the shapes.
"""

import msgspec

from stentor.flows.answer import NOTHING
from stentor.flows.ask import bad_request, positive
from stentor.flows.dialects.counting import count_ask
from stentor.flows.dialects.reading import (
    Json,
    TranslatedAsk,
    choose_tools,
    decode_body,
    given,
    image_part,
    translated,
    unsupported,
    with_instructions,
)
from stentor.flows.inputs import InputsAsk

PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"


class _Source(msgspec.Struct):
    type: str
    media_type: str = ""
    data: str | None = None
    url: str | None = None


class _Block(msgspec.Struct):
    type: str
    text: str | None = None
    source: _Source | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = NOTHING
    tool_use_id: str | None = None
    content: "str | list[_Block] | None" = None
    thinking: str | None = None
    is_error: bool | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = NOTHING
    strict: bool | None = None


class _ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None


class _Format(msgspec.Struct):
    type: str
    schema: msgspec.Raw = NOTHING


class _OutputConfig(msgspec.Struct):
    format: _Format | None = None
    effort: str | None = None


class _Body(msgspec.Struct):
    messages: list[_Message]
    model: str | None = None
    max_tokens: int | None = None
    system: str | list[_Block] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: msgspec.Raw = NOTHING
    top_p: msgspec.Raw = NOTHING
    top_k: msgspec.Raw = NOTHING
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    mcp_servers: list[msgspec.Raw] | None = None
    container: msgspec.Raw = NOTHING


_decode = msgspec.json.Decoder(_Body).decode


def read_messages(body: bytes) -> TranslatedAsk:
    """Read a ``/v1/messages`` body. Raises Refused (400) naming the field."""
    wanted = decode_body(_decode, body)
    return translated(
        PATH,
        {
            **_prompt(wanted),
            "stream": wanted.stream,
            "max_tokens": positive(wanted.max_tokens, "max_tokens"),
            "stop": wanted.stop_sequences or None,
            "temperature": given(wanted.temperature),
            "top_p": given(wanted.top_p),
            "top_k": given(wanted.top_k),
            "response_format": _response_format(wanted.output_config),
        },
    )


def read_count(body: bytes) -> InputsAsk:
    """Read a ``/v1/messages/count_tokens`` body: what counts is the prompt. Raises Refused (400)."""
    return count_ask(translated(COUNT_PATH, _prompt(decode_body(_decode, body))))


def _prompt(wanted: _Body) -> Json:
    """What a template makes a prompt of."""
    for name, value in (("mcp_servers", wanted.mcp_servers), ("container", given(wanted.container))):
        if value:
            raise unsupported(name, "can't be used: this server runs no tools for the model.")
    tools, choice = _tools(wanted)
    messages: list[Json] = []
    for number, message in enumerate(wanted.messages):
        _add_message(messages, message, f"messages[{number}]")
    if not messages:
        raise bad_request("'messages' is empty; send at least one message.", "messages")
    thinking = wanted.thinking
    return {
        "model": wanted.model,
        "messages": with_instructions([_text(wanted.system, "system")], messages),
        "tools": tools or None,
        "tool_choice": choice if tools else None,
        "parallel_tool_calls": False if tools and wanted.tool_choice and _one_at_a_time(wanted.tool_choice) else None,
        "chat_template_kwargs": {"enable_thinking": thinking.type != "disabled"} if thinking is not None else None,
        # What llama.cpp calls the budget; an upstream of Anthropic's kind gets the wish as it was said.
        "thinking_budget_tokens": positive(thinking.budget_tokens, "thinking.budget_tokens") if thinking else None,
        "thinking": thinking,
        "reasoning_effort": wanted.output_config.effort if wanted.output_config is not None else None,
    }


def _one_at_a_time(choice: _ToolChoice) -> bool:
    return bool(choice.disable_parallel_tool_use)


# -- messages


def _add_message(messages: list[Json], message: _Message, place: str) -> None:
    if message.role == "assistant":
        messages.append(_assistant_message(message, place))
    elif message.role == "user":
        messages += _user_messages(message, place)
    elif message.role == "system":
        messages.append({"role": "system", "content": _text(message.content, f"{place}.content")})
    else:
        raise bad_request(f"'{place}.role' must be 'user' or 'assistant', not '{message.role[:40]}'.", f"{place}.role")


def _assistant_message(message: _Message, place: str) -> Json:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for number, block in enumerate(message.content):
        if block.type == "text":
            texts.append(block.text or "")
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type == "tool_use":
            calls.append(_call(block, f"{place}.content[{number}]"))
        elif block.type != "redacted_thinking":
            raise _unknown_block(block, f"{place}.content[{number}]", "'text', 'thinking' and 'tool_use'")
    answer: Json = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    if calls:
        answer["tool_calls"] = calls
    if any(thoughts):
        answer["reasoning_content"] = "\n\n".join(thoughts)
    return answer


def _call(block: _Block, place: str) -> Json:
    if not block.name or not block.id:
        raise bad_request(f"'{place}' is a tool_use and needs 'id' and 'name'.", place)
    arguments = bytes(given(block.input) or b"{}").decode()
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _user_messages(message: _Message, place: str) -> list[Json]:
    """A user's message; the results of tools in it are messages of their own."""
    if isinstance(message.content, str):
        return [{"role": "user", "content": message.content}]
    messages: list[Json] = []
    parts: list[Json] = []
    pictures: list[Json] = []
    for number, block in enumerate(message.content):
        at = f"{place}.content[{number}]"
        if block.type != "tool_result":
            # The results of one turn's calls stay together; what they show comes after the last of them.
            parts += [*pictures, _part(block, at)]
            pictures = []
            continue
        words, shown = _result(block, at)
        if parts:
            messages.append({"role": "user", "content": _merged(parts)})
            parts = []
        messages.append({"role": "tool", "tool_call_id": block.tool_use_id or "", "content": words})
        pictures += shown
    parts += pictures
    if parts or not messages:
        messages.append({"role": "user", "content": _merged(parts)})
    return messages


def _result(block: _Block, place: str) -> tuple[str, list[Json]]:
    """The words of a tool's result, and its pictures: templates have no place for those in a tool's message."""
    if not block.tool_use_id:
        raise bad_request(f"'{place}.tool_use_id' is missing.", f"{place}.tool_use_id")
    failed = "Error: " if block.is_error else ""
    if block.content is None or isinstance(block.content, str):
        return failed + (block.content or ""), []
    parts = [_part(inner, f"{place}.content[{number}]") for number, inner in enumerate(block.content)]
    words = "\n".join(part["text"] for part in parts if part["type"] == "text")
    return failed + words, [part for part in parts if part["type"] != "text"]


def _merged(parts: list[Json]) -> str | list[Json]:
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(block: _Block, place: str) -> Json:
    source = block.source
    if block.type == "text":
        return {"type": "text", "text": block.text or ""}
    if block.type == "image" and source is not None and source.type == "base64" and source.data is not None:
        return image_part(source.data, source.media_type or None)
    if block.type == "image" and source is not None and source.type == "url" and source.url is not None:
        return {"type": "image_url", "image_url": {"url": source.url}}  # fetched where the operator allows it
    if block.type == "image":
        raise unsupported(f"{place}.source", "must be of the type 'base64' or 'url': this server keeps no images.")
    if block.type == "document" and source is not None and source.type == "text":
        return {"type": "text", "text": source.data or ""}
    raise _unknown_block(block, place, "'text', 'image', 'tool_result' and 'document' with a 'text' source")


def _unknown_block(block: _Block, place: str, known: str) -> Exception:
    return unsupported(f"{place}.type", f"is '{block.type[:40]}'; known are {known}.")


def _text(content: str | list[_Block] | None, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for number, block in enumerate(content):
        if block.type != "text":
            raise _unknown_block(block, f"{place}[{number}]", "'text' blocks")
    return "\n".join(block.text or "" for block in content)


# -- tools and formats


def _tools(wanted: _Body) -> tuple[list[Json], str | None]:
    """The tools, and 'auto', 'none' or 'required'."""
    tools = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(wanted.tools or ())]
    choice = wanted.tool_choice
    if choice is None:
        return tools, None
    if choice.type == "tool":
        return choose_tools(tools, [choice.name or ""], "tool_choice"), "required"
    known = {"auto": "auto", "any": "required", "none": "none"}
    if choice.type not in known:
        raise bad_request("'tool_choice.type' must be 'auto', 'any', 'tool' or 'none'.", "tool_choice.type")
    return tools, known[choice.type]


def _tool(tool: _Tool, place: str) -> Json:
    if tool.type not in (None, "custom"):
        raise unsupported(f"{place}.type", f"is '{tool.type[:40]}'; this server runs no tools, only 'custom' is known.")
    function: Json = {"name": tool.name, "parameters": given(tool.input_schema) or {"type": "object"}}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _response_format(config: _OutputConfig | None) -> Json | None:
    wanted = config.format if config is not None else None
    if wanted is None:
        return None
    schema = given(wanted.schema)
    if wanted.type != "json_schema" or schema is None:
        raise bad_request(
            "'output_config.format' must have the type 'json_schema' and a 'schema'.", "output_config.format"
        )
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
