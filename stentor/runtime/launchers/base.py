"""What all launchers share: the description of one start, and the environment a child may see."""

import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from stentor.core.errors import StentorError
from stentor.runtime.gpus import GpuPlan
from stentor.runtime.spec import ModelSpec, Pooling

LOOPBACK = "127.0.0.1"
_PASSED_ON = frozenset(
    {
        "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH",
        "SHELL", "TERM", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR",
    }
)  # fmt: skip
_PASSED_ON_PREFIXES = ("CUDA_", "GGML_", "GPU_", "HIP_", "HSA_", "LC_", "NVIDIA_", "OMP_", "ROCR_", "VK_", "ZE_")


class LaunchRefused(StentorError):
    """A start that can't work however often it is tried. ``text`` is for operators and may name paths."""

    def __init__(self, text: str, public: str = "the operator must correct its configuration") -> None:
        super().__init__(text)
        self.public = public


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One child to start: program, environment, what it reads on stdin, and how its answers are checked.

    ``environment`` is complete; nothing of ours is inherited. ``key_file`` is removed when the child ends.
    ``places`` and ``context_size`` are what the child was told, None where only the child knows. ``spec`` is the
    model's definition with what its files say filled in.
    """

    argv: tuple[str, ...]
    environment: dict[str, str]
    stdin: bytes = b""
    token: str = ""
    key_file: Path | None = None
    places: int
    context_size: int | None = None
    cwd: Path | None = None
    spec: ModelSpec | None = None

    def __repr__(self) -> str:
        return f"Launch(argv={self.argv[:1]}…)"


class LaunchOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher is asked for: the model, its port, its weights (None: the engine has its own), its share.

    ``ctx`` is tokens per place, ``places`` the number of concurrent requests, ``threads`` CPU threads, ``pooling``
    empty for the model's own; ``projector_on_cpu`` keeps an image or audio projector out of the GPU's memory; ``gpu``
    says what goes there where that was planned.
    """

    spec: ModelSpec
    port: int
    weights: Path | None
    ctx: int
    places: int
    threads: int
    pooling: Pooling = ""
    projector_on_cpu: bool = False
    gpu: GpuPlan | None = None


class Launcher(Protocol):
    """Turns an order into a child; spawns nothing itself except to ask a program what it can do."""

    async def prepare(self, order: LaunchOrder) -> Launch:
        """The child to start. Raises LaunchRefused."""
        ...


def new_token() -> str:
    """A fresh secret that only this engine process and its callers know."""
    return secrets.token_urlsafe(32)


def choose_environment(base: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """The few variables of ``base`` that a child may see, and ``extra`` over them.

    An allow-list, as ours holds the master key and other children's settings (``LLAMA_ARG_*`` acts unseen).
    """
    kept = {name: text for name, text in base.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)}
    return {**kept, **extra}


def wrap_program(argv: tuple[str, ...], parent: int) -> tuple[str, ...]:
    """``argv`` behind the parent-death launcher, to be spawned by process ``parent``."""
    return (sys.executable, "-P", "-m", "stentor.engines.exec", str(parent), "--", *argv)
