"""``/v1/rerank``: documents by how well they answer a query, in the shape that Jina's and Cohere's clients know."""

from collections.abc import Iterator
from typing import Any
from zlib import crc32

import msgspec

from stentor.core.books import Grant, Usage
from stentor.flows.answer import EngineRubbish
from stentor.flows.ask import PREFIX_BYTES, bad_request, decode_fields, read_ttl, read_typed
from stentor.flows.fields import RERANK_FIELDS, apply_fields
from stentor.flows.inputs import InputsAsk, Step

PATH = "/v1/rerank"
DOCUMENTS_MAX = 1024
STEP_DOCUMENTS = 16
# What a tokenizer or a reranker's template may put around a query and a document.
TOKENS_PER_PAIR = 128


class _Document(msgspec.Struct):
    text: str


_Documents = list[str | _Document]
_decode_documents = msgspec.json.Decoder(_Documents).decode
_decode_str = msgspec.json.Decoder(str | None).decode
_decode_int = msgspec.json.Decoder(int | None).decode
_decode_bool = msgspec.json.Decoder(bool | None).decode
_encode = msgspec.json.Encoder().encode


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class _WireUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    total_tokens: int = 0


class _Answer(msgspec.Struct):
    results: list[_Result]
    usage: _WireUsage = _WireUsage()


_decode_answer = msgspec.json.Decoder(_Answer).decode


class Ranking(msgspec.Struct, frozen=True):
    """What is to be ranked, and what the client wants back. ``top_n`` None: all documents."""

    query: str
    documents: list[str]
    top_n: int | None
    with_documents: bool


def read_rerank(body: bytes) -> InputsAsk:
    """Read a ``/v1/rerank`` body. Raises Refused (400) naming the field."""
    fields = decode_fields(body)
    ask = InputsAsk(PATH, ("rerank",), "documents")
    ask.fields = fields
    ask.model = read_typed(fields, "model", _decode_str, "a model's name") or ""
    ask.keep_s = read_ttl(fields)
    ranking = _read_ranking(fields)
    query_bytes = len(ranking.query.encode())
    documents_bytes = sum(len(text.encode()) for text in ranking.documents)
    ask.prefix = crc32(ranking.query.encode()[:PREFIX_BYTES])
    ask.input_bound = documents_bytes + (query_bytes + TOKENS_PER_PAIR) * len(ranking.documents)
    ask.begin = lambda grant: _Reranking(grant, fields, ranking)
    ask.text = lambda: "\n".join(f"{ranking.query}\n{text}" for text in ranking.documents)
    return ask


def _read_ranking(fields: dict[str, msgspec.Raw]) -> Ranking:
    query = read_typed(fields, "query", _decode_str, "a text")
    if not query:
        raise bad_request("'query' is missing or empty: send the text to rank the documents by.", "query")
    if "documents" not in fields:
        raise bad_request("'documents' is missing: send a list of texts.", "documents")
    given = read_typed(fields, "documents", _decode_documents, 'a list of texts or of objects like {"text": …}')
    documents = [part if isinstance(part, str) else part.text for part in given]
    if not documents or not all(documents):
        raise bad_request("'documents' is empty, or one of them is; send at least one character.", "documents")
    if len(documents) > DOCUMENTS_MAX:
        raise bad_request(
            f"'documents' has {len(documents)} entries; at most {DOCUMENTS_MAX} are accepted at once.", "documents"
        )
    top_n = read_typed(fields, "top_n", _decode_int, "a whole number")
    if top_n is not None and top_n < 1:
        raise bad_request(f"'top_n' is {top_n}; it must be at least 1.", "top_n")
    with_documents = read_typed(fields, "return_documents", _decode_bool, "true or false")
    return Ranking(query, documents, top_n, bool(with_documents))


class _Reranking:
    """One try."""

    is_free = False

    def __init__(self, grant: Grant, fields: dict[str, msgspec.Raw], ranking: Ranking) -> None:
        self.input_tokens = 0
        self._grant = grant
        self._fields = fields
        self._ranking = ranking
        self._scores: list[float] = []
        self._asked = 0

    def steps(self) -> Iterator[Step]:
        head = apply_fields(RERANK_FIELDS, self._grant.engine, self._fields)
        head["model"] = _encode(self._grant.upstream_model)
        head["query"] = _encode(self._ranking.query)
        opening = b"{" + b"".join(b"%b:%b," % (_encode(name), value) for name, value in head.items())
        for start in range(0, len(self._ranking.documents), STEP_DOCUMENTS):
            few = self._ranking.documents[start : start + STEP_DOCUMENTS]
            self._asked = len(few)
            yield Step(PATH, b'%b"documents":%b}' % (opening, _encode(few)))

    def take(self, answer: bytes) -> None:
        try:
            found = _decode_answer(answer)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise EngineRubbish(f"its ranking can't be read: {error}") from None
        scores = {result.index: result.relevance_score for result in found.results}
        if sorted(scores) != list(range(self._asked)):
            raise EngineRubbish(f"it ranked {len(scores)} of {self._asked} documents")
        self._scores += [scores[index] for index in range(self._asked)]
        usage = found.usage
        self.input_tokens += max(0, usage.total_tokens if usage.prompt_tokens is None else usage.prompt_tokens)

    def body(self, usage: Usage) -> bytes:
        ranking = self._ranking
        order = sorted(range(len(self._scores)), key=lambda index: (-self._scores[index], index))
        results: list[dict[str, Any]] = []
        for index in order[: ranking.top_n]:
            result: dict[str, Any] = {"index": index, "relevance_score": self._scores[index]}
            if ranking.with_documents:
                result["document"] = {"text": ranking.documents[index]}
            results.append(result)
        tokens = usage.input_tokens
        return _encode(
            {
                "id": self._grant.request_id,
                "object": "list",
                "model": self._grant.model,
                "results": results,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )
