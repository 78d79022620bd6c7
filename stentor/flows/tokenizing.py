"""``/v1/tokenize``: the token numbers that a model's own tokenizer makes of a text."""

from collections.abc import Iterator
from typing import Any
from zlib import crc32

import msgspec

from stentor.core.books import Grant, Usage
from stentor.flows.answer import EngineRubbish
from stentor.flows.ask import PREFIX_BYTES, bad_request, decode_fields, read_typed
from stentor.flows.inputs import InputsAsk, Step

PATH = "/v1/tokenize"
ENGINE_PATH = "/tokenize"
TOKENS_AROUND = 8

_decode_str = msgspec.json.Decoder(str | None).decode
_decode_bool = msgspec.json.Decoder(bool | None).decode
_encode = msgspec.json.Encoder().encode


class _Piece(msgspec.Struct):
    id: int
    piece: str | list[int]


class _Answer(msgspec.Struct):
    tokens: list[int | _Piece]


_decode_answer = msgspec.json.Decoder(_Answer).decode


class Wanted(msgspec.Struct, frozen=True):
    """``special``: with what the model puts around a prompt; ``pieces``: the text of each token, too."""

    text: str
    special: bool
    pieces: bool


def read_tokenize(body: bytes) -> InputsAsk:
    """Read a ``/v1/tokenize`` body (``input``, or ``content`` as llama-server has it). Raises Refused (400)."""
    fields = decode_fields(body)
    ask = InputsAsk(PATH, (), "input")
    ask.fields = fields
    ask.model = read_typed(fields, "model", _decode_str, "a model's name") or ""
    name = "content" if "input" not in fields and "content" in fields else "input"
    text = read_typed(fields, name, _decode_str, "a text")
    if text is None:
        raise bad_request("'input' is missing: send the text to be cut into tokens.", "input")
    wanted = Wanted(text, _flag(fields, "add_special"), _flag(fields, "with_pieces") or _flag(fields, "pieces"))
    size = len(text.encode())
    ask.prefix = crc32(text.encode()[:PREFIX_BYTES])
    ask.input_bound = size + TOKENS_AROUND
    ask.begin = lambda grant: _Tokenizing(grant, wanted)
    ask.text = lambda: text
    return ask


def _flag(fields: dict[str, msgspec.Raw], name: str) -> bool:
    return bool(read_typed(fields, name, _decode_bool, "true or false"))


class _Tokenizing:
    """One try."""

    is_free = False

    def __init__(self, grant: Grant, wanted: Wanted) -> None:
        self.input_tokens = 0
        self._grant = grant
        self._wanted = wanted
        self._tokens: list[int | _Piece] = []

    def steps(self) -> Iterator[Step]:
        wanted = self._wanted
        asked = {"content": wanted.text, "add_special": wanted.special, "with_pieces": wanted.pieces}
        yield Step(ENGINE_PATH, _encode(asked))

    def take(self, answer: bytes) -> None:
        try:
            self._tokens = _decode_answer(answer).tokens
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise EngineRubbish(f"its tokens can't be read: {error}") from None
        self.input_tokens = len(self._tokens)

    def body(self, usage: Usage) -> bytes:
        numbers = [token if isinstance(token, int) else token.id for token in self._tokens]
        answer: dict[str, Any] = {
            "object": "list",
            "model": self._grant.model,
            "tokens": numbers,
            "count": len(numbers),
            "usage": {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens},
        }
        if self._wanted.pieces:
            answer["pieces"] = [token.piece for token in self._tokens if isinstance(token, _Piece)]
        return _encode(answer)
