"""What the machine has, found without loading anything heavy: processor, memory, and accelerators by their traces."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import msgspec
import psutil

_NVIDIA_SMI_TIMEOUT_S = 5.0
_WANTED_FLAGS = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "sve")
_PCI_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_DRM = Path("/sys/class/drm")


class Gpu(msgspec.Struct, frozen=True):
    """An accelerator. ``memory_mib`` is None where it can't be told; ``usable`` says whether a driver answers."""

    vendor: str
    name: str
    memory_mib: int | None
    usable: bool
    evidence: str


class Hardware(msgspec.Struct, frozen=True):
    """The machine as this process may use it: ``cores`` respects CPU affinity, memory is in MiB."""

    machine: str
    cpu: str
    cores: int
    flags: tuple[str, ...]
    memory_mib: int
    available_mib: int
    gpus: tuple[Gpu, ...]


def find_hardware(gpus: tuple[Gpu, ...] | None = None) -> Hardware:
    """Look at the machine: milliseconds, or up to 5 s where an NVIDIA driver hangs. ``gpus`` found before save that."""
    memory = psutil.virtual_memory()
    name, flags = _read_cpuinfo()
    limit = _read_memory_limit()
    total = memory.total if limit is None else min(memory.total, limit)
    return Hardware(
        machine=platform.machine(),
        cpu=name or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        flags=tuple(flag for flag in _WANTED_FLAGS if flag in flags),
        memory_mib=total >> 20,
        available_mib=min(memory.available, total) >> 20,
        gpus=find_gpus() if gpus is None else gpus,
    )


def _read_cpuinfo() -> tuple[str, frozenset[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return "", frozenset()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name", ""), frozenset(flags.split())


def _read_memory_limit() -> int | None:
    """The control group's memory limit in bytes, which containers have."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text("ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None


def find_gpus() -> tuple[Gpu, ...]:
    """Accelerators: what ``nvidia-smi`` reports, else what device files and the kernel's display classes show."""
    nvidia = _ask_nvidia()
    others = [gpu for gpu in _read_drm() if gpu.vendor != "NVIDIA" or not nvidia]
    if not nvidia and not any(gpu.vendor == "NVIDIA" for gpu in others) and Path("/dev/nvidia0").exists():
        others.append(Gpu("NVIDIA", "NVIDIA device", None, False, "/dev/nvidia0"))
    return (*nvidia, *others)


def _ask_nvidia() -> list[Gpu]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_nvidia(done.stdout) if done.returncode == 0 else []


def parse_nvidia(text: str) -> list[Gpu]:
    """``nvidia-smi``'s lines ``name, MiB`` as GPUs."""
    found = []
    for line in text.splitlines():
        name, comma, memory = line.rpartition(",")
        if comma:
            size = int(memory) if memory.strip().isdigit() else None
            found.append(Gpu("NVIDIA", name.strip(), size, True, "nvidia-smi"))
    return found


def _read_drm() -> list[Gpu]:
    """Display devices of the kernel that can compute: those with a render node."""
    found = []
    for card in sorted(_DRM.glob("renderD*")):
        try:
            vendor = _PCI_VENDORS.get((card / "device" / "vendor").read_text("ascii").strip())
        except OSError:
            continue
        if vendor is None:
            continue
        node = Path("/dev/dri") / card.name
        usable = os.access(node, os.R_OK | os.W_OK) and (vendor != "AMD" or os.access("/dev/kfd", os.R_OK | os.W_OK))
        found.append(Gpu(vendor, f"{vendor} graphics", _read_vram(card / "device"), usable, str(node)))
    return found


def _read_vram(device: Path) -> int | None:
    try:
        return int((device / "mem_info_vram_total").read_text("ascii")) >> 20
    except (OSError, ValueError):
        return None


def choose_gpu_step(gpus: tuple[Gpu, ...], engine_bin: Path | None) -> str:
    """One line: whether a GPU is there, and the one step that would use it."""
    if not gpus:
        return "No GPU found; models run on the processor."
    best = max(gpus, key=lambda gpu: (gpu.usable, gpu.memory_mib or 0))
    size = f" with {best.memory_mib} MiB" if best.memory_mib else ""
    if not best.usable:
        return (
            f"GPU found: {best.name} ({best.evidence}), but this user can't use it. Install its driver and add this "
            "user to the groups video and render."
        )
    if engine_bin is not None:
        return f"GPU found: {best.name}{size}; {engine_bin} uses it if it was built for {_BACKENDS[best.vendor]}."
    return (
        f"GPU found: {best.name}{size}. The embedded engine runs on the processor; to use the GPU, set "
        f"STENTOR_ENGINE_BIN to a llama-server built for {_BACKENDS[best.vendor]}."
    )


_BACKENDS = {"NVIDIA": "CUDA (or Vulkan)", "AMD": "ROCm (or Vulkan)", "Intel": "SYCL (or Vulkan)"}
