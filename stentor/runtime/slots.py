"""The ports that engines may serve on: a fixed row, one per process."""

import socket
from collections.abc import Callable, Collection, Sequence

from stentor.core.errors import StentorError
from stentor.core.ids import InstanceId

LOOPBACK = "127.0.0.1"


class NoSlot(StentorError):
    """Every slot port is in use, by our engines or by other programs; the text says which."""


def is_port_free(port: int) -> bool:
    """Whether a server could listen on the loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


class Slots:
    """Who holds which port, and how much memory is planned for whom.

    Nothing else on this machine is asked to keep away, so each port is tried first with ``is_free``.
    """

    def __init__(self, first_port: int, count: int, is_free: Callable[[int], bool] = is_port_free) -> None:
        self.ports = tuple(range(first_port, first_port + count))
        self._is_free = is_free
        self._holders: dict[int, InstanceId] = {}
        self._planned: dict[InstanceId, int] = {}
        self._reserved: dict[int, InstanceId] = {}

    @property
    def planned_bytes(self) -> int:
        """Memory that was planned for all instances that hold a port."""
        return sum(self._planned.values())

    @property
    def holders(self) -> dict[int, InstanceId]:
        """Who holds which port now."""
        return self._holders

    def planned_for(self, instance: InstanceId) -> int:
        """Memory that was planned for ``instance``; 0 where it holds no port."""
        return self._planned.get(instance, 0)

    def plan_more(self, instance: InstanceId, planned_bytes: int) -> None:
        """``instance`` turned out to need more than was planned."""
        if instance in self._planned:
            self._planned[instance] = max(self._planned[instance], planned_bytes)

    def reserve(self, port: int, instance: InstanceId) -> None:
        """Keep ``port`` for ``instance`` alone until it is released."""
        self._reserved[port] = instance

    def unreserve(self, instance: InstanceId) -> None:
        """Give up what is kept for ``instance``."""
        self._reserved = {port: holder for port, holder in self._reserved.items() if holder != instance}

    def count_free(self, instance: InstanceId) -> int:
        """How many ports ``instance`` could take now; 0 or 1 where one is kept for it."""
        return sum(1 for port in self._choices(instance) if port not in self._holders and self._is_free(port))

    def has_reserved(self, instance: InstanceId) -> bool:
        """Whether a port is kept for ``instance``."""
        return instance in self._reserved.values()

    def take(self, instance: InstanceId, planned_bytes: int = 0) -> int:
        """A free port for ``instance``, which will need ``planned_bytes`` of memory. Raises NoSlot."""
        port, _foreign = choose_port(self._choices(instance), self._holders, self._is_free)
        if port is None:
            raise NoSlot(self.explain())
        self._holders[port] = instance
        self._planned[instance] = planned_bytes
        return port

    def free(self, instance: InstanceId) -> None:
        """Give back what ``instance`` holds, if anything."""
        for port in [port for port, holder in self._holders.items() if holder == instance]:
            del self._holders[port]
        self._planned.pop(instance, None)

    def _choices(self, instance: InstanceId) -> list[int]:
        own = [port for port, holder in self._reserved.items() if holder == instance]
        return own or [port for port in self.ports if port not in self._reserved]

    def explain(self) -> str:
        """Who holds the ports, for operators."""
        ports = self.ports
        foreign = [port for port in ports if port not in self._holders and not self._is_free(port)]
        parts = [f"All {len(ports)} slots ({ports[0]}-{ports[-1]}) are in use:" if ports else "There are no slots:"]
        if self._holders:
            parts.append(", ".join(f"{port} by {instance}" for port, instance in sorted(self._holders.items())) + ".")
        if foreign:
            parts.append(f"Taken by other programs: {', '.join(map(str, foreign))}.")
        parts.append("Stop a model, raise SLOT_COUNT, or move SLOT_FIRST_PORT.")
        return " ".join(parts)


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
