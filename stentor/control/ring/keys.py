"""Changing the keys that sign receipts and checkpoints, for administrators."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from stentor.control.management import Management
from stentor.control.reading import actor_of
from stentor.core.errors import Refused
from stentor.core.operator import Task
from stentor.receipts.keys import Seals
from stentor.receipts.office import ReceiptOffice


class _Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    purpose: Literal["receipt", "checkpoint"] = "receipt"


class ReceiptKeys:
    """One operation: a new key."""

    def __init__(self, office: ReceiptOffice, seals: Seals, management: Management) -> None:
        self._office = office
        self._seals = seals
        self._management = management

    def table(self) -> dict[str, Callable[[Task], Awaitable[Any]]]:
        """The operation by the surface's name."""
        return {"rotate_receipt_key": self.rotate}

    async def rotate(self, task: Task) -> dict[str, Any]:
        """Sign with a new key from now on; returns all public keys."""
        try:
            wanted = msgspec.convert({} if task.body is None else task.body, _Wanted)
        except msgspec.ValidationError as error:
            raise Refused("invalid_request", f"The body can't be used: {error}.") from None
        await self._office.rotate(wanted.purpose, self._seals)
        current = self._office.keys.current(wanted.purpose)
        after = {"purpose": wanted.purpose, "id": current.id}
        await self._management.record(actor_of(task), "receipt_key_rotate", ("signing_key", current.id), after)
        return {"data": self._office.describe_keys(), "next": None}
