"""Embeddings, rankings and tokens: real models, the official client, and what is booked for them."""

import base64
import math
import struct
from array import array
from pathlib import Path
from typing import Any

import openai
import pytest

from stentor.flows.embedding import shorten
from tests import media
from tests.http.harness import INPUT_NANO, Gate, Stream, until

EMBEDDINGS, RERANK, TOKENIZE = "/v1/embeddings", "/v1/rerank", "/v1/tokenize"
Json = dict[str, Any]

TEXTS = [
    "A cat sits on the mat.",
    "Interest rates rose again this quarter.",
    "The recipe needs two eggs and flour.",
    "Our train leaves from platform four.",
]
NEAREST = {
    "A kitten rests on the carpet.": 0,
    "The central bank made credit more expensive.": 1,
    "How do I bake a cake?": 2,
    "Where do I board for Vienna?": 3,
}


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def vectors(client: openai.OpenAI, given: Any, **fields: Any) -> list[list[float]]:
    answer = client.embeddings.create(model="minilm", input=given, **fields)
    return [item.embedding for item in answer.data]


# -- embeddings


def test_the_nearest_sentence_is_the_one_that_means_the_same(client: openai.OpenAI) -> None:
    known, asked = vectors(client, TEXTS), vectors(client, list(NEAREST))
    found = [max(range(len(TEXTS)), key=lambda place: dot(known[place], vector)) for vector in asked]
    assert found == list(NEAREST.values())
    assert all(len(vector) == 384 and abs(dot(vector, vector) - 1) < 1e-3 for vector in known + asked)


def test_text_list_and_token_numbers_mean_the_same(gate: Gate, client: openai.OpenAI) -> None:
    text = TEXTS[0]
    tokens = gate.ask("POST", TOKENIZE, {"model": "minilm", "input": text, "add_special": True}).json()["tokens"]
    forms: list[Any] = [text, [text], tokens, [tokens]]
    each = [vectors(client, form, encoding_format="float") for form in forms]
    assert all(len(form) == 1 and dot(form[0], each[0][0]) > 0.999 for form in each)


def test_floats_and_base64_are_the_same_numbers(gate: Gate) -> None:
    floats = gate.ask("POST", EMBEDDINGS, {"model": "minilm", "input": TEXTS}).json()["data"]
    texts = gate.ask("POST", EMBEDDINGS, {"model": "minilm", "input": TEXTS, "encoding_format": "base64"}).json()[
        "data"
    ]
    for number, text in zip(floats, texts, strict=True):
        raw = base64.b64decode(text["embedding"])
        assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(number["embedding"], abs=1e-6)


def test_is_booked_exactly(gate: Gate) -> None:
    answer = gate.ask("POST", EMBEDDINGS, {"model": "minilm", "input": TEXTS})
    used = answer.json()["usage"]
    counted = [gate.ask("POST", TOKENIZE, {"model": "minilm", "input": text}).json()["count"] + 2 for text in TEXTS]
    assert used == {"prompt_tokens": sum(counted), "total_tokens": sum(counted)}
    event = gate.event(answer.request_id)
    assert (event["status"], event["endpoint"], event["estimated"]) == ("completed", EMBEDDINGS, False)
    assert (event["input_tokens"], event["output_tokens"]) == (used["prompt_tokens"], 0)
    assert event["cost_nano"] == INPUT_NANO * used["prompt_tokens"]
    assert float(answer.headers["x-stentor-cost"]) * 1e9 == pytest.approx(event["cost_nano"])
    assert answer.headers["x-stentor-model"] == "minilm"


def test_many_inputs_come_back_in_order(gate: Gate, client: openai.OpenAI) -> None:
    words = [f"number {number}" for number in range(70)]
    many = vectors(client, words)
    alone = vectors(client, words[66])
    assert len(many) == 70
    assert dot(many[66], alone[0]) > 0.999


