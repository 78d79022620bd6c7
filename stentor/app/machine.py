"""What the machine says of itself, for ``GET /admin/api/system``."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec
import psutil

from stentor.runtime.hardware import Gpu, find_gpus, find_hardware


class ThisMachine:
    """The machine that this process runs on. It is asked in a thread, for its GPUs once: that may start a program."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._gpus: tuple[Gpu, ...] | None = None

    async def describe(self) -> dict[str, Any]:
        """CPU, memory and disk now, in bytes and percent, and the GPUs. Takes up to 5 s where a driver hangs."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> dict[str, Any]:
        if self._gpus is None:
            self._gpus = find_gpus()
        memory = psutil.virtual_memory()
        disk = shutil.disk_usage(self._data_dir)
        found = find_hardware(self._gpus)
        return {
            "cpu": {
                "name": found.cpu,
                "machine": found.machine,
                "cores": found.cores,
                "flags": found.flags,
                "percent": psutil.cpu_percent(),
            },
            "memory": {"total": memory.total, "available": memory.available, "percent": memory.percent},
            "disk": {"total": disk.total, "free": disk.free},
            "gpus": msgspec.to_builtins(self._gpus),
        }
