"""Accounts in memory: a user, a project and a key with everything that limits them, ready to be asked quickly."""

import msgspec

from stentor.accounting.meters import Gauge, Meter, Minute, Pace
from stentor.core.ids import ProjectId, TierId, UserId
from stentor.core.principal import Principal


class UserTerms(msgspec.Struct, frozen=True):
    """What a user's tier allows, over all keys; None: no limit. ``prepaid``: requests are paid from the balance."""

    id: UserId
    tier_id: TierId
    active: bool
    prepaid: bool
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None


class KeyTerms(msgspec.Struct, frozen=True):
    """What one key allows; None: nothing beyond the tier. ``ends_us``: when it stops working.

    ``line_id`` is whose name its limits are counted under, if not its own: that of the first key that it replaces.
    """

    principal: Principal
    ends_us: int | None
    token_limit: int | None
    spending_limit_nano: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    budget_day_nano: int | None = None
    budget_month_nano: int | None = None
    line_id: str = ""

    def budgets(self) -> dict[str, int]:
        """The key's budgets by window."""
        both = {"day": self.budget_day_nano, "month": self.budget_month_nano}
        return {window: limit for window, limit in both.items() if limit is not None}


def _minute(limit: int | None, unit: str, subject: str) -> Minute | None:
    return None if limit is None else Minute(limit, unit, subject)


def _relimit(window: Minute | None, limit: int | None, unit: str, subject: str) -> Minute | None:
    if window is None or limit is None:
        return _minute(limit, unit, subject)
    window.limit = limit
    return window


def _remeter(meter: Meter | None, limit: int | None, fresh: Meter | None) -> Meter | None:
    if limit is None:
        return None
    if meter is None:
        return fresh
    meter.limit = limit
    return meter


class UserAccount:
    """A user's limits and balance, shared by all their keys. ``balance.limit`` is what was ever paid in."""

    __slots__ = ("balance", "gauge", "requests", "terms", "tokens")

    def __init__(self, terms: UserTerms, balance: Meter) -> None:
        self.terms = terms
        self.balance = balance
        self.gauge = Gauge(terms.concurrency, terms.id)
        self.requests = _minute(terms.requests_per_minute, "requests", terms.id)
        self.tokens = _minute(terms.tokens_per_minute, "tokens", terms.id)

    def change(self, terms: UserTerms) -> None:
        """Take on new terms; what was counted stays counted."""
        self.terms = terms
        self.gauge.limit = terms.concurrency
        self.requests = _relimit(self.requests, terms.requests_per_minute, "requests", terms.id)
        self.tokens = _relimit(self.tokens, terms.tokens_per_minute, "tokens", terms.id)


class ProjectAccount:
    """A project's budgets by window."""

    __slots__ = ("active", "budgets", "id")

    def __init__(self, project_id: ProjectId, active: bool, budgets: dict[str, Meter]) -> None:
        self.id = project_id
        self.active = active
        self.budgets = budgets


class KeyAccount:
    """A key with all that applies to a request made with it, gathered once so that a request walks short tuples."""

    __slots__ = (
        "budgets",
        "gauge",
        "money",
        "pace",
        "project",
        "quota",
        "request_windows",
        "requests",
        "spending",
        "terms",
        "token_windows",
        "tokens",
        "user",
    )

    def __init__(
        self,
        terms: KeyTerms,
        user: UserAccount,
        project: ProjectAccount,
        used: tuple[int, int],
        per_second: float,
        budgets: dict[str, Meter] | None = None,
    ) -> None:
        """``used``: tokens and nano-USD that count against the key's own limits so far; ``budgets`` its own ones."""
        self.terms = terms
        self.user = user
        self.project = project
        key_id = terms.line_id or terms.principal.key_id
        self.gauge = Gauge(terms.concurrency, key_id)
        self.requests = _minute(terms.requests_per_minute, "requests", key_id)
        self.tokens = _minute(terms.tokens_per_minute, "tokens", key_id)
        self.pace = Pace(per_second) if per_second > 0 else None
        self.quota: Meter | None = None
        if terms.token_limit is not None:
            self.quota = Meter("quota_exceeded", "key_tokens", key_id, terms.token_limit, used[0])
        self.spending: Meter | None = None
        if terms.spending_limit_nano is not None:
            self.spending = Meter("spending_limit", "key_spending", key_id, terms.spending_limit_nano, used[1])
        self.budgets = budgets or {}
        self.gather()

    def change(self, terms: KeyTerms, fresh: dict[tuple[str, str], Meter]) -> None:
        """Take on new terms; what was counted stays counted. ``fresh``: meters of new limits by kind and window."""
        self.terms = terms
        self.gauge.limit = terms.concurrency
        self.requests = _relimit(self.requests, terms.requests_per_minute, "requests", self.gauge.subject)
        self.tokens = _relimit(self.tokens, terms.tokens_per_minute, "tokens", self.gauge.subject)
        self.quota = _remeter(self.quota, terms.token_limit, fresh.get(("key_tokens", "none")))
        self.spending = _remeter(self.spending, terms.spending_limit_nano, fresh.get(("key_spending", "none")))
        budgets = {}
        for window, limit in terms.budgets().items():
            meter = _remeter(self.budgets.get(window), limit, fresh.get(("key_budget", window)))
            if meter is not None:
                budgets[window] = meter
        self.budgets = budgets
        self.gather()

    def join(self, other: "KeyAccount") -> None:
        """Have all limits together with another key of the line."""
        self.gauge, self.requests, self.tokens, self.pace = other.gauge, other.requests, other.tokens, other.pace
        self.quota, self.spending, self.budgets = other.quota, other.spending, other.budgets
        self.gather()

    def gather(self) -> None:
        """Rebuild the tuples; to be called when the user's or the project's account changed."""
        self.request_windows = tuple(w for w in (self.user.requests, self.requests) if w is not None)
        self.token_windows = tuple(w for w in (self.user.tokens, self.tokens) if w is not None)
        money: list[Meter] = [self.user.balance] if self.user.terms.prepaid else []
        if self.spending is not None:
            money.append(self.spending)
        money.extend(self.budgets[window] for window in sorted(self.budgets))
        money.extend(self.project.budgets[window] for window in sorted(self.project.budgets))
        self.money = tuple(money)