def test_one_may_fill_the_context_and_many_may_exceed_it_together(gate: Gate, client: openai.OpenAI) -> None:
    assert len(vectors(client, ["cat " * 250] * 4)) == 4
    refused = gate.ask("POST", EMBEDDINGS, {"model": "minilm", "input": ["a", "cat " * 300]})
    assert refused.status == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    assert "302 tokens" in error["message"]
    assert "256 tokens" in error["message"]
    assert gate.event(refused.request_id)["cost_nano"] == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": None}, "input"),
        ({"input": {"words": "a"}}, "input"),
        ({"input": {"text": ""}}, "input"),
        ({"input": [{"text": 5}]}, "input"),
        ({"input": {"image": ""}}, "input"),
        ({"input": {"image": "aGVsbG8="}}, "input"),
        ({"input": {"image": "https://example.com/a.png"}}, "input"),
        ({"input": ["a", {"content": [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}]}]}, "input"),
        ({"input": ["a", 5]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "encoding_format": 5}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": -3}, "dimensions"),
        ({"input": "a", "dimensions": 385}, "dimensions"),
        ({"input": "a", "dimensions": 64}, "dimensions"),
        ({"input": "a", "dimensions": "many"}, "dimensions"),
        ({"input": "a", "id_slot": 1}, "id_slot"),
    ],
)
def test_bad_requests_name_the_field(gate: Gate, fields: Json, param: str) -> None:
    answer = gate.ask("POST", EMBEDDINGS, {"model": "minilm", **fields})
    assert answer.status == 400
    assert answer.json()["error"]["param"] == param
    assert f"'{param}'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("given", [[10**6], [-1], [2**40]])
def test_token_numbers_that_the_model_doesnt_have_are_refused(gate: Gate, given: list[int]) -> None:
    assert gate.ask("POST", EMBEDDINGS, {"model": "minilm", "input": given}).status == 400
    assert gate.ask("POST", EMBEDDINGS, {"model": "minilm", "input": "still there"}).status == 200


def test_all_dimensions_may_be_asked_for(client: openai.OpenAI) -> None:
    assert len(vectors(client, "a", dimensions=384)[0]) == 384


# -- rankings


def test_documents_are_ordered_by_their_score(gate: Gate) -> None:
    documents = ["a cat is an animal", {"text": "the sky is blue"}, "b", "cats and dogs"] * 6
    body = {"model": "ranker", "query": "what is a cat", "documents": documents}
    answer = gate.ask("POST", RERANK, body)
    ranking = answer.json()
    scores = [result["relevance_score"] for result in ranking["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(result["index"] for result in ranking["results"]) == list(range(24))
    same = {result["index"]: result["relevance_score"] for result in ranking["results"]}
    assert same[0] == pytest.approx(same[20], abs=1e-4)
    event = gate.event(answer.request_id)
    assert (event["input_tokens"], event["output_tokens"]) == (ranking["usage"]["total_tokens"], 0)
    assert event["input_tokens"] > 24 * 12


def test_the_best_come_back_with_their_texts(gate: Gate) -> None:
    documents = ["one", "two", "three"]
    body = {"model": "ranker", "query": "q", "documents": documents, "top_n": 2, "return_documents": True}
    results = gate.ask("POST", RERANK, body).json()["results"]
    assert len(results) == 2
    assert all(result["document"] == {"text": documents[result["index"]]} for result in results)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "", "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": [""]}, "documents"),
        ({"query": "q", "documents": [3]}, "documents"),
        ({"query": "q", "documents": "a"}, "documents"),
        ({"query": "q", "documents": ["a"] * 1025}, "documents"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"query": "q", "documents": ["a" * 400]}, "documents"),
    ],
)
def test_bad_rankings_name_the_field(gate: Gate, fields: Json, param: str) -> None:
    answer = gate.ask("POST", RERANK, {"model": "ranker", **fields})
    assert answer.status == 400
    assert answer.json()["error"]["param"] == param


# -- tokens


def test_tokens_are_the_models_own(gate: Gate) -> None:
    answer = gate.ask("POST", TOKENIZE, {"model": "minilm", "input": "Unbelievable, déjà vu!", "with_pieces": True})
    found = answer.json()
    assert found["count"] == len(found["tokens"]) == len(found["pieces"]) == 6
    assert found["pieces"][0].strip() == "unbelievable"
    assert gate.event(answer.request_id)["input_tokens"] == 6
    halves = gate.ask("POST", TOKENIZE, {"model": "tiny", "content": "é", "with_pieces": True}).json()
    assert halves["pieces"][1:] == [[0xC3], [0xA9]]
    assert gate.ask("POST", TOKENIZE, {"model": "tiny", "input": ""}).json()["tokens"] == []
    assert gate.ask("POST", TOKENIZE, {"model": "tiny"}).json()["error"]["param"] == "input"


