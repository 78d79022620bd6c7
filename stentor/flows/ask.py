"""What a client asks of a text model: decoded once, checked, bounded, and written again for the engine.

The body is read as a dictionary of raw JSON values: what Stentor has no business with stays byte-exact, what it bills
or forwards under its own name is decoded and set. A key that occurs twice counts once, the last, in both.
"""

from typing import Annotated, Any, Literal, NamedTuple
from zlib import crc32

import msgspec

from stentor.core.errors import Refused
from stentor.flows.fields import CHAT_FIELDS, COMPLETION_FIELDS, LLAMA_ENGINES, apply_fields, drop_unknown_to_openai
from stentor.flows.media import NO_MEDIA, Size, check_total, measure_audio, measure_image
from stentor.flows.tool_choice import check_tool_choice, write_tool_choice

Kind = Literal["chat", "completion"]

ANSWERS_MAX = 16
FIELDS_MAX = 256
TOKENS_MAX = 2**40  # more than any context; a larger number isn't worth carrying about
# What a chat template may put around a message, and what it may add once (a default system prompt, tool preamble).
TOKENS_PER_MESSAGE = 64
TOKENS_OF_TEMPLATE = 64
TOKENS_OF_TOOL_TEMPLATE = 512
PREFIX_BYTES = 1024
NO_FETCHING = (
    "Images must be sent inside the request as a 'data:' address (base64); this server fetches none (its operator may "
    "let it: ALLOW_IMAGE_URLS)."
)

_NOTHING = (b"null", b"false", b"[]")

_decode_body = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class _MediaUrl(msgspec.Struct):
    url: str


class _Audio(msgspec.Struct):
    data: str
    format: str


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    image_url: _MediaUrl | None = None
    input_audio: _Audio | None = None


class _Message(msgspec.Struct):
    role: str
    content: msgspec.Raw = msgspec.Raw(b"null")


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_parts = msgspec.json.Decoder(list[_Part]).decode
_decode_stream_options = msgspec.json.Decoder(_StreamOptions | None).decode
_decode_int = msgspec.json.Decoder(int | None).decode
_decode_seconds = msgspec.json.Decoder(Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None).decode
_decode_bool = msgspec.json.Decoder(bool | None).decode
_decode_str = msgspec.json.Decoder(str | None).decode
_decode_prompt = msgspec.json.Decoder(str | list[str | int | list[int]]).decode


def bad_request(message: str, param: str | None = None, code: str = "invalid_request") -> Refused:
    """A 400 that says which field is wrong and how."""
    return Refused(code, message, param=param)


class NamedImage(NamedTuple):
    """An image that a request names by its address, and where it does."""

    url: str
    place: str


class Ask:
    """A checked request for text. ``fields`` are the client's fields, raw; the rest is what admission needs.

    ``prefix`` is a number for how it begins, the same for every turn of a conversation. ``images`` are those that
    it names instead of sending them. ``is_translated``: it was asked for in other words. ``audio_ms`` and
    ``characters`` bound what is heard and spoken. ``keep_s`` is how long the model shall be kept afterwards (None:
    nobody asked, inf: for ever).
    """

    audio_ms = 0
    characters = 0
    is_translated = False

    __slots__ = (
        "answers",
        "fields",
        "images",
        "include_usage",
        "input_bound",
        "keep_s",
        "kind",
        "media",
        "model",
        "needs",
        "output_asked",
        "prefix",
        "stream",
    )

    kind: Kind
    fields: dict[str, msgspec.Raw]
    model: str
    stream: bool
    include_usage: bool
    output_asked: int | None
    answers: int
    keep_s: float | None
    needs: tuple[str, ...]
    input_bound: int
    media: int
    prefix: int
    images: tuple[NamedImage, ...]

    @property
    def endpoint(self) -> str:
        """What the client called."""
        return self.engine_path

    @property
    def engine_path(self) -> str:
        """What the engine is called at."""
        return "/v1/chat/completions" if self.kind == "chat" else "/v1/completions"


def decode_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The body's top-level fields, raw. Raises Refused for anything that isn't one JSON object."""
    try:
        if not body.isascii():
            body.decode()  # raw values are passed on unread, and nothing else would look
        fields = _decode_body(body)
    except RecursionError:
        raise bad_request("The body is nested too deeply to be read; flatten it.") from None
    except msgspec.ValidationError:
        raise bad_request('The body must be a JSON object, as {"model": …, "messages": […]}.') from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"The body is not valid JSON: {error}.") from None
    if len(fields) > FIELDS_MAX:
        raise bad_request(f"The body has {len(fields)} fields; at most {FIELDS_MAX} are accepted.")
    return fields


def read_typed(fields: dict[str, msgspec.Raw], name: str, decode: Any, wanted: str) -> Any:
    """The field decoded, or None where it is absent. Raises Refused (400) that says what was ``wanted``."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return decode(raw)
    except RecursionError:
        raise bad_request(f"'{name}' is nested too deeply to be read; flatten it.", name) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"'{name}' must be {wanted}: {error}.", name) from None


