"""Ollama's ``/api/chat``, ``/api/generate``, ``/api/embed`` and ``/api/embeddings``, read as our own requests.

See https://github.com/ollama/ollama/blob/main/docs/api.md for the shapes. Options that belong to the operator (context,
threads, layers on a GPU) are accepted and mean nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from stentor.core.books import Usage
from stentor.flows.answer import NOTHING
from stentor.flows.ask import bad_request
from stentor.flows.dialects.durations import read_keep_alive
from stentor.flows.dialects.reading import (
    Json,
    TranslatedAsk,
    decode_body,
    given,
    image_part,
    translated,
    unsupported,
    with_instructions,
)
from stentor.flows.embedding import read_embeddings
from stentor.flows.inputs import InputsAsk, Step

CHAT_PATH = "/api/chat"
GENERATE_PATH = "/api/generate"
EMBED_PATH = "/api/embed"
EMBEDDINGS_PATH = "/api/embeddings"
LATEST = ":latest"

_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop", "repeat_last_n", "repeat_penalty",
    "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta",
)  # fmt: skip


class _Function(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = NOTHING


class _Call(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | None = None
    images: list[str] | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Common(msgspec.Struct):
    model: str = ""
    stream: bool | None = None
    format: str | dict[str, msgspec.Raw] | None = None
    options: dict[str, msgspec.Raw] | None = None
    think: bool | str | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class _Chat(_Common):
    messages: list[_Message] | None = None
    tools: list[msgspec.Raw] | None = None


class _Generate(_Common):
    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None


class _Embed(msgspec.Struct):
    model: str = ""
    input: str | list[str] | None = None
    prompt: str | None = None
    dimensions: int | None = None
    keep_alive: float | str | None = None


class _Show(msgspec.Struct):
    model: str = ""
    name: str = ""


class Preload(msgspec.Struct, frozen=True):
    """No question, only a model that should be at hand for ``keep_s``, or not any more. ``path``: asked where."""

    model: str
    keep_s: float | None
    path: str

    @property
    def leave(self) -> bool:
        """Whether it is to be unloaded."""
        return self.keep_s == 0


class OllamaAsk(msgspec.Struct, frozen=True):
    """A checked request: the chat it is, and the name by which its model was asked for."""

    ask: TranslatedAsk
    model: str


_decode_chat = msgspec.json.Decoder(_Chat).decode
_decode_generate = msgspec.json.Decoder(_Generate).decode
_decode_embed = msgspec.json.Decoder(_Embed).decode
_decode_show = msgspec.json.Decoder(_Show).decode
_decode_int = msgspec.json.Decoder(int | None).decode
_encode = msgspec.json.Encoder().encode


def plain_name(model: str) -> str:
    """The name without ``:latest``, which Ollama's clients put behind every one."""
    return model.removesuffix(LATEST)


def read_chat(body: bytes) -> OllamaAsk | Preload:
    """Read a ``/api/chat`` body. Raises Refused (400) naming the field."""
    wanted = decode_body(_decode_chat, body)
    if not wanted.messages:
        return _preload(wanted, CHAT_PATH)
    fields = {**_common(wanted), "messages": _messages(wanted.messages), "tools": wanted.tools or None}
    return _asked(CHAT_PATH, fields, wanted)


def read_generate(body: bytes) -> OllamaAsk | Preload:
    """Read a ``/api/generate`` body. Raises Refused (400) naming the field."""
    wanted = decode_body(_decode_generate, body)
    _refuse_programs(wanted)
    if not wanted.prompt:
        return _preload(wanted, GENERATE_PATH)
    fields = _common(wanted)
    if wanted.raw:
        if wanted.images:
            raise unsupported("images", "can't be used together with 'raw'.")
        fields |= {"prompt": wanted.prompt, "json_schema": _schema(wanted), "response_format": None}
        return _asked(GENERATE_PATH, fields, wanted, kind="completion")
    message = {"role": "user", "content": _content(wanted.prompt, wanted.images)}
    fields["messages"] = with_instructions([wanted.system or ""], [message])
    return _asked(GENERATE_PATH, fields, wanted)


def _asked(path: str, fields: Json, wanted: _Common, *, kind: str = "chat") -> OllamaAsk:
    ask = translated(path, fields, kind=kind)
    ask.keep_s = read_keep_alive(wanted.keep_alive)
    return OllamaAsk(ask, wanted.model)


def read_embed(body: bytes) -> InputsAsk:
    """Read a ``/api/embed`` body. Raises Refused (400) naming the field."""
    wanted = decode_body(_decode_embed, body)
    return _embeddings(EMBED_PATH, wanted, wanted.input)


def read_old_embeddings(body: bytes) -> InputsAsk:
    """Read a ``/api/embeddings`` body: one ``prompt``. Raises Refused (400) naming the field."""
    wanted = decode_body(_decode_embed, body)
    return _embeddings(EMBEDDINGS_PATH, wanted, wanted.prompt)


def read_show(body: bytes) -> str:
    """The model's name in a ``/api/show`` body. Raises Refused (400)."""
    wanted = decode_body(_decode_show, body)
    if not (wanted.model or wanted.name):
        raise bad_request("'model' is missing: send the name of a model.", "model")
    return plain_name(wanted.model or wanted.name)


