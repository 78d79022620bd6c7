"""What the machine says of itself, for ``GET /admin/api/system``."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import psutil

from stentor.runtime.hardware import find_gpus, find_hardware


class ThisMachine:
    """The machine that this process runs on. Asks the GPUs once: that may start a program."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._gpus: list[Any] | None = None

    def describe(self) -> dict[str, Any]:
        """CPU, memory and disk now, in bytes and percent, and the GPUs."""
        if self._gpus is None:
            self._gpus = [msgspec.to_builtins(gpu) for gpu in find_gpus()]
        memory = psutil.virtual_memory()
        disk = shutil.disk_usage(self._data_dir)
        hardware = find_hardware()
        return {
            "cpu": {**msgspec.to_builtins(hardware), "percent": psutil.cpu_percent()},
            "memory": {"total": memory.total, "available": memory.available, "percent": memory.percent},
            "disk": {"total": disk.total, "free": disk.free},
            "gpus": self._gpus,
        }