def test_more_tokens_than_the_context_can_be_counted(gate: Gate) -> None:
    assert gate.ask("POST", TOKENIZE, {"model": "tiny", "input": "x" * 2000}).json()["count"] == 2001


# -- who can do what


@pytest.mark.parametrize(
    ("path", "body", "lacks"),
    [
        (EMBEDDINGS, {"model": "tiny", "input": "a"}, "embedding"),
        (EMBEDDINGS, {"model": "ranker", "input": "a"}, "embedding"),
        (RERANK, {"model": "minilm", "query": "a", "documents": ["b"]}, "rerank"),
        ("/v1/chat/completions", {"model": "minilm", "messages": [{"role": "user", "content": "a"}]}, "text"),
        ("/v1/completions", {"model": "ranker", "prompt": "a"}, "text"),
        (TOKENIZE, {"model": "odd", "input": "a"}, "/tokenize"),
    ],
)
def test_what_a_model_cant_do_is_named(gate: Gate, path: str, body: Json, lacks: str) -> None:
    answer = gate.ask("POST", path, body)
    if path == TOKENIZE:
        # The odd engine answers everything with vectors: no tokens are in it.
        assert answer.status == 502
        return
    assert answer.status == 400
    assert answer.json()["error"]["code"] == "missing_ability"
    assert f"'{lacks}'" in answer.json()["error"]["message"]


# -- how it ends badly


@pytest.mark.parametrize(("path", "name"), [(EMBEDDINGS, "odd"), (RERANK, "odd-ranker")])
@pytest.mark.parametrize("order", ["die", "rubbish", "few", "busy"])
def test_an_engine_that_fails_is_asked_twice_and_nothing_is_charged(
    gate: Gate, path: str, name: str, order: str
) -> None:
    inputs = [order, "second"]
    body = {"input": inputs} if path == EMBEDDINGS else {"query": "q", "documents": inputs}
    answer = gate.ask("POST", path, {"model": name, **body})
    assert answer.status == 502
    assert answer.json()["error"]["code"] == "engine_failed"
    events = gate.events(answer.request_id, 2)
    assert [(event["status"], event["cost_nano"]) for event in events] == [("failed", 0), ("failed", 0)]


def test_a_vector_that_isnt_finite_is_never_passed_on(gate: Gate) -> None:
    answer = gate.ask("POST", EMBEDDINGS, {"model": "odd", "input": ["nan"]})
    assert answer.status == 502


def test_large_requests_go_in_steps_and_end_with_the_client(gate: Gate, tmp_path: Path) -> None:
    key = gate.make_key()
    assert gate.ask("POST", EMBEDDINGS, {"model": "odd", "input": "a"}).status == 200
    before = len(gate.engine("odd").log())
    inputs = [f"n{number}" for number in range(320)]
    inputs[64] = f"until {tmp_path / 'go'}"  # the third step
    connection = gate.send({"model": "odd", "input": inputs}, path=EMBEDDINGS, key=key["key"])
    until(lambda: gate.engine("odd").log()[before:], lambda steps: len(steps) == 3)
    connection.close()
    event = until(lambda: gate.events_of_key(key["id"]))[0]
    assert (event["status"], event["reason"], event["estimated"]) == ("cancelled", "client_left", True)
    assert event["input_tokens"] >= 320
    until(gate.running, lambda count: count == 0)
    (tmp_path / "go").touch()
    assert gate.engine("odd").log()[before:] == [32] * 3


def test_a_revoked_key_ends_its_request(gate: Gate) -> None:
    key = gate.make_key()
    connection = gate.send({"model": "odd", "input": ["hang"]}, path=EMBEDDINGS, key=key["key"])
    until(gate.running, lambda count: count == 1)
    gate.admin("POST", f"/api-keys/{key['id']}/revoke")
    answer = Stream(connection, connection.getresponse()).answer()
    assert answer.status == 401


def test_is_reserved_before_and_refused_where_it_cant_be_paid(gate: Gate) -> None:
    user = gate.make_user(tier="payg", balance_nano=INPUT_NANO * 100)
    key = gate.make_key(user["id"])
    refused = gate.ask("POST", EMBEDDINGS, {"model": "minilm", "input": ["cat " * 100] * 4}, key=key["key"])
    assert refused.status == 402
    assert gate.balance(user["id"]) == INPUT_NANO * 100
    answer = gate.ask("POST", EMBEDDINGS, {"model": "minilm", "input": "a cat"}, key=key["key"])
    assert answer.status == 200
    assert gate.balance(user["id"]) == INPUT_NANO * (100 - answer.json()["usage"]["prompt_tokens"])


