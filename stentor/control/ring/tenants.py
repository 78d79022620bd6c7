"""What a tenant of the bridge may keep: whoever names a key of their own choosing has paid nothing for the room."""

from collections.abc import Callable

from stentor.core.errors import Refused
from stentor.core.principal import Principal

BRIDGE = "bridge:"
ROOM = {"logs": 100_000, "conversations": 1_000, "templates": 100, "messages": 20_000}


def is_bridged(principal: Principal) -> bool:
    """Whether the caller chose the key."""
    return principal.project_id.startswith(BRIDGE)


class Tenants:
    """Checks bridge tenants against their caps; keys of this server have none."""

    def check_room(self, principal: Principal, kind: str, count: Callable[[], int]) -> None:
        """Raises Refused when a bridge tenant has as many of a kind as it may."""
        if is_bridged(principal) and count() >= ROOM[kind]:
            raise Refused(
                "quota_exceeded",
                f"A tenant without a key of this server may keep {ROOM[kind]} {kind}. Ask the operator for a key.",
            )

    def check_may_issue(self, principal: Principal) -> None:
        """Raises Refused for a bridge tenant: nobody signs for whom nobody knows."""
        if is_bridged(principal):
            raise Refused("insufficient_scope", "Receipts are signed for keys of this server alone.")
