"""How the receipt log is: what waits to be numbered, whether it holds what it should, when it was last signed."""

import base64
from typing import NamedTuple

from stentor.core.clock import Clock
from stentor.core.errors import Refused
from stentor.receipts import table
from stentor.receipts.canonical import NotCanonical, leaf_hash
from stentor.receipts.log import ReceiptLog, Store
from stentor.receipts.office import ReceiptOffice

COUNTED_MOST = 100_000
LATE_S = 60.0
LOOKED_AT = 256  # leaves that are made anew, the newest


class Check(NamedTuple):
    """One thing that was looked at; ``step`` is what to do where it isn't ``ok``."""

    name: str
    ok: bool
    text: str
    step: str = ""


class LogHealth:
    """``numbering``: whether the sequencer runs, so that nothing should wait for long."""

    def __init__(self, store: Store, receipt_log: ReceiptLog, office: ReceiptOffice, clock: Clock) -> None:
        self._store = store
        self._log = receipt_log
        self._office = office
        self._clock = clock
        self.numbering = False

    async def waiting(self) -> table.Waiting:
        """What is to become leaves, at most :data:`COUNTED_MOST`, and when the first of it was settled."""
        mark = self._log.row.event_mark
        return await self._store.read(lambda connection: table.count_waiting(connection, mark, COUNTED_MOST))

    async def examine(self) -> list[Check]:
        """Everything there is to look at, in the order in which one would."""
        await self._log.refresh()
        return [await self._lag(), *await self._content(), await self._checkpoint(), self._keys()]

    async def _lag(self) -> Check:
        name, row = "receipt log", self._log.row
        count, first_us = await self.waiting()
        who = "this server numbers" if self._log.is_leading else "another node numbers"
        text = f"{row.size} entries under {row.origin}, {who}"
        if not count:
            return Check(name, True, f"{text}, nothing waits.")
        age_s = 0.0 if first_us is None else (self._clock.now_us() - first_us) / 1e6
        told = f"{text}, {count} wait"
        if not self.numbering:
            return Check(name, True, f"{told} for the server to run.")
        if age_s <= LATE_S:
            return Check(name, True, f"{told}.")
        step = "Look for 'sequencer' in the server's log; answers and charges aren't held up by it."
        return Check(name, False, f"{told}, the first for {age_s:.0f} s.", step)

    async def _content(self) -> list[Check]:
        """Whether the newest leaves are what their events and receipts say, and none is without a place."""
        row = self._log.row
        name = "receipt entries"
        start = max(0, row.size - LOOKED_AT)
        step = "Keep a copy of the data folder, and restore a backup: the log then begins anew, and says so."
        try:
            entries = await self._office.entries(row, start, row.size, None)
            held = await self._store.read(lambda c: table.count_leaves(c, row.id, start, row.size))
        except Refused as error:
            return [Check(name, False, error.message, step)]
        wrong = [entry["index"] for entry in entries if entry["content"] and _differs(entry)]
        if wrong:
            return [
                Check(name, False, f"{len(wrong)} of the newest entries aren't what was logged: {wrong[:5]}.", step)
            ]
        if held != row.size - start:
            return [Check(name, False, f"Of the newest {row.size - start} entries {held} are known.", step)]
        return [Check(name, True, f"The newest {held} entries are what was logged.")]

    async def _checkpoint(self) -> Check:
        name, row, shown = "receipt checkpoint", self._log.row, self._log.anchor
        if shown is None:
            return Check(name, True, "None was shown yet.")
        text = f"The last one shown has {shown.size} entries of {shown.origin}"
        signed_us = self._log.signed_us
        if signed_us:
            text += f", signed {(self._clock.now_us() - signed_us) / 1e6:.0f} s ago"
        behind = shown.origin != row.origin or shown.size < row.size
        since_us = self._log.unsigned_us
        late = since_us != 0 and (self._clock.now_us() - since_us) / 1e6 > LATE_S
        if self.numbering and behind and late:
            return Check(name, False, f"{text}; the log has {row.size}.", "Look for 'sequencer' in the server's log.")
        return Check(name, True, f"{text}.")

    def _keys(self) -> Check:
        name, keys = "receipt keys", self._office.keys
        try:
            receipt, _ = keys.signer()
        except Refused as error:
            return Check(name, False, error.message, "Then restart the server.")
        if not keys.checkpoint_signers(self._clock.now_us()):
            return Check(
                name, False, "There is no key for checkpoints.", "Make one: POST /admin/api/receipts/rotate-key"
            )
        return Check(name, True, f"{receipt} signs receipts, {keys.current('checkpoint').id} checkpoints.")


def _differs(entry: dict[str, object]) -> bool:
    content = entry["content"]
    assert isinstance(content, dict)
    try:
        return base64.b64encode(leaf_hash(content)).decode() != entry["leaf_hash"]
    except NotCanonical:
        return True
