"""The embedded engine with real models: context, tokens, errors, and the end on SIGTERM."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from engine_harness import ask, give, instance_of, take, until

from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.runtime.slots import is_port_free
from stentor.runtime.spec import ModelSpec
from tests.serving import free_ports


def tiny_spec(tiny: Path, **fields: Any) -> ModelSpec:
    return ModelSpec(**{"id": "tiny", "source": f"file:{tiny}", "ctx": 256, "parallel": 2, **fields})


async def test_the_starter_model_answers(make_scheduler: Any, starter: Path) -> None:
    spec = ModelSpec(id="starter", source=f"file:{starter}", ctx=1024, parallel=2, aliases=("smol",))
    scheduler = make_scheduler(spec)
    served = scheduler.resolve("smol", frozenset())
    place = await take(scheduler, served.id, timeout_s=60)
    body = {
        "model": served.upstream_model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 24,
        "temperature": 0,
        "ignore_eos": True,
    }
    status, answer = await ask(place, "/v1/chat/completions", body)
    assert status == 200
    assert len(answer["choices"][0]["message"]["content"]) > 20
    assert answer["usage"]["completion_tokens"] == 24
    assert answer["usage"]["prompt_tokens"] > 10
    assert answer["model"] == "starter"


async def test_every_place_holds_the_promised_context(make_scheduler: Any, tiny: Path) -> None:
    scheduler = make_scheduler(tiny_spec(tiny, parallel=3))
    place = await take(scheduler, "tiny")
    _status, slots = await ask(place, "/slots")
    assert [slot["n_ctx"] for slot in slots] == [256, 256, 256]
    assert scheduler.resolve("tiny", frozenset()).context_size == 256


async def test_context_is_capped_by_what_the_model_was_trained_for(make_scheduler: Any, tiny: Path) -> None:
    scheduler = make_scheduler(tiny_spec(tiny, ctx=4096))
    place = await take(scheduler, "tiny")
    assert scheduler.resolve("tiny", frozenset()).context_size == 512
    assert (await scheduler.find_model("tiny")).context_size == 512
    _status, slots = await ask(place, "/slots")
    assert {slot["n_ctx"] for slot in slots} == {512}


async def test_too_long_a_prompt_is_refused_not_cut(make_scheduler: Any, tiny: Path) -> None:
    scheduler = make_scheduler(tiny_spec(tiny))
    place = await take(scheduler, "tiny")
    status, answer = await ask(place, "/v1/completions", {"prompt": "x" * 300, "max_tokens": 1})
    assert status == 400
    assert answer["error"]["type"] == "exceed_context_size_error"
    assert answer["error"]["n_ctx"] == 256


async def test_the_engine_wants_its_token_and_tells_nobody(make_scheduler: Any, tiny: Path) -> None:
    scheduler = make_scheduler(tiny_spec(tiny))
    place = await take(scheduler, "tiny")
    assert len(place.token) >= 32
    status, _answer = await ask(place, "/v1/completions", {"prompt": "x", "max_tokens": 1}, token="wrong")
    assert status == 401
    card = await instance_of(scheduler, "tiny")
    for name in ("cmdline", "environ"):
        assert place.token.encode() not in Path(f"/proc/{card.pid}/{name}").read_bytes()
    assert not any(place.token in line for line in card.log_tail)


async def test_a_new_child_has_a_new_token(make_scheduler: Any, tiny: Path) -> None:
    scheduler = make_scheduler(tiny_spec(tiny))
    first = await take(scheduler, "tiny")
    os.kill((await instance_of(scheduler, "tiny")).pid, signal.SIGKILL)
    await until(lambda: scheduler.try_acquire(ModelId("tiny"), 0) is None)
    assert (await take(scheduler, "tiny")).token != first.token


async def test_a_truncated_model_fails_at_once_and_stays_failed(make_scheduler: Any, tiny: Path) -> None:
    cut = tiny.with_name("cut.gguf")
    cut.write_bytes(tiny.read_bytes()[:100_000])
    scheduler = make_scheduler(tiny_spec(cut))
    with pytest.raises(Refused, match="exit status 65"):
        await take(scheduler, "tiny")
    with pytest.raises(Refused, match="exit status 65"):
        await take(scheduler, "tiny")
    assert (await instance_of(scheduler, "tiny")).generation == 1  # it wasn't even tried
    reason = (await instance_of(scheduler, "tiny")).reason
    assert "error: llama.cpp can't load" in reason


async def test_refuses_with_numbers_when_memory_is_short(make_scheduler: Any, tiny: Path) -> None:
    scheduler = make_scheduler(tiny_spec(tiny), memory_limit_mb=32)
    with pytest.raises(Refused, match="not enough memory"):
        await take(scheduler, "tiny")
    assert "32 MiB can be had" in (await instance_of(scheduler, "tiny")).reason


async def test_embeddings_take_inputs_as_long_as_the_context(make_scheduler: Any, tiny: Path) -> None:
    scheduler = make_scheduler(tiny_spec(tiny, id="vectors", type="embedding", ctx=512))
    place = await take(scheduler, "vectors")
    status, answer = await ask(place, "/v1/embeddings", {"model": "vectors", "input": "y" * 500})
    assert status == 200
    assert len(answer["data"][0]["embedding"]) == 64


async def test_leaving_a_stream_frees_the_engines_slot(make_scheduler: Any, starter: Path) -> None:
    scheduler = make_scheduler(ModelSpec(id="starter", source=f"file:{starter}", ctx=2048, parallel=1))
    place = await take(scheduler, "starter", timeout_s=60)
    headers = {"Authorization": f"Bearer {place.token}"}
    body = {"prompt": "Once upon a time", "max_tokens": 1500, "stream": True, "ignore_eos": True}
    async with aiohttp.ClientSession() as session:
        response = await session.post(place.url + "/v1/completions", json=body, headers=headers)
        await response.content.readline()
        response.close()
    async with asyncio.timeout(60):
        while (await ask(place, "/slots"))[1][0]["is_processing"]:
            await asyncio.sleep(0.02)
    give(scheduler, place)


def run_engine(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stentor.engines.llama"], input=line, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "can't be read: No such file or directory"),
        (lambda path: path.write_bytes(b"GIF89a picture"), "is not a GGUF file"),
        (lambda path: path.mkdir(), "can't be read: Is a directory"),
    ],
)
def test_the_engine_says_in_one_line_what_is_wrong_with_its_file(tmp_path: Path, make: Any, words: str) -> None:
    path = tmp_path / "model.gguf"
    make(path)
    config = {"model_path": str(path), "alias": "m", "port": 1, "token": "t", "ctx": 64, "parallel": 1, "threads": 1}
    done = run_engine(json.dumps(config) + "\n")
    assert done.returncode == 65
    (line,) = done.stderr.split("\n")[1:-1]  # one of its own, whatever llama.cpp was writing
    assert line.startswith(f"error: model file {path}")
    assert words in line


@pytest.mark.parametrize("line", ["", "{}\n", "nonsense\n", '{"model_path": 3}\n'])
def test_the_engine_refuses_a_bad_configuration(line: str) -> None:
    done = run_engine(line)
    assert done.returncode == 64
    assert "one JSON line of configuration" in done.stderr


def test_the_engine_ends_cleanly_on_sigterm(tiny: Path) -> None:
    port = free_ports(1)
    config = {
        "model_path": str(tiny),
        "alias": "m",
        "port": port,
        "token": "t",
        "ctx": 256,
        "parallel": 1,
        "threads": 1,
    }
    engine = subprocess.Popen(
        [sys.executable, "-m", "stentor.engines.llama"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert engine.stdin is not None
    assert engine.stderr is not None
    with engine.stdin as stdin:
        stdin.write(json.dumps(config) + "\n")
    # llama.cpp writes its own lines in pieces, and this one may come between two of them.
    assert any("serving m at" in line for line in engine.stderr)
    engine.send_signal(signal.SIGTERM)
    assert engine.wait(30) == 0
    engine.stderr.close()
    assert is_port_free(port)


@pytest.mark.parametrize(("flash_attention", "load_mode"), [("on", "none"), ("off", "mmap"), ("auto", "dio")])
async def test_flash_attention_and_load_mode_reach_the_engine(
    make_scheduler: Any, tiny: Path, flash_attention: str, load_mode: str
) -> None:
    scheduler = make_scheduler(tiny_spec(tiny, flash_attention=flash_attention, load_mode=load_mode))
    await take(scheduler, "tiny")
    (card,) = await scheduler.list_instances()
    maps = Path(f"/proc/{card.pid}/maps").read_text()
    assert (str(tiny) in maps) is (load_mode == "mmap")
