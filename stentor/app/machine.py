"""What the machine says of itself, for ``GET /admin/api/system``."""

import asyncio
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from stentor.core.units import MIB
from stentor.runtime.gpus import open_nvml
from stentor.runtime.hardware import Gpu, find_gpus, find_hardware


class ThisMachine:
    """The machine that this process runs on. It is asked in a thread, for its GPUs once: that may start a program."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._gpus: tuple[Gpu, ...] | None = None
        self._lock = threading.Lock()
        self._nvml: Any = None
        # Processes as last seen: start, seconds of CPU, when.
        self._seen: dict[int, tuple[float, float, float]] = {}

    async def describe(self) -> dict[str, Any]:
        """CPU, memory and disk now, in bytes and percent, and the GPUs. Takes up to 5 s where a driver hangs."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> dict[str, Any]:
        with self._lock:
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
                "load": [round(value, 2) for value in psutil.getloadavg()],
            },
            "memory": {
                "total": memory.total,
                "available": memory.available,
                "used": memory.total - memory.available,
                "percent": memory.percent,
            },
            "disk": {"total": disk.total, "free": disk.free, "percent": round(100 - 100 * disk.free / disk.total, 1)},
            "gpus": self._read_nvml() or msgspec.to_builtins(self._gpus),
        }

    def _read_nvml(self) -> list[dict[str, Any]]:
        """NVIDIA's cards with what they do now, where the extra ``gpu`` is installed and a driver answers."""
        with self._lock:
            if self._nvml is None:
                self._nvml = open_nvml() or False
        if not self._nvml:
            return []
        return read_gpus(self._nvml)

    async def measure(self, pids: Sequence[int]) -> dict[int, tuple[float, float]]:
        """Memory in MiB and CPU in percent of one core since the last look, of the processes that are still there."""
        return await asyncio.to_thread(self._measure, pids)

    def _measure(self, pids: Sequence[int]) -> dict[int, tuple[float, float]]:
        found: dict[int, tuple[float, float]] = {}
        with self._lock:
            before, self._seen = self._seen, {}
            for pid in pids:
                try:
                    process = psutil.Process(pid)
                    started_s = process.create_time()
                    times, memory = process.cpu_times(), process.memory_info()
                except psutil.Error:
                    continue  # it ended meanwhile
                now_s, used_s = time.time(), times.user + times.system
                known = before.get(pid)
                since_used_s, since_s = (known[1], known[2]) if known and known[0] == started_s else (0.0, started_s)
                percent = 100 * (used_s - since_used_s) / max(now_s - since_s, 0.01)
                self._seen[pid] = (started_s, used_s, now_s)
                found[pid] = (round(memory.rss / MIB, 1), round(max(percent, 0.0), 1))
        return found


def read_gpus(nvml: Any) -> list[dict[str, Any]]:
    """Each card with memory in MiB, and utilisation in percent where the card tells it."""
    rows = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            card = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(card)
            name = nvml.nvmlDeviceGetName(card)
        except nvml.NVMLError:
            continue  # a card that fell off the bus
        row = {
            "vendor": "NVIDIA",
            "name": name.decode() if isinstance(name, bytes) else name,
            "memory_mib": memory.total >> 20,
            "memory_used_mib": memory.used >> 20,
            "usable": True,
            "evidence": "nvml",
            "percent": None,
            "temperature_c": None,
        }
        try:
            row["percent"] = nvml.nvmlDeviceGetUtilizationRates(card).gpu
            row["temperature_c"] = nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)
        except nvml.NVMLError:
            pass  # virtual cards don't tell
        rows.append(row)
    return rows
