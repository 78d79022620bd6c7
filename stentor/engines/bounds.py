"""How an engine holds itself to the memory that its work needs, whatever a stranger's file claims to need."""

import resource
from collections.abc import Callable
from pathlib import Path

_STATUS = Path("/proc/self/status")  # Linux
_SPARE_BYTES = 512 << 20  # for threads, requests and what libraries keep, beyond the work itself


def bound_memory(find_room: Callable[[int], int | None]) -> None:
    """Take no more from now on than ``find_room`` says that the work needs beyond what is loaded; None: who knows."""
    try:
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    except OSError:
        return  # not Linux
    loaded_bytes = int(fields["VmData"].split()[0]) << 10
    room_bytes = find_room(loaded_bytes)
    if room_bytes is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = loaded_bytes + _SPARE_BYTES + room_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
