"""Tiers: the limits that users share by their kind of account."""

import re

from sqlalchemy import Connection

from stentor.core.errors import Refused
from stentor.core.ids import TierId
from stentor.people import table
from stentor.people.values import Tier

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_MOST = 2**53


def list_tiers(connection: Connection) -> list[Tier]:
    """All tiers by name."""
    return [Tier(*row) for row in table.list_tiers(connection)]


def get_tier(connection: Connection, tier_id: TierId) -> Tier:
    """One tier. Raises Refused naming those that exist."""
    row = table.find_tier(connection, tier_id)
    if row is None:
        names = ", ".join(tier.name for tier in list_tiers(connection))
        raise Refused("not_found", f"There is no tier '{tier_id}'; there are {names}.", param="tier")
    return Tier(*row)


KEPT = ("payg", "sub", "admin")


def delete_tier(connection: Connection, tier_id: TierId) -> Tier:
    """Remove a tier that nobody has; returns it. Raises Refused for one in use, and for those that always exist."""
    tier = get_tier(connection, tier_id)
    if tier.id in KEPT:
        raise Refused("conflict", f"The tier '{tier.id}' always exists; change its limits instead.", param="tier")
    count = table.count_users_of_tier(connection, tier.id)
    if count:
        raise Refused("conflict", f"The tier '{tier.id}' has {count} users; move them to another first.", param="tier")
    table.delete_tier(connection, tier.id)
    return tier


def set_tier(connection: Connection, tier: Tier, now_us: int) -> Tier | None:
    """Add or replace a tier; returns what was there before. Raises Refused for a bad one."""
    _check(connection, tier)
    values = {
        "name": tier.name,
        "requests_per_minute": tier.requests_per_minute,
        "tokens_per_minute": tier.tokens_per_minute,
        "concurrency": tier.concurrency,
        "prepaid": tier.prepaid,
    }
    row = table.find_tier(connection, tier.id)
    if row is None:
        table.add_tier(connection, {"id": tier.id, "created_us": now_us, **values})
        return None
    table.update_tier(connection, tier.id, values)
    return Tier(*row)


def _check(connection: Connection, tier: Tier) -> None:
    if not _ID.fullmatch(tier.id):
        raise Refused(
            "invalid_request", f"'{tier.id[:80]}' can't be a tier's id: use letters, digits, . _ -", param="id"
        )
    if not 1 <= len(tier.name.strip()) <= 64:
        raise Refused("invalid_request", "A tier's name has 1 to 64 characters.", param="name")
    for field in ("requests_per_minute", "tokens_per_minute", "concurrency"):
        value = getattr(tier, field)
        if value is not None and not 0 <= value <= _MOST:
            raise Refused("invalid_request", f"{field} must be 0 or more, or null for no limit.", param=field)
    if any(known.name == tier.name and known.id != tier.id for known in list_tiers(connection)):
        raise Refused("conflict", f"There is another tier with the name '{tier.name}'.", param="name")
