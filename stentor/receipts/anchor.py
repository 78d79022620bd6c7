"""The last checkpoint that was shown to anybody, in a file outside of the database.

A database that is older than what was shown has been restored from a backup. Whoever went on with it would sign a
second history; the anchor makes a start notice.
"""

import os
from pathlib import Path

import msgspec

from stentor.core.errors import StentorError
from stentor.core.files import sync_folder


class Anchor(msgspec.Struct, frozen=True):
    """A checkpoint's origin, size and root (hexadecimal)."""

    origin: str
    size: int
    root: str


def read_anchor(path: Path) -> Anchor | None:
    """What the file says; None where there is none. Raises StentorError for one that can't be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Anchor)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise StentorError(
            f"Can't read {path}, which says what the receipt log has shown: {error}. Restore the file; without it "
            "(delete it) the log starts anew under another origin, and its monitors will report that."
        ) from None


def write_anchor(path: Path, anchor: Anchor) -> None:
    """Put it on the disk, whole or not at all. Raises StentorError if it can't be written."""
    draft = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(anchor) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StentorError(
            f"Can't write {path}, without which no checkpoint may be shown: {error.strerror}. "
            "Check the disk and the folder's rights."
        ) from error
