"""The values of this package: plain, immutable, as they lie in the database."""

import msgspec

from stentor.core.ids import KeyId, ProjectId, TierId, UserId


class Tier(msgspec.Struct, frozen=True):
    """Limits of all users of a tier, each over all keys; None: no limit. ``prepaid``: calls are paid from a balance."""

    id: TierId
    name: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    prepaid: bool


class User(msgspec.Struct, frozen=True):
    """A person or program that owns keys. ``role`` is ``user`` or ``admin``."""

    id: UserId
    name: str
    email: str | None
    role: str
    tier_id: TierId
    active: bool
    password_temporary: bool
    created_us: int


class Project(msgspec.Struct, frozen=True):
    """A team's purse: keys belong to exactly one. ``personal`` ones are made with their user."""

    id: ProjectId
    name: str
    owner_id: UserId
    personal: bool
    active: bool
    created_us: int


class KeyLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What narrows one key, with those that replace it, beyond its user's tier; None: nothing. ``token_limit`` and
    spending are for their lifetime.

    Budgets in nano-USD begin anew with each day or month, UTC.
    """

    token_limit: int | None = None
    spending_limit_nano: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    budget_day_nano: int | None = None
    budget_month_nano: int | None = None


class ApiKey(msgspec.Struct, frozen=True):
    """An API key without its text. It works until ``expires_us``, ``grace_until_us`` or ``revoked_us`` has come.

    Keys that replaced one another are a line, named by its first one (``line_id``): they have their limits together.
    """

    id: KeyId
    name: str
    hint: str
    user_id: UserId
    project_id: ProjectId
    scopes: tuple[str, ...]
    models: tuple[str, ...]
    endpoints: tuple[str, ...]
    limits: KeyLimits
    expires_us: int | None
    rotated_from: KeyId | None
    grace_until_us: int | None
    revoked_us: int | None
    created_us: int
    line_id: KeyId

    def ends_us(self) -> int | None:
        """When the key stops working, if that is known."""
        ends = [end for end in (self.expires_us, self.grace_until_us, self.revoked_us) if end is not None]
        return min(ends) if ends else None

    def is_valid(self, now_us: int) -> bool:
        """Whether the key works at ``now_us``."""
        end = self.ends_us()
        return end is None or now_us < end
