"""What /proc says of a process; None and empty where it is gone. Field numbers: proc_pid_stat(5)."""

import os
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Stat(NamedTuple):
    """The fields of ``/proc/<pid>/stat`` that identify a process; ``start_ticks`` counts clock ticks since boot."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_ticks: int


def find_stat(pid: int) -> Stat | None:
    """The process ``pid``, zombies included."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return Stat(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def list_group(group: int) -> list[Stat]:
    """All live members of a process group; zombies are left out, as they hold nothing."""
    stats = (find_stat(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdigit())
    return [stat for stat in stats if stat is not None and stat.group == group and stat.state not in "ZX"]


def has_variable(pid: int, assignment: str) -> bool:
    """Whether the process was started with ``NAME=value`` in its environment."""
    try:
        return assignment.encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


class MemoryUse(NamedTuple):
    """Bytes in use: all, and without mapped files, which the system takes back where memory is short."""

    resident_bytes: int
    private_bytes: int


def find_memory_use(pid: int) -> MemoryUse | None:
    """What ``pid`` has in use."""
    try:
        fields = (_PROC / str(pid) / "statm").read_text().split()
        return MemoryUse(int(fields[1]) * _PAGE_BYTES, (int(fields[1]) - int(fields[2])) * _PAGE_BYTES)
    except (OSError, IndexError):
        return None


def read_boot_id() -> str:
    """The kernel's id of this boot; pids and ticks mean nothing across boots."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
