"""The list of engine process groups on disk, so that a later start can end what an earlier one left behind.

The parent-death signal ends an engine with its server; what an engine itself started survives that. Each entry holds
pid, process group, start time and a random tag that all descendants carry in their environment: only a process that
proves to be ours by these is ever killed.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from stentor.core.errors import UNREADABLE
from stentor.runtime import procfs

TAG_VARIABLE = "STENTOR_ENGINE_TAG"
KEY_SUFFIX = ".key"


class RosterEntry(msgspec.Struct, frozen=True):
    """One engine process; ``start_ticks`` as in /proc/<pid>/stat, ``port`` where it serves."""

    instance: str
    pid: int
    group: int
    start_ticks: int
    boot_id: str
    tag: str
    port: int


class Roster:
    """The file ``run/engines.json`` under the data directory; one server owns it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot_id = procfs.read_boot_id()
        self._entries: dict[int, RosterEntry] = {}
        self._swept = False

    def add(self, instance: str, pid: int, tag: str, port: int) -> None:
        """Write down a child right after it was spawned. A child that is already gone needs no entry."""
        stat = procfs.find_stat(pid)
        if stat is None:
            return
        self._entries[pid] = RosterEntry(instance, pid, pid, stat.start_ticks, self._boot_id, tag, port)
        self._save()

    def remove(self, pid: int) -> None:
        """Strike out a child whose whole group is gone."""
        if self._entries.pop(pid, None) is not None:
            self._save()

    def sweep(self) -> list[RosterEntry]:
        """Kill what the last server left behind, once; returns the entries of which something was still alive."""
        if self._swept:
            return []
        self._swept = True
        left = [entry for entry in self._load() if choose_victims(entry, self._boot_id, procfs.list_group)]
        for entry in left:
            for stat in choose_victims(entry, self._boot_id, procfs.list_group):
                _kill(stat.pid)
        for key_file in self._path.parent.glob(f"*{KEY_SUFFIX}"):
            key_file.unlink(missing_ok=True)
        self._save()
        return left

    def _load(self) -> list[RosterEntry]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[RosterEntry])
        except (OSError, *UNREADABLE):
            # A lost or damaged list must not keep the server down; the parent-death signal was the first guard.
            return []

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(list(self._entries.values()))))
        fresh.replace(self._path)


def choose_victims(
    entry: RosterEntry, boot_id: str, list_group: Callable[[int], list[procfs.Stat]]
) -> list[procfs.Stat]:
    """The processes of a recorded group that are surely ours: the leader by its start time, others by the tag."""
    if entry.boot_id != boot_id or entry.group <= 1:
        return []
    return [stat for stat in list_group(entry.group) if _is_ours(stat, entry)]


def _is_ours(stat: procfs.Stat, entry: RosterEntry) -> bool:
    if stat.pid == entry.pid:
        return stat.start_ticks == entry.start_ticks
    return procfs.has_variable(stat.pid, f"{TAG_VARIABLE}={entry.tag}")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # Gone by itself, or no longer ours to touch: both leave nothing to do.
        return