def _positive(fields: dict[str, msgspec.Raw], name: str) -> int | None:
    value: int | None = read_typed(fields, name, _decode_int, "a whole number")
    return positive(value, name)


def positive(value: int | None, name: str) -> int | None:
    """A number of tokens. Raises Refused below 1."""
    if value is not None and value < 1:
        raise bad_request(f"'{name}' is {value}; it must be at least 1.", name)
    return None if value is None else min(value, TOKENS_MAX)


def _read_common(ask: Ask, fields: dict[str, msgspec.Raw]) -> None:
    ask.fields = fields
    ask.images = ()
    ask.model = read_typed(fields, "model", _decode_str, "a model's name") or ""
    ask.stream = bool(read_typed(fields, "stream", _decode_bool, "true or false"))
    options = read_typed(fields, "stream_options", _decode_stream_options, 'an object like {"include_usage": true}')
    if options is not None and not ask.stream:
        raise bad_request("'stream_options' is only allowed together with 'stream': true.", "stream_options")
    ask.include_usage = bool(options and options.include_usage)
    ask.keep_s = read_ttl(fields) if "ttl" in fields else None
    ask.answers = _positive(fields, "n") or 1
    if ask.answers > ANSWERS_MAX:
        raise bad_request(f"'n' is {ask.answers}; at most {ANSWERS_MAX} answers can be asked for at once.", "n")


def read_ttl(fields: dict[str, msgspec.Raw]) -> float | None:
    """``ttl``, as LM Studio's clients send it: seconds that the model is kept once it is idle. Raises Refused (400)."""
    seconds: float | None = read_typed(fields, "ttl", _decode_seconds, "a number of seconds, 0 to a thousand million")
    return seconds


def read_chat(body: bytes) -> Ask:
    """Read a ``/v1/chat/completions`` body. Raises Refused (400) naming the field."""
    ask = Ask()
    fill_chat(ask, decode_fields(body), len(body))
    return ask


def fill_chat(ask: Ask, fields: dict[str, msgspec.Raw], size_bytes: int) -> None:
    """Make ``ask`` the request whose fields these are, ``size_bytes`` of JSON. Raises Refused (400)."""
    ask.kind = "chat"
    _read_common(ask, fields)
    ask.output_asked = _positive(fields, "max_completion_tokens") or _positive(fields, "max_tokens")
    if "messages" not in fields:
        raise bad_request(
            '\'messages\' is missing: send a list like [{"role": "user", "content": "Hello"}].', "messages"
        )
    messages = read_typed(fields, "messages", _decode_messages, "a list of messages with a 'role'")
    if not messages:
        raise bad_request("'messages' is empty; send at least one message.", "messages")
    images: list[NamedImage] = []
    ask.needs, ask.media, media_bytes = _needs_of(messages, images)
    if images:
        ask.images = tuple(images)
    ask.prefix = _prefix_of(messages)
    ask.input_bound = size_bytes - media_bytes + TOKENS_PER_MESSAGE * len(messages) + TOKENS_OF_TEMPLATE
    if "tools" in fields:
        ask.input_bound += TOKENS_OF_TOOL_TEMPLATE
    if "tool_choice" in fields:
        check_tool_choice(fields)


def read_completion(body: bytes) -> Ask:
    """Read a ``/v1/completions`` body. Raises Refused (400) naming the field."""
    ask = Ask()
    fill_completion(ask, decode_fields(body), len(body))
    return ask


def fill_completion(ask: Ask, fields: dict[str, msgspec.Raw], size_bytes: int) -> None:
    """Make ``ask`` the request whose fields these are, ``size_bytes`` of JSON. Raises Refused (400)."""
    ask.kind = "completion"
    _read_common(ask, fields)
    ask.output_asked = _positive(fields, "max_tokens")
    if "prompt" not in fields:
        raise bad_request("'prompt' is missing: send a text or a list of token numbers.", "prompt")
    prompt = read_typed(fields, "prompt", _decode_prompt, "a text or a list of token numbers")
    if isinstance(prompt, list) and any(not isinstance(part, int) for part in prompt):
        if len(prompt) != 1:
            raise bad_request(f"'prompt' is a list of {len(prompt)} prompts; send one prompt a request.", "prompt")
        fields["prompt"] = msgspec.Raw(_encode(prompt[0]))
    if not prompt:
        raise bad_request("'prompt' is empty; send at least one character or token.", "prompt")
    ask.needs, ask.media = ("text",), 0
    ask.prefix = crc32(memoryview(fields["prompt"])[:PREFIX_BYTES])
    ask.input_bound = size_bytes + TOKENS_OF_TEMPLATE


