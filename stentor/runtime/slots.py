"""The ports that engines may serve on: a fixed row, one per process."""

import socket
from collections.abc import Callable, Collection, Sequence

from stentor.core.errors import StentorError
from stentor.core.ids import InstanceId

LOOPBACK = "127.0.0.1"


class NoSlot(StentorError):
    """Every slot port is in use, by our engines or by other programs; the text says which."""


class Slots:
    """Who holds which port. Nothing else on this machine is asked to keep away, so each port is tried first."""

    def __init__(self, first_port: int, count: int) -> None:
        self.ports = tuple(range(first_port, first_port + count))
        self._holders: dict[int, InstanceId] = {}
        self._planned: dict[InstanceId, int] = {}

    @property
    def planned_bytes(self) -> int:
        """Memory that was planned for all instances that hold a port."""
        return sum(self._planned.values())

    def take(self, instance: InstanceId, planned_bytes: int = 0) -> int:
        """A free port for ``instance``, which will need ``planned_bytes`` of memory. Raises NoSlot."""
        port, foreign = choose_port(self.ports, self._holders, is_port_free)
        if port is None:
            raise NoSlot(_explain(self.ports, self._holders, foreign))
        self._holders[port] = instance
        self._planned[instance] = planned_bytes
        return port

    def free(self, instance: InstanceId) -> None:
        """Give back what ``instance`` holds, if anything."""
        for port in [port for port, holder in self._holders.items() if holder == instance]:
            del self._holders[port]
        self._planned.pop(instance, None)


def choose_port(
    ports: Sequence[int], held: Collection[int], is_free: Callable[[int], bool]
) -> tuple[int | None, list[int]]:
    """The first port that is neither held nor taken by a foreign program, and the foreign ones met on the way."""
    foreign: list[int] = []
    for port in ports:
        if port in held:
            continue
        if is_free(port):
            return port, foreign
        foreign.append(port)
    return None, foreign


def is_port_free(port: int) -> bool:
    """Whether a server could listen on the loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _explain(ports: Sequence[int], held: dict[int, InstanceId], foreign: Sequence[int]) -> str:
    parts = [f"All {len(ports)} slots ({ports[0]}-{ports[-1]}) are in use:" if ports else "There are no slots:"]
    if held:
        parts.append(", ".join(f"{port} by {instance}" for port, instance in sorted(held.items())) + ".")
    if foreign:
        parts.append(f"Taken by other programs: {', '.join(map(str, foreign))}.")
    parts.append("Stop a model, raise SLOT_COUNT, or move SLOT_FIRST_PORT.")
    return " ".join(parts)
