"""Slowing down whoever guesses: each failure makes the next try wait longer, and old ones are forgotten."""

import ipaddress
import math
from collections.abc import Sequence

from stentor.core.clock import Clock
from stentor.core.errors import Refused

FREE_TRIES = 4
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 300.0
FORGET_S = 900.0
NAMES_MAX = 20_000


class Slowdown:
    """Failures by name, such as an address. A try counts as failed until it is forgiven, so many at once count, too."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: dict[str, tuple[int, float]] = {}

    def enter(self, names: Sequence[str]) -> None:
        """Begin a try. Raises Refused with the time to wait, and then the try counts for nothing."""
        now_s = self._clock.monotonic_s()
        wait_s = max(self._wait_s(name, now_s) for name in names)
        if wait_s > 0:
            raise Refused(
                "rate_limit_exceeded",
                f"Too many failed tries. Wait {wait_s:.0f} s, then try again.",
                retry_after_s=wait_s,
            )
        for name in names:
            count, _ = self._failures.pop(name, (0, 0.0))
            self._failures[name] = (count + 1, now_s)
        while len(self._failures) > NAMES_MAX:
            del self._failures[next(iter(self._failures))]

    def forgive(self, names: Sequence[str]) -> None:
        """The try was good: the failures before it are forgotten."""
        for name in names:
            self._failures.pop(name, None)

    def _wait_s(self, name: str, now_s: float) -> float:
        count, last_s = self._failures.get(name, (0, 0.0))
        if now_s - last_s > FORGET_S:
            self._failures.pop(name, None)
            return 0.0
        if count < FREE_TRIES:
            return 0.0
        return max(0.0, last_s + min(math.ldexp(FIRST_WAIT_S, min(count - FREE_TRIES, 20)), LONGEST_WAIT_S) - now_s)


class FewPerHour:
    """At most so many an hour by name."""

    def __init__(self, clock: Clock, most: int) -> None:
        self._clock = clock
        self._most = most
        self._seen: dict[str, tuple[int, float]] = {}

    def enter(self, name: str) -> None:
        """Count one. Raises Refused when the hour's are used up."""
        now_s = self._clock.monotonic_s()
        count, first_s = self._seen.get(name, (0, now_s))
        if now_s - first_s >= 3600:
            count, first_s = 0, now_s
        if count >= self._most:
            wait_s = first_s + 3600 - now_s
            raise Refused(
                "rate_limit_exceeded", "Too many requests from this address. Try again later.", retry_after_s=wait_s
            )
        self._seen.pop(name, None)
        self._seen[name] = (count + 1, first_s)
        while len(self._seen) > NAMES_MAX:
            del self._seen[next(iter(self._seen))]


def network_of(address: str) -> str:
    """What counts as one place: an IPv4 address, or the /64 that one IPv6 customer has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if parsed.version == 4:
        return address
    mapped = parsed.ipv4_mapped
    return str(mapped or ipaddress.ip_network((parsed, 64), strict=False).network_address)
