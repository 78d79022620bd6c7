"""Tiers: the limits that users share by their kind of account."""

from sqlalchemy import Connection

from stentor.core.errors import Refused
from stentor.core.ids import TierId
from stentor.people import table
from stentor.people.values import Tier


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


def set_tier(connection: Connection, tier: Tier, now_us: int) -> Tier | None:
    """Add or replace a tier; returns what was there before."""
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