def _embeddings(path: str, wanted: _Embed, text: str | list[str] | None) -> InputsAsk:
    fields: Json = {"model": plain_name(wanted.model)}
    fields |= {"input": text} if text is not None else {}
    fields |= {"dimensions": wanted.dimensions} if wanted.dimensions is not None else {}
    ask = read_embeddings(_encode(fields))
    ask.surface = path
    ask.keep_s = read_keep_alive(wanted.keep_alive)
    return ask


def _preload(wanted: _Common, path: str) -> Preload:
    return Preload(wanted.model, read_keep_alive(wanted.keep_alive), path)


def preload_ask(preload: Preload, answer: Callable[[], bytes]) -> InputsAsk:
    """A request that asks its model for nothing: it is admitted, limited and booked, and waits for a place as others
    do, so that the model is there afterwards. ``answer`` is made then."""
    ask = InputsAsk(preload.path, (), "model")
    ask.fields, ask.model, ask.input_bound = {}, plain_name(preload.model), 0
    ask.keep_s = preload.keep_s
    ask.begin = lambda _grant: _Nothing(answer)
    ask.text = str
    return ask


class _Nothing:
    """One try."""

    input_tokens = 0
    is_free = True

    def __init__(self, answer: Callable[[], bytes]) -> None:
        self._answer = answer

    def steps(self) -> Iterable[Step]:
        return ()

    def take(self, answer: bytes) -> None:
        """Nothing was asked."""

    def body(self, usage: Usage) -> bytes:
        return self._answer()


def _refuse_programs(wanted: _Generate) -> None:
    """Raises Refused (400) for what this server can't do."""
    if wanted.template:
        raise unsupported("template", "can't be set: the model's own is used.")
    if wanted.suffix:
        raise unsupported("suffix", "can't be used: this server fills no gaps.")
    if wanted.context:
        raise unsupported("context", "can't be used: this server keeps no conversations. Use /api/chat.")


def _common(wanted: _Common) -> Json:
    options = wanted.options or {}
    kwargs: Json | None = {"enable_thinking": bool(wanted.think)} if wanted.think is not None else None
    fields: dict[str, Any] = {name: given(options[name]) for name in _SAMPLING if name in options}
    return {
        **fields,
        "model": plain_name(wanted.model),
        "stream": wanted.stream is not False,
        "max_tokens": _num_predict(options),
        "response_format": _response_format(wanted),
        "chat_template_kwargs": kwargs,
        "reasoning_effort": wanted.think if isinstance(wanted.think, str) else None,
        "logprobs": True if wanted.logprobs or wanted.top_logprobs else None,
        "top_logprobs": wanted.top_logprobs,
    }


def _num_predict(options: dict[str, msgspec.Raw]) -> int | None:
    """``num_predict``; 0 and less mean no limit of the client's own."""
    try:
        number = _decode_int(options.get("num_predict", msgspec.Raw(b"null")))
    except msgspec.DecodeError:
        raise bad_request("'options.num_predict' must be a whole number.", "options.num_predict") from None
    return number if number is not None and number > 0 else None


def _schema(wanted: _Common) -> Json | None:
    if not wanted.format:
        return None
    if isinstance(wanted.format, dict):
        return wanted.format
    if wanted.format != "json":
        raise bad_request("'format' must be 'json' or a JSON schema.", "format")
    return {"type": "object"}


def _response_format(wanted: _Common) -> Json | None:
    schema = _schema(wanted)
    if schema is None or wanted.format == "json":
        return {"type": "json_object"} if schema is not None else None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


# -- messages


def _content(text: str | None, images: list[str] | None) -> str | list[Json]:
    if not images:
        return text or ""
    return [*(image_part(image) for image in images), {"type": "text", "text": text or ""}]


def _messages(given_messages: list[_Message]) -> list[Json]:
    """The messages; calls and their results are matched by name and order, since Ollama gives calls no ids."""
    messages: list[Json] = []
    waiting: list[tuple[str, str]] = []
    for number, message in enumerate(given_messages):
        place = f"messages[{number}]"
        if message.role in ("system", "user"):
            messages.append({"role": message.role, "content": _content(message.content, message.images)})
        elif message.role == "assistant":
            messages.append(_assistant_message(message, number, waiting))
        elif message.role == "tool":
            name = _answered_call(message, waiting)
            messages.append({"role": "tool", "tool_call_id": name, "content": message.content or ""})
        else:
            raise bad_request(
                f"'{place}.role' must be 'system', 'user', 'assistant' or 'tool', not '{message.role[:40]}'.",
                f"{place}.role",
            )
    return with_instructions([], messages)


def _assistant_message(message: _Message, number: int, waiting: list[tuple[str, str]]) -> Json:
    answer: Json = {"role": "assistant", "content": message.content or ""}
    if message.thinking:
        answer["reasoning_content"] = message.thinking
    calls = []
    for index, call in enumerate(message.tool_calls or ()):
        name = call.id or f"call_{number}_{index}"
        waiting.append((call.function.name, name))
        arguments = bytes(given(call.function.arguments) or b"{}").decode()
        calls.append({"id": name, "type": "function", "function": {"name": call.function.name, "arguments": arguments}})
    if calls:
        answer["tool_calls"] = calls
    return answer


def _answered_call(message: _Message, waiting: list[tuple[str, str]]) -> str:
    """The id of the call whose result this is."""
    for known in waiting:
        if message.tool_call_id == known[1] or (
            message.tool_call_id is None and message.tool_name in (None, "", known[0])
        ):
            waiting.remove(known)
            return known[1]
    return message.tool_call_id or message.tool_name or ""
