"""A new master key in place of the old one, as files: staged beside it, then put in its place.

Between the two, one transaction wraps all data keys with the new key. A start that finds that transaction done and the
exchange not finishes it. The old key is kept under its own name, since older backups need it.
"""

import contextlib
import os
from pathlib import Path

from stentor.core.files import sync_folder
from stentor.vault.master import MasterKey, read_key_file, write_key_file


def next_file(key_file: Path) -> Path:
    """Where the new key lies until it is the key."""
    return key_file.with_name(key_file.name + ".next")


def old_file(key_file: Path, key_id: str) -> Path:
    """Where a key is kept that was replaced."""
    return key_file.with_name(f"{key_file.name}.{key_id}.old")


def stage_key(key_file: Path, key: MasterKey) -> None:
    """Put the new key on disk beside the old one. Raises StentorError if it can't be written.

    One that was staged before is kept: if the database couldn't say whether it took it, it may be the key.
    """
    staged = next_file(key_file)
    earlier = read_key_file(staged)
    if earlier is not None:
        os.replace(staged, old_file(key_file, earlier.key_id))
    write_key_file(staged, key)


def install_key(key_file: Path) -> Path | None:
    """The staged key becomes the key; returns where the old one is kept, None if there was none."""
    old = read_key_file(key_file)
    kept = None if old is None else old_file(key_file, old.key_id)
    if kept is not None:
        with contextlib.suppress(FileExistsError):
            os.link(key_file, kept)
    os.replace(next_file(key_file), key_file)
    sync_folder(key_file.parent)
    return kept


def finish_exchange(key_file: Path, wanted_key_id: str) -> MasterKey | None:
    """The key that ``wanted_key_id`` names, if it was staged and never put in place; now it is."""
    key = read_key_file(next_file(key_file))
    if key is None or key.key_id != wanted_key_id:
        return None
    install_key(key_file)
    return key
