"""``/v1/embeddings``: texts, token numbers, or texts with pictures in, one vector each out.

The engine is asked for base64 (a quarter of the bytes of decimal numbers) and the client gets what it asked for.
"""

import base64
import binascii
import math
from array import array
from collections.abc import Iterator
from typing import Annotated
from zlib import crc32

import msgspec

from stentor.core.books import Grant, Usage
from stentor.core.media_marker import media_marker
from stentor.flows.answer import EngineRubbish
from stentor.flows.ask import PREFIX_BYTES, bad_request, decode_fields, read_ttl, read_typed
from stentor.flows.fields import EMBEDDING_FIELDS, LLAMA_ENGINES, apply_fields
from stentor.flows.inputs import InputsAsk, Step
from stentor.flows.pictured import Entry, Pictured, measure, read_entry

PATH = "/v1/embeddings"
INPUTS_MAX = 2048
DIMENSIONS_MAX = 65_536
STEP_INPUTS = 32
STEP_BYTES = 64 * 1024
# What a tokenizer may put around an input: beginning, end, classes, a first space.
TOKENS_PER_INPUT = 8

Input = str | list[int] | Pictured
Token = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_decode_input = msgspec.json.Decoder(str | list[str | Token | list[Token] | Entry] | Entry).decode
_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_format = msgspec.json.Decoder(str | None).decode
_decode_int = msgspec.json.Decoder(int | None).decode
_encode = msgspec.json.Encoder().encode


class _Item(msgspec.Struct):
    index: int
    embedding: str | list[float]


class _WireUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: _WireUsage = _WireUsage()


_decode_answer = msgspec.json.Decoder(_Answer).decode


class Wanted(msgspec.Struct, frozen=True):
    """What the client wants of the vectors. ``dimensions`` None: all of them."""

    as_base64: bool
    dimensions: int | None


def read_embeddings(body: bytes) -> InputsAsk:
    """Read a ``/v1/embeddings`` body. Raises Refused (400) naming the field."""
    fields = decode_fields(body)
    ask = InputsAsk(PATH, ("embedding",), "input")
    ask.fields = fields
    ask.model = read_typed(fields, "model", _decode_format, "a model's name") or ""
    ask.keep_s = read_ttl(fields)
    inputs = read_inputs(fields)
    seen_bytes = 0
    if any(isinstance(part, Pictured) for part in inputs):
        ask.needs = ("embedding", "image")
        inputs, seen_bytes = _measure(inputs)
        ask.media = sum(len(part.pictures) for part in inputs if isinstance(part, Pictured))
    wanted = _read_wanted(fields)
    ask.prefix = crc32(memoryview(fields["input"])[:PREFIX_BYTES])
    ask.input_bound = len(bytes(fields["input"])) - seen_bytes + TOKENS_PER_INPUT * len(inputs)
    ask.begin = lambda grant: _Embedding(grant, fields, inputs, wanted)
    ask.text = lambda: countable(inputs)
    return ask


def read_inputs(fields: dict[str, msgspec.Raw]) -> list[Input]:
    """``input``: one text, several, one list of token numbers, or several; or entries with pictures. Raises Refused
    (400)."""
    if "input" not in fields:
        raise bad_request("'input' is missing: send a text, a list of texts, or token numbers.", "input")
    given = read_typed(fields, "input", _decode_input, "a text, a list of texts, or token numbers")
    if isinstance(given, str):
        inputs: list[Input] = [given]
    elif isinstance(given, Entry):
        inputs = [read_entry(given, bytes(fields["input"]))]
    elif given and all(isinstance(part, int) for part in given):
        inputs = [given]
    elif any(isinstance(part, int) for part in given):
        raise bad_request("'input' mixes token numbers and texts; send one kind.", "input")
    elif any(isinstance(part, Entry) for part in given):
        raws = _decode_raws(fields["input"])
        both = zip(given, raws, strict=True)
        inputs = [read_entry(part, bytes(raw)) if isinstance(part, Entry) else part for part, raw in both]
    else:
        inputs = given
    if len(inputs) > INPUTS_MAX:
        raise bad_request(f"'input' has {len(inputs)} entries; at most {INPUTS_MAX} are accepted at once.", "input")
    if not inputs or not all(inputs):
        raise bad_request("'input' is empty, or one of its entries is; send at least one character or token.", "input")
    return inputs


def _measure(inputs: list[Input]) -> tuple[list[Input], int]:
    """The inputs with their pictures measured, and the pictures' size as text in bytes. Raises Refused (400)."""
    measured, size_bytes = measure([part for part in inputs if isinstance(part, Pictured)])
    seen = iter(measured)
    return [next(seen) if isinstance(part, Pictured) else part for part in inputs], size_bytes


def _read_wanted(fields: dict[str, msgspec.Raw]) -> Wanted:
    form = read_typed(fields, "encoding_format", _decode_format, "'float' or 'base64'") or "float"
    if form not in ("float", "base64"):
        raise bad_request(f"'encoding_format' is '{form[:40]}'; it must be 'float' or 'base64'.", "encoding_format")
    dimensions = read_typed(fields, "dimensions", _decode_int, "a whole number")
    if dimensions is not None and not 1 <= dimensions <= DIMENSIONS_MAX:
        raise bad_request(f"'dimensions' is {dimensions}; it must be 1 to {DIMENSIONS_MAX}.", "dimensions")
    return Wanted(form == "base64", dimensions)


