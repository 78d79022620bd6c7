"""Whether an upstream is worth asking: a circuit breaker, pure but for what it remembers; the caller holds the clock.

Closed: everybody may ask. Open: nobody, until a pause is over that doubles with each failed trial. Half-open: one
request at a time tries; if it is answered the circuit closes. An upstream that says when to come back (``Retry-After``)
is left alone until then, whatever the state.
"""

from typing import Literal

import msgspec

CircuitState = Literal["closed", "open", "half-open"]


class CircuitPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """``failures`` in a row open the circuit for ``open_s``, twice as long after each failed trial up to
    ``open_max_s``; a wish to be left alone is granted up to ``pause_max_s``.
    """

    failures: int = 5
    open_s: float = 10.0
    open_max_s: float = 300.0
    pause_max_s: float = 3600.0


class Circuit:
    """The circuit of one upstream. Times are seconds of a steady clock."""

    def __init__(self, policy: CircuitPolicy) -> None:
        self._policy = policy
        self._failed = 0
        self._trips = 0
        self._open_until_s: float | None = None
        self._paused_until_s = 0.0
        self._trying = False

    def state(self, now_s: float) -> CircuitState:
        """The state at ``now_s``."""
        if self._open_until_s is None:
            return "closed"
        return "open" if now_s < self._open_until_s else "half-open"

    def allows(self, now_s: float) -> bool:
        """Whether a request may be sent now."""
        if now_s < self._paused_until_s:
            return False
        state = self.state(now_s)
        return state == "closed" or (state == "half-open" and not self._trying)

    def retry_s(self, now_s: float) -> float:
        """Seconds until a request may be sent, as far as is known; 0 if now."""
        until_s = max(self._paused_until_s, self._open_until_s or 0.0)
        return max(0.0, until_s - now_s)

    def begin(self, now_s: float) -> None:
        """A request that was allowed is being sent."""
        if self.state(now_s) == "half-open":
            self._trying = True

    def succeed(self) -> None:
        """An upstream answered as it should."""
        self._failed = self._trips = 0
        self._open_until_s = None
        self._trying = False

    def fail(self, now_s: float) -> None:
        """A request failed, and not by its own fault."""
        policy = self._policy
        state = self.state(now_s)
        self._failed += 1
        # Requests that were under way when the circuit opened tell nothing new.
        if state == "half-open" or (state == "closed" and self._failed >= policy.failures):
            self._open_until_s = now_s + min(policy.open_s * 2.0**self._trips, policy.open_max_s)
            self._trips += 1
        self._trying = False

    def forget(self) -> None:
        """A request ended without a word about the upstream: whoever comes next may try."""
        self._trying = False

    def pause(self, now_s: float, pause_s: float) -> None:
        """The upstream asked to be left alone for so long."""
        until_s = now_s + min(max(pause_s, 0.0), self._policy.pause_max_s)
        self._paused_until_s = max(self._paused_until_s, until_s)

    def invite(self, now_s: float) -> None:
        """The upstream was seen alive: an open circuit needn't wait any longer for its trial."""
        if self._open_until_s is not None:
            self._open_until_s = min(self._open_until_s, now_s)
