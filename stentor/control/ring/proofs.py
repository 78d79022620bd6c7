"""The receipt log as anyone may see it: checkpoints, proofs, tiles of hashes; contents for those they belong to."""

import base64

from stentor.control.ring.reading import number_of, optional_number, text_of, unprocessable
from stentor.core.errors import Refused
from stentor.core.ring import RingAnswer, RingCall
from stentor.receipts.log import LogRow, ReceiptLog
from stentor.receipts.merkle import TILE_WIDTH
from stentor.receipts.office import ReceiptOffice
from stentor.receipts.values import ConsistencyProof, InclusionProof

LEVELS = 7  # of tiles: 2^56 leaves
NEVER_CHANGES = (("Cache-Control", "public, max-age=31536000, immutable"),)


class RingProofs:
    """Every route of the log."""

    def __init__(self, receipt_log: ReceiptLog, office: ReceiptOffice) -> None:
        self._log = receipt_log
        self._office = office

    async def _row(self, call: RingCall) -> LogRow:
        return await self._log.get_row(text_of(call, "log") or "")

    async def checkpoint(self, call: RingCall) -> RingAnswer:
        """The newest checkpoint, of this log or of one before it."""
        row = await self._row(call)
        growing = row.id == self._log.row.id
        signed = await (self._log.checkpoint(fresh=True) if growing else self._log.old_checkpoint(row))
        return RingAnswer(signed.note.encode(), "text/plain; charset=utf-8", (("Cache-Control", "no-cache"),))

    async def inclusion(self, call: RingCall) -> RingAnswer:
        """Where a leaf stands."""
        row = await self._row(call)
        index = optional_number(call, "index")
        if index is None:
            raise unprocessable("missing", ("query", "index"), "Field required", None)
        size = optional_number(call, "size")
        note = None
        if size is None:
            signed = await self._log.checkpoint_of(row.id, min(index + 1, row.size))
            size, note = signed.checkpoint.size, signed.note
        if not index < size <= row.size:
            raise Refused("not_found", f"The log has {row.size} leaves: there is no leaf {index} in a tree of {size}.")
        leaf, path = await self._log.prove_inclusion(row.id, index, size)
        return RingAnswer(InclusionProof(row.origin, index, size, _text(leaf), [_text(node) for node in path], note))

    async def consistency(self, call: RingCall) -> RingAnswer:
        """That one state of the log is the beginning of another."""
        row = await self._row(call)
        first, second = optional_number(call, "first"), optional_number(call, "second")
        if first is None:
            raise unprocessable("missing", ("query", "first"), "Field required", None)
        second = row.size if second is None else second
        if not 0 < first <= second <= row.size:
            raise Refused("not_found", f"The log has {row.size} leaves: it never grew from {first} to {second}.")
        proof = await self._log.prove_consistency(row.id, first, second)
        return RingAnswer(ConsistencyProof(row.origin, first, second, [_text(node) for node in proof]))

    async def tile(self, call: RingCall) -> RingAnswer:
        """256 hashes of a level, fewer at the end, one after the other."""
        row = await self._row(call)
        level, index = (_path_number(call, name) for name in ("level", "index"))
        if level >= LEVELS:
            raise Refused("not_found", f"There are no tiles at level {level}.")
        hashes = await self._log.read_tile(row, level, index)
        whole = len(hashes) == TILE_WIDTH * 32
        return RingAnswer(hashes, "application/octet-stream", NEVER_CHANGES if whole else ())

    async def entries(self, call: RingCall) -> RingAnswer:
        """Leaves with their contents, where these belong to the caller."""
        row = await self._row(call)
        start, limit = number_of(call, "start", 0, 0, 2**53), number_of(call, "limit", 100, 1, 1000)
        end = min(row.size, start + limit)
        everything = "admin" in call.principal.scopes
        owner = None if everything else call.principal.project_id
        found = await self._office.entries(row, start, end, owner) if start < end else []
        return RingAnswer(
            {"origin": row.origin, "size": row.size, "entries": found, "next": end if end < row.size else None}
        )


def _path_number(call: RingCall, name: str) -> int:
    text = call.params[name]
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise unprocessable("int_parsing", ("path", name), "Input should be a valid integer", text)
    return int(text)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
