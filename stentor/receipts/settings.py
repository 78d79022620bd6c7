"""What receipts have to be told."""

from pathlib import Path

import msgspec


class ReceiptSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``origin`` empty: made from the node's name. ``anchor`` is the file that remembers the last checkpoint that was
    shown, outside of the database; ``private_key_b64`` empty: keys are made and kept in the vault.
    """

    anchor: Path
    origin: str = ""
    private_key_b64: str = ""
    public_key_b64: str = ""
    key_id: str = ""

    def __repr__(self) -> str:
        return f"ReceiptSettings(anchor={str(self.anchor)!r}, origin={self.origin!r})"