def _prefix_of(messages: list[_Message]) -> int:
    """What stays the same from turn to turn: the instructions and the first thing said. Chosen blindly, it costs time
    alone, so 32 bits are enough."""
    first = messages[0].content
    prefix = crc32(first)
    if len(messages) > 1 and messages[0].role in ("system", "developer"):
        prefix = crc32(messages[1].content, prefix)
    return prefix


def _needs_of(messages: list[_Message], images: list[NamedImage]) -> tuple[tuple[str, ...], int, int]:
    """The abilities that are needed, how many images and clips there are, and their size as text in bytes.

    Addresses of images that aren't in the request are added to ``images``.
    """
    needs = ["text"]
    media = media_bytes = 0
    total = NO_MEDIA
    for number, message in enumerate(messages):
        # A string or null needs no look inside; JSON escapes can't hide a list.
        if bytes(memoryview(message.content)[:1]) in (b'"', b"n"):
            continue
        place = f"messages[{number}].content"
        try:
            parts = _decode_parts(message.content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise bad_request(f"'{place}' must be a text or a list of parts: {error}.", place) from None
        for part in parts:
            need, size_bytes, size = _need_of(part, place, images)
            if need != "text":
                media += 1
                media_bytes += size_bytes
                total = Size(total.pixels + size.pixels, total.seconds + size.seconds)
            if need not in needs:
                needs.append(need)
    if media:
        check_total(total)
    return tuple(needs), media, media_bytes


def _need_of(part: _Part, place: str, images: list[NamedImage]) -> tuple[str, int, Size]:
    """The ability that a part needs, its size as text in bytes, and what it becomes when it is decoded."""
    if part.type in ("text", "refusal"):
        return "text", 0, NO_MEDIA
    if part.type == "image_url":
        if part.image_url is None:
            raise bad_request("'image_url' needs a 'url' with the image itself: a 'data:' address (base64).", place)
        url = part.image_url.url
        if url.startswith("https://"):
            images.append(NamedImage(url, place))  # fetched and measured later, where the operator allows it
            return "image", len(url), NO_MEDIA
        return "image", len(url), measure_image(url, place)
    if part.type == "input_audio":
        if part.input_audio is None:
            raise bad_request("'input_audio' needs 'data' (base64) and 'format'.", place)
        data = part.input_audio.data
        return "audio", len(data), measure_audio(data, part.input_audio.format, place)
    raise bad_request(
        f"'{place}' has a part of type '{part.type[:40]}'; known are 'text', 'image_url' and 'input_audio'.", place
    )


def is_answered_whole(ask: Ask, engine: str) -> bool:
    """Whether an engine can't give this as a stream: llama.cpp refuses log probabilities beside tools there."""
    if "logprobs" not in ask.fields or "tools" not in ask.fields or engine not in LLAMA_ENGINES:
        return False
    return ask.kind == "chat" and all(bytes(ask.fields[name]) not in _NOTHING for name in ("logprobs", "tools"))


def engine_body(ask: Ask, *, engine: str, upstream_model: str, output_cap: int) -> bytes:
    """The body for the engine: the client's fields by the engine's table, then what Stentor sets itself.

    Asks for a stream with usage wherever there is one: then an engine stops when told, and counts what it made.
    Raises Refused for a field that would change cost or isolation.
    """
    if ask.images:
        raise bad_request(NO_FETCHING, ask.images[0].place)  # engines fetch nothing, whoever forgot to bring it in
    table = CHAT_FIELDS if ask.kind == "chat" else COMPLETION_FIELDS
    fields = apply_fields(table, engine, ask.fields)
    if engine == "openai" and ask.is_translated:
        drop_unknown_to_openai(fields)
    fields["model"] = _encode(upstream_model)
    if is_answered_whole(ask, engine):
        fields["stream"] = b"false"
    else:
        fields["stream"] = b"true"
        fields["stream_options"] = b'{"include_usage":true}'
    fields["max_tokens"] = b"%d" % output_cap
    if engine in LLAMA_ENGINES:
        if "tool_choice" in fields:
            write_tool_choice(ask.fields, fields)
        # Exact counts for a client that leaves; both are taken out again on the way back.
        fields["timings_per_token"] = b"true"
        fields["return_progress"] = b"true"
    return b"{" + b",".join([b"%b:%b" % (_encode(name), value) for name, value in fields.items()]) + b"}"


def prompt_text(ask: Ask) -> str:
    """The text of the prompt, for counting where the engine doesn't."""
    if ask.kind == "completion":
        prompt = _decode_prompt(ask.fields["prompt"])
        return prompt if isinstance(prompt, str) else " ".join("x" for _ in prompt)
    texts: list[str] = []
    for message in _decode_messages(ask.fields["messages"]):
        content = msgspec.json.decode(message.content)
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            texts += [part["text"] for part in content if isinstance(part.get("text"), str)]
    if "tools" in ask.fields:
        texts.append(bytes(ask.fields["tools"]).decode())
    return "\n".join(texts)
