"""What a test asks for: the text that makes the engine play a script, and that text read again."""

import json
import re
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
DEFAULT_TEXT = "Hello from the scripted engine."


def script(*do: Json, **options: Any) -> str:
    """The text of a user message that makes the engine play ``do`` under ``options``."""
    return json.dumps({"do": list(do), **options})


def split_words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def tool_deltas(call: Json, index: int) -> Iterator[Json]:
    """A tool call as llama-server streams it: name first, then pieces of the arguments."""
    arguments = call.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    head = {"index": index, "id": call.get("id", f"call_{index:08d}"), "type": "function"}
    yield {"tool_calls": [{**head, "function": {"name": call["call"]}}]}
    size = call.get("fragment", 5)
    for start in range(0, len(text), size):
        yield {"tool_calls": [{"index": index, "function": {"arguments": text[start : start + size]}}]}


def interleave(streams: list[Iterator[Json]]) -> Iterator[Json]:
    while streams:
        alive = []
        for stream in streams:
            delta = next(stream, None)
            if delta is not None:
                yield delta
                alive.append(stream)
        streams = alive


def step_deltas(step: Json, first_call: int) -> Iterator[Json]:
    """The deltas of one step, a token each."""
    if "say" in step:
        yield from ({"content": word} for word in split_words(step["say"]))
    elif "tokens" in step:
        yield from ({"content": f"t{number} "} for number in range(step["tokens"]))
    elif "think" in step:
        yield from ({"reasoning_content": word} for word in split_words(step["think"]))
    elif "huge" in step:
        yield {"content": "x" * step["huge"]}
    elif "call" in step:
        yield from tool_deltas(step, first_call)
    elif "calls" in step:
        yield from interleave([tool_deltas(call, first_call + index) for index, call in enumerate(step["calls"])])


def example_of(schema: Any) -> Any:
    """The smallest value that a JSON schema's common keywords allow, so that JSON mode answers something valid."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: example_of(value) for name, value in schema.get("properties", {}).items()}
    if kind == "array":
        return [example_of(schema.get("items"))] * int(schema.get("minItems", 1))
    samples: Json = {"string": "text", "integer": 7, "number": 0.5, "boolean": True}
    return samples.get(kind)
