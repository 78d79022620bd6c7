"""Slowing down whoever guesses: each failure makes the next try wait longer, and old ones are forgotten."""

import ipaddress
import math
from collections.abc import Sequence
from typing import Any

from stentor.core.clock import Clock
from stentor.core.errors import Refused

FREE_TRIES = 4
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 300.0
FORGET_S = 900.0
# For one account from everywhere: who guesses from thousands of places is slowed down, and whoever owns it waits at
# most this long at a place where they have never signed in.
ACCOUNT_FREE_TRIES = 50
ACCOUNT_LONGEST_WAIT_S = 30.0
NAMES_MAX = 20_000


class Slowdown:
    """Failures by name, such as an address. A try counts as failed until it is forgiven, so many at once count, too."""

    def __init__(self, clock: Clock, free_tries: int = FREE_TRIES, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        self._clock = clock
        self._free_tries = free_tries
        self._longest_wait_s = longest_wait_s
        self._failures: dict[str, tuple[int, float]] = {}
        self._forgiven: dict[tuple[str, str], float] = {}

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
        _cut(self._failures)

    def forgive(self, names: Sequence[str]) -> None:
        """The try was good: the failures before it are forgotten."""
        for name in names:
            self._failures.pop(name, None)

    def forgive_place(self, place: str, name: str) -> None:
        """The try was good: the failures of all who are at ``place`` are forgotten, too.

        Once in a while only for each ``name``, or whoever has an account of their own could guess at others' for ever.
        """
        now_s = self._clock.monotonic_s()
        last_s = self._forgiven.pop((place, name), None)
        if last_s is None or now_s - last_s > FORGET_S:
            self._failures.pop(place, None)
            last_s = now_s
        elif place in self._failures:
            count, then_s = self._failures[place]
            self._failures[place] = (count - 1, then_s)
        self._forgiven[place, name] = last_s
        _cut(self._forgiven)

    def _wait_s(self, name: str, now_s: float) -> float:
        count, last_s = self._failures.get(name, (0, 0.0))
        if now_s - last_s > FORGET_S:
            self._failures.pop(name, None)
            return 0.0
        if count < self._free_tries:
            return 0.0
        wait_s = min(math.ldexp(FIRST_WAIT_S, min(count - self._free_tries, 20)), self._longest_wait_s)
        return max(0.0, last_s + wait_s - now_s)


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
        _cut(self._seen)


def _cut(known: dict[Any, Any]) -> None:
    """Forget the oldest entries of what strangers could make grow."""
    while len(known) > NAMES_MAX:
        del known[next(iter(known))]


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