def countable(inputs: list[Input]) -> str:
    """A text that counts about as many tokens as the inputs, for where the engine gave no number."""
    return "\n".join(_countable(part) for part in inputs)


def _countable(part: Input) -> str:
    if isinstance(part, Pictured):
        return part.texts
    return part if isinstance(part, str) else " x" * len(part)


class _Embedding:
    """One try."""

    is_free = False

    def __init__(self, grant: Grant, fields: dict[str, msgspec.Raw], inputs: list[Input], wanted: Wanted) -> None:
        self.input_tokens = 0
        self._grant = grant
        self._fields = fields
        self._inputs = inputs
        self._wanted = wanted
        self._asked = 0
        self._items: list[bytes] = []
        self._size = 0

    def steps(self) -> Iterator[Step]:
        head = apply_fields(EMBEDDING_FIELDS, self._grant.engine, self._fields)
        head["model"] = _encode(self._grant.upstream_model)
        head["encoding_format"] = b'"base64"'
        opening = b"{" + b"".join(b"%b:%b," % (_encode(name), value) for name, value in head.items())
        marker = media_marker(self._grant.token) if self._grant.engine in LLAMA_ENGINES else ""
        for few in _few(self._inputs, marker):
            self._asked = len(few)
            yield Step(PATH, b'%b"input":[%b]}' % (opening, b",".join(few)))

    def take(self, answer: bytes) -> None:
        try:
            found = _decode_answer(answer)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise EngineRubbish(f"its embeddings can't be read: {error}") from None
        items = sorted(found.data, key=lambda item: item.index)
        if [item.index for item in items] != list(range(self._asked)):
            raise EngineRubbish(f"it answered {len(items)} vectors for {self._asked} inputs")
        self.input_tokens += max(0, found.usage.prompt_tokens)
        for item in items:
            self._items.append(self._write(_read_vector(item.embedding)))

    def _write(self, vector: "array[float]") -> bytes:
        vector = self._fit(vector)
        place = len(self._items)
        if self._wanted.as_base64:
            text = base64.b64encode(vector.tobytes())
            return b'{"object":"embedding","index":%d,"embedding":"%b"}' % (place, text)
        return b'{"object":"embedding","index":%d,"embedding":%b}' % (place, _encode(vector.tolist()))

    def _fit(self, vector: "array[float]") -> "array[float]":
        wanted = self._wanted.dimensions
        self._size = self._size or len(vector)
        if len(vector) != self._size or not vector:
            raise EngineRubbish("its vectors have different lengths")
        if wanted is None or wanted == len(vector):
            return vector
        if wanted > len(vector):
            raise bad_request(
                f"'dimensions' is {wanted}; the vectors of '{self._grant.model}' have {len(vector)}.", "dimensions"
            )
        if "dimensions" not in self._grant.abilities:
            raise bad_request(
                f"'dimensions' is {wanted}, but the vectors of '{self._grant.model}' can't be shortened: all of their "
                f"{len(vector)} numbers are needed. Leave it out, or choose a model with the ability 'dimensions'.",
                "dimensions",
            )
        return shorten(vector, wanted)

    def body(self, usage: Usage) -> bytes:
        tokens = usage.input_tokens
        return b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (
            b",".join(self._items),
            _encode(self._grant.model),
            tokens,
            tokens,
        )


def shorten(vector: "array[float]", dimensions: int) -> "array[float]":
    """The first ``dimensions`` numbers, brought back to length 1 (a zero vector stays as it is)."""
    head = vector[:dimensions]
    length = math.sqrt(math.fsum(number * number for number in head))
    return array("f", (number / length for number in head)) if length else head


def _few(inputs: list[Input], marker: str) -> Iterator[list[bytes]]:
    """The inputs as JSON, a few at a time: at most 32, at most 64 KiB unless one alone is longer.

    ``marker`` is llama.cpp's for a picture; who has none gets what the client wrote.
    """
    few: list[bytes] = []
    size = 0
    for part in inputs:
        text = _write(part, marker)
        if few and (len(few) == STEP_INPUTS or size + len(text) > STEP_BYTES):
            yield few
            few, size = [], 0
        few.append(text)
        size += len(text)
    if few:
        yield few


def _write(part: Input, marker: str) -> bytes:
    if isinstance(part, Pictured):
        return part.write(marker) if marker else part.raw
    return _encode(part)


def _read_vector(given: str | list[float]) -> "array[float]":
    """Little-endian float32 in base64, or numbers. Raises EngineRubbish for what isn't a vector of finite numbers."""
    try:
        vector = array("f", base64.b64decode(given, validate=True) if isinstance(given, str) else given)
    except (binascii.Error, ValueError, OverflowError):
        raise EngineRubbish("it answered something that isn't a vector") from None
    if not all(map(math.isfinite, vector)):
        raise EngineRubbish("it answered a vector with numbers that aren't finite")
    return vector
