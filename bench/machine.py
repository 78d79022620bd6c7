"""What the kernel says: cores, CPU time, memory, sockets, the disk. Linux only."""

import os
import platform
import resource
import statistics
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent

SERVER_CORE = 0
LOAD_CORE = 1
GONE = (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, ProcessLookupError, PermissionError)


def describe() -> dict[str, object]:
    """The machine, for the record."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = names[0] if names else platform.machine()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "uvloop": version("uvloop"),
        "load_average": os.getloadavg(),
    }


def server_tree(pid: int) -> list[psutil.Process]:
    """The server's processes: its tree without what has pinned itself to the load core (the mock engines)."""
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except GONE:
        return []
    return [process for process in tree if not on_load_core(process)]


def on_load_core(process: psutil.Process) -> bool:
    try:
        return process.cpu_affinity() == [LOAD_CORE]
    except GONE:
        return True


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """User and system time of the processes (utime + stime of /proc/<pid>/stat; resolution 10 ms)."""
    total = 0.0
    for process in processes:
        with suppress(*GONE):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def core_busy_seconds(core: int) -> float:
    """Seconds that `core` was busy since boot, whoever used it."""
    times = psutil.cpu_times(percpu=True)[core]
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def load_side_seconds() -> float:
    """CPU time of mock and load generator: what is pinned to the load core, and the finished children of the bench."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime + cpu_seconds(p for p in psutil.process_iter() if on_load_core(p))


@dataclass(frozen=True)
class CpuMark:
    """A point in time to measure CPU use from."""

    at: float
    server_s: float
    load_s: float
    cores_s: tuple[float, float]

    @classmethod
    def now(cls, pid: int | None) -> "CpuMark":
        server_s = cpu_seconds(server_tree(pid)) if pid else 0.0
        cores_s = (core_busy_seconds(SERVER_CORE), core_busy_seconds(LOAD_CORE))
        return cls(time.perf_counter(), server_s, load_side_seconds(), cores_s)

    def until(self, later: "CpuMark") -> dict[str, float]:
        """Shares of the elapsed time; `foreign_share` is use of the two cores by anybody else, the worse one."""
        elapsed_s = later.at - self.at
        server_s, load_s = later.server_s - self.server_s, later.load_s - self.load_s
        foreign_s = max(
            later.cores_s[0] - self.cores_s[0] - server_s,
            later.cores_s[1] - self.cores_s[1] - load_s,
        )
        return {
            "server_cpu_s": server_s,
            "server_share": server_s / elapsed_s,
            "load_share": load_s / elapsed_s,
            "foreign_share": max(0.0, foreign_s / elapsed_s),
        }


def memory_of(pid: int) -> list[dict[str, object]]:
    """Resident (RSS) and proportional (PSS) size of each process of a server, in MB of 10^6 bytes."""
    rows: list[dict[str, object]] = []
    for process in server_tree(pid):
        with suppress(*GONE):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in rollup if line.endswith("kB")}
            name = " ".join(process.cmdline()).replace(f"{ROOT}/", "")
            rows.append({"pid": process.pid, "command": name[:160], "rss_mb": sizes["Rss"], "pss_mb": sizes["Pss"]})
    return rows


def connections_by_process(pid: int, port: int) -> dict[int, int]:
    """How many established connections on `port` each process of the tree holds."""
    held: dict[int, int] = {}
    for process in server_tree(pid):
        with suppress(*GONE):
            mine = [
                c
                for c in process.net_connections(kind="tcp")
                if c.status == psutil.CONN_ESTABLISHED and c.laddr and c.laddr.port == port
            ]
            if mine:
                held[process.pid] = len(mine)
    return held


def fdatasync_times(folder: Path, count: int) -> dict[str, object]:
    """Appends 4 KiB and calls fdatasync, `count` times, in `folder`: what one durable commit costs here. Seconds."""
    path = folder / "fdatasync.probe"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    times: list[float] = []
    try:
        for _ in range(count):
            os.write(descriptor, b"\xa5" * 4096)
            started_at = time.perf_counter()
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - started_at)
    finally:
        os.close(descriptor)
        path.unlink()
    return {
        "p50_s": statistics.median(times),
        "min_s": min(times),
        "max_s": max(times),
        "count": count,
        "on": filesystem_of(folder),
    }


def filesystem_of(folder: Path) -> str:
    """Type and device of the file system that holds `folder`."""
    resolved = folder.resolve()
    mounts = [p for p in psutil.disk_partitions(all=True) if resolved.is_relative_to(p.mountpoint)]
    best = max(mounts, key=lambda p: len(p.mountpoint), default=None)
    return f"{best.fstype} on {best.device}" if best else "unknown"
