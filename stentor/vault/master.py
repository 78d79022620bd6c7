"""The master key: given by the operator, or a file beside the database that only its owner can read."""

import base64
import binascii
import hashlib
import os
from pathlib import Path

from stentor.core.errors import StentorError
from stentor.core.files import sync_folder
from stentor.vault.settings import VaultSettings

KEY_BYTES = 32


class MasterKey:
    """32 secret bytes, and a public name for them: ``key_id`` tells two keys apart and reveals neither."""

    __slots__ = ("key_id", "secret")

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.key_id = hashlib.sha256(b"stentor master key id\0" + secret).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"MasterKey({self.key_id})"


def parse_master_key(text: str, origin: str) -> MasterKey:
    """The key in ``text``: 64 hex digits, or base64 (plain or URL-safe) of 32 bytes. Never repeats the text."""
    text = text.strip()
    try:
        if len(text) == 2 * KEY_BYTES:
            return MasterKey(bytes.fromhex(text))
        padded = text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4)
        secret = base64.b64decode(padded, validate=True)
    except (ValueError, binascii.Error):
        secret = b""
    if len(secret) != KEY_BYTES:
        raise StentorError(
            f"The master key in {origin} isn't 64 hex digits or base64 of 32 bytes (it has {len(text)} characters). "
            "`openssl rand -hex 32` makes one; for existing data the old key is needed."
        )
    return MasterKey(secret)


def find_master_key(settings: VaultSettings) -> MasterKey | None:
    """The key that was given or lies in the key file, or None if there is neither."""
    if settings.master_key:
        return parse_master_key(settings.master_key, "STENTOR_MASTER_KEY")
    return read_key_file(settings.key_file)


def read_key_file(path: Path) -> MasterKey | None:
    """The key in a file, or None if there is no such file. Raises StentorError if it can't be read."""
    try:
        text = path.read_text("ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StentorError(f"Can't read the master key in {path}: {error}. Restore that file.") from error
    return parse_master_key(text, str(path))


def make_master_key(path: Path) -> MasterKey:
    """A new key in a new file of mode 0600, on disk before it is used. Raises StentorError if it can't be written."""
    key = MasterKey(os.urandom(KEY_BYTES))
    write_key_file(path, key)
    return key


def write_key_file(path: Path, key: MasterKey) -> None:
    """Put ``key`` into a new file of mode 0600, on disk on return. Raises StentorError, also if the file exists."""
    draft = path.with_name(path.name + ".new")
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, key.secret.hex().encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # Whole or not at all, and never over an older one: half a key would lock the next start out.
        os.link(draft, path)
        draft.unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise StentorError(
            f"Can't write the master key to {path}: {error.strerror}. Make its directory writable, or give the key "
            "in STENTOR_MASTER_KEY."
        ) from error
