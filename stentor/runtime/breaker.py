"""When to try a failed engine again: growing pauses with jitter, and an end to a crash loop."""

from collections import deque
from collections.abc import Callable

import msgspec

from stentor.runtime.settings import RuntimeSettings


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Pauses grow from ``first_s`` to ``max_s``; ``failures`` within ``window_s`` open the breaker for ``open_s``,
    twice as long after each failed trial, at most ``open_max_s``.
    """

    first_s: float = 0.5
    max_s: float = 30.0
    failures: int = 5
    window_s: float = 300.0
    open_s: float = 60.0
    open_max_s: float = 900.0


def choose_policy(settings: RuntimeSettings) -> BreakerPolicy:
    """What the operator set."""
    return BreakerPolicy(
        first_s=settings.backoff_first_s,
        max_s=settings.backoff_max_s,
        failures=settings.breaker_failures,
        window_s=settings.breaker_window_s,
        open_s=settings.breaker_open_s,
    )


class Breaker:
    """Counts the failures of one engine. Open: nobody waits for it; half-open: one trial after the pause."""

    def __init__(self, policy: BreakerPolicy, random: Callable[[], float]) -> None:
        self._policy = policy
        self._random = random
        self._failed_at: deque[float] = deque(maxlen=policy.failures)
        self._opened = 0
        self.is_open = False

    def note_failure(self, now_s: float, permanent: bool) -> float:
        """Count a failure and return the pause before the next try in seconds.

        ``permanent`` failures (no such file) open the breaker at once: trying again at once can't help.
        """
        policy = self._policy
        self._failed_at.append(now_s)
        recent = sum(1 for at in self._failed_at if now_s - at <= policy.window_s)
        # Spread over half to one and a half: engines that fell together must not rise together.
        jitter = 0.5 + self._random()
        if permanent or self.is_open or recent >= policy.failures:
            self.is_open = True
            pause = min(policy.open_s * 2.0**self._opened, policy.open_max_s)
            self._opened += 1
            return pause
        return min(policy.first_s * 2.0 ** (recent - 1), policy.max_s) * jitter

    def note_ready(self) -> None:
        """The engine answered: close the breaker. Its failures still count within the window."""
        self.is_open = False
        self._opened = 0

    def reset(self) -> None:
        """Forget everything: somebody asked for a start explicitly."""
        self.note_ready()
        self._failed_at.clear()
