"""What the vault has to be told."""

from pathlib import Path

import msgspec


class VaultSettings(msgspec.Struct, frozen=True):
    """``master_key`` is 64 hex digits or base64 of 32 bytes; empty: the file ``key_file`` holds or will hold it."""

    key_file: Path
    master_key: str = ""

    def __repr__(self) -> str:
        return f"VaultSettings(key_file={str(self.key_file)!r}, master_key={'given' if self.master_key else 'in file'})"
