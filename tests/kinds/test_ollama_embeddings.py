"""Ollama's two ways to ask for vectors, by its official client, with a real embedding model."""

from collections.abc import Iterator

import ollama
import pytest

from tests.http.harness import Gate

MODEL = "minilm"
TEXTS = ["A cat sits on the mat.", "Prices fell on the market."]


@pytest.fixture
def client(gate: Gate) -> Iterator[ollama.Client]:
    client = ollama.Client(f"http://127.0.0.1:{gate.port}", headers={"Authorization": f"Bearer {gate.key}"})
    yield client
    client._client.close()


def test_the_vectors_are_those_of_v1_embeddings(gate: Gate, client: ollama.Client) -> None:
    ours = gate.ask("POST", "/v1/embeddings", {"model": MODEL, "input": TEXTS})
    vectors = [item["embedding"] for item in ours.json()["data"]]
    theirs = client.embed(MODEL + ":latest", TEXTS)
    assert [pytest.approx(vector, abs=1e-5) for vector in vectors] == [list(vector) for vector in theirs.embeddings]
    assert theirs.prompt_eval_count == ours.json()["usage"]["prompt_tokens"]
    assert list(client.embed(MODEL, TEXTS[0]).embeddings[0]) == pytest.approx(vectors[0], abs=1e-5)
    assert list(client.embeddings(MODEL, TEXTS[1]).embedding) == pytest.approx(vectors[1], abs=1e-5)


@pytest.mark.parametrize(("path", "field"), [("/api/embed", "input"), ("/api/embeddings", "prompt")])
def test_each_is_booked_as_itself(gate: Gate, path: str, field: str) -> None:
    answer = gate.ask("POST", path, {"model": MODEL, field: TEXTS[0]})
    event = gate.event(answer.request_id)
    assert (event["endpoint"], event["status"], event["output_tokens"]) == (path, "completed", 0)
    assert event["input_tokens"] > 3
    assert int(float(answer.headers["x-stentor-cost"]) * 1e9 + 0.5) == event["cost_nano"]


@pytest.mark.parametrize("dimensions", [0, -1, 1_000_000])
def test_wrong_dimensions_are_refused(gate: Gate, dimensions: int) -> None:
    answer = gate.ask("POST", "/api/embed", {"model": MODEL, "input": "x", "dimensions": dimensions})
    assert answer.status == 400
    assert "dimensions" in answer.json()["error"]
