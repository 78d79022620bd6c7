"""What the database knows about a key, and what becomes of it in memory: terms and meters."""

from collections.abc import Callable

import msgspec
from sqlalchemy import Connection

from stentor.accounting.accounts import KeyTerms, UserTerms
from stentor.accounting.ledger import Balance, budget_used, find_balance, key_budget_used, used_by_key
from stentor.accounting.meters import WINDOW_S, CalendarMeter, Meter, calendar_window
from stentor.accounting.usage import RecentUse, list_recent
from stentor.core.principal import Principal
from stentor.people.api_keys import find_limits, list_line
from stentor.people.projects import get_project, list_budgets
from stentor.people.tiers import get_tier
from stentor.people.users import get_user
from stentor.people.values import ApiKey, KeyLimits, Project, Tier, User


class Dossier(msgspec.Struct, frozen=True):
    """All that the database knows about a key, read in one snapshot.

    ``limits`` are those of its line: the newest key's; ``line`` are the keys that count against them together.
    """

    key: ApiKey
    limits: KeyLimits
    line: tuple[str, ...]
    user: User
    tier: Tier
    project: Project
    balance: Balance
    key_used: tuple[int, int]
    budgets: dict[str, tuple[int, int]]
    key_budgets: dict[str, int]
    recent: list[RecentUse]
    read_us: int


def user_terms(user: User, tier: Tier) -> UserTerms:
    """A user's limits, from their tier."""
    return UserTerms(
        user.id, tier.id, user.active, tier.prepaid, tier.requests_per_minute, tier.tokens_per_minute, tier.concurrency
    )


def key_terms(key: ApiKey, user: User, limits: KeyLimits) -> KeyTerms:
    """A key's limits, and the caller it stands for."""
    principal = Principal(
        key_id=key.id,
        user_id=key.user_id,
        project_id=key.project_id,
        tier_id=user.tier_id,
        scopes=frozenset(key.scopes),
        models=frozenset(key.models),
        endpoints=frozenset(key.endpoints),
        expires_us=key.ends_us(),
        key_hint=key.hint,
    )
    return KeyTerms(principal, key.ends_us(), line_id=key.line_id, **msgspec.structs.asdict(limits))


def read_dossier(connection: Connection, find: Callable[[Connection], ApiKey | None], now_us: int) -> Dossier | None:
    """The dossier of the key that ``find`` finds, or None."""
    key = find(connection)
    if key is None:
        return None
    user = get_user(connection, key.user_id)
    budgets = {}
    for window, limit_nano in list_budgets(connection, key.project_id).items():
        start = 0 if window == "none" else calendar_window(window, now_us)[0]
        budgets[window] = (limit_nano, budget_used(connection, key.project_id, window, start))
    key_budgets = {
        window: key_budget_used(connection, key.line_id, window, calendar_window(window, now_us)[0])
        for window in ("day", "month")
    }
    is_alone = key.rotated_from is None and key.grace_until_us is None
    return Dossier(
        key=key,
        limits=find_limits(connection, key),
        line=(key.id,) if is_alone else tuple(list_line(connection, key.line_id)),
        user=user,
        tier=get_tier(connection, user.tier_id),
        project=get_project(connection, key.project_id),
        balance=find_balance(connection, user.id),
        key_used=used_by_key(connection, key.line_id),
        budgets=budgets,
        key_budgets=key_budgets,
        recent=list_recent(connection, user.id, now_us - (WINDOW_S + 1) * 1_000_000),
        read_us=now_us,
    )


def budget_meter(subject: str, window: str, limit_nano: int, used: int, now_us: int, kind: str = "") -> Meter:
    """The meter of one budget: of a project, or of another ``kind``."""
    kind = kind or "project_budget"
    if window == "none":
        return Meter("budget_exceeded", kind, subject, limit_nano, used)
    meter = CalendarMeter("budget_exceeded", kind, subject, limit_nano, window, now_us)
    meter.used = used
    return meter