def test_vectors_are_shortened_where_the_model_allows(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="shortened", input=TEXTS[0], dimensions=64)
    short, whole = answer.data[0].embedding, vectors(client, TEXTS[0])[0]
    assert len(short) == 64
    assert dot(short, short) == pytest.approx(1.0, abs=1e-4)
    length = math.sqrt(dot(whole[:64], whole[:64]))
    assert short == pytest.approx([number / length for number in whole[:64]], abs=1e-3)


def test_shortened_vectors_have_length_one() -> None:
    short = shorten(array("f", [3.0, 4.0, 12.0]), 2)
    assert short.tolist() == pytest.approx([0.6, 0.8])
    assert math.isclose(dot(short.tolist(), short.tolist()), 1.0, rel_tol=1e-6)
    assert shorten(array("f", [0.0, 0.0, 1.0]), 2).tolist() == [0.0, 0.0]


# -- pictures


def data_address(width: int, height: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(media.png(width, height)).decode()}"


def picture_vectors(gate: Gate, *inputs: Any, model: str = "gazer") -> list[list[float]]:
    answer = gate.ask("POST", EMBEDDINGS, {"model": model, "input": list(inputs)})
    assert answer.status == 200, answer.body
    event = gate.event(answer.request_id)
    assert (event["status"], event["estimated"]) == ("completed", False)
    assert event["input_tokens"] == answer.json()["usage"]["prompt_tokens"]
    return [item["embedding"] for item in answer.json()["data"]]


def test_pictures_get_vectors_of_what_is_in_them(gate: Gate) -> None:
    """As Jina's, OpenRouter's and OpenAI's parts have it: the same picture is the same input, however it is put."""
    address = data_address(40, 30)
    part = {"type": "image_url", "image_url": {"url": address}}
    plain = address.partition("base64,")[2]
    forms = [{"image": address}, {"image": plain}, part, {"content": [part]}, {"content": [part, {"text": ""}]}]
    text, *same, other, said = picture_vectors(
        gate, "\n", *forms, {"image": data_address(300, 7)}, {"content": [{"text": "see"}, part, {"text": "this"}]}
    )
    assert all(dot(vector, same[0]) > 0.9999 for vector in same)
    assert max(dot(vector, same[0]) for vector in (text, other, said)) < 0.9999
    assert dot(picture_vectors(gate, {"image": address})[0], same[0]) > 0.9999
    assert dot(*picture_vectors(gate, "words", {"text": "words"})) > 0.9999


def test_pictures_are_booked_as_the_engine_counts_them(gate: Gate) -> None:
    def count(*inputs: Any) -> int:
        return gate.ask("POST", EMBEDDINGS, {"model": "gazer", "input": list(inputs)}).json()["usage"]["prompt_tokens"]

    text, picture = count("ab"), {"image": data_address(9, 9)}
    assert count({**picture, "text": "ab"}) > text
    assert count(picture, "ab", picture) == 2 * count(picture) + text


def test_a_picture_that_can_not_be_read_is_not_the_engines_fault(gate: Gate) -> None:
    picture_vectors(gate, "still")
    before = gate.slot("gazer")["pid"]
    broken = base64.b64encode(media.png(40, 30)[:40]).decode()
    answer = gate.ask("POST", EMBEDDINGS, {"model": "gazer", "input": {"image": broken}})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert gate.event(answer.request_id)["attempt"] == 1
    many = {"content": [{"image": data_address(9, 9)}] * 120}
    answer = gate.ask("POST", EMBEDDINGS, {"model": "gazer", "input": many})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert len(picture_vectors(gate, "there", {"image": data_address(9, 9)})) == 2
    assert gate.slot("gazer")["pid"] == before


@pytest.mark.parametrize("model", ["minilm", "mean"])
def test_a_model_that_can_not_embed_pictures_says_so(gate: Gate, model: str) -> None:
    assert len(picture_vectors(gate, "text", model=model)) == 1
    answer = gate.ask("POST", EMBEDDINGS, {"model": model, "input": {"image": data_address(9, 9)}})
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (400, "missing_ability")
    assert "image" in error["message"]
