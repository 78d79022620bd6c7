"""Data keys, each wrapped by the master key (ChaCha20-Poly1305, RFC 8439) and bound to its row.

What is stored is sealed with data keys, so a new master key means wrapping a handful of keys anew; the pepper of the
API keys' hashes is a data key too and stays as it is.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from sqlalchemy import Connection

from stentor.core.errors import StentorError
from stentor.core.ids import new_uuid7
from stentor.vault import table
from stentor.vault.exchange import finish_exchange, old_file
from stentor.vault.master import KEY_BYTES, MasterKey, find_master_key, make_master_key
from stentor.vault.settings import VaultSettings

NONCE_BYTES = 12
PEPPER = "api_key_pepper"
SECRETS = "secrets"
RECEIPT_SALT = "receipt_salt"
PURPOSES = (PEPPER, SECRETS, RECEIPT_SALT)


def seal(key: bytes, plain: bytes, place: str) -> bytes:
    """Nonce and ciphertext of ``plain``; opens only at the same ``place`` (``table/row/key id``)."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, place.encode())


def unseal(key: bytes, sealed: bytes, place: str) -> bytes:
    """What :func:`seal` hid. Raises cryptography's InvalidTag for another key, another place or changed bytes."""
    return ChaCha20Poly1305(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place.encode())


class Keyring:
    """The unwrapped data keys of a running server."""

    def __init__(self, keys: dict[str, tuple[str, bytes]], master_key_id: str) -> None:
        self._keys = keys
        self._current = {purpose: key_id for key_id, (purpose, _) in keys.items()}
        self.master_key_id = master_key_id

    def __repr__(self) -> str:
        return f"Keyring(master_key_id={self.master_key_id!r}, keys={len(self._keys)})"

    @classmethod
    def open(cls, connection: Connection, settings: VaultSettings, now_us: int) -> "Keyring":
        """Unwrap all data keys; on the first start make the master key (if none is given) and the data keys.

        Runs inside a write transaction. Raises StentorError, and changes nothing, when the master key is missing or
        another one than the data was sealed with.
        """
        rows = table.list_data_keys(connection)
        master = find_master_key(settings)
        if master is None:
            if rows:
                raise _missing(settings, rows[0].master_key_id)
            master = make_master_key(settings.key_file)
        if rows and not settings.master_key and master.key_id != rows[0].master_key_id:
            master = finish_exchange(settings.key_file, rows[0].master_key_id) or master
        keys = {row.id: (row.purpose, _unwrap(master, row, settings)) for row in rows}
        present = {row.purpose for row in rows if row.retired_us is None}
        for purpose in PURPOSES:
            if purpose not in present:
                key_id, secret = _add(connection, master, purpose, now_us)
                keys[key_id] = (purpose, secret)
        return cls(keys, master.key_id)

    def pepper(self) -> bytes:
        """The 32-byte secret of the keyed hash of API keys."""
        return self._keys[self._current[PEPPER]][1]

    def receipt_salt(self) -> bytes:
        """The 32-byte secret behind the salts of receipts."""
        return self._keys[self._current[RECEIPT_SALT]][1]

    def rewrap(self, connection: Connection, master: MasterKey) -> int:
        """Wrap every data key with another master key, in a write transaction; returns how many.

        Raises StentorError, and changes nothing, for a data key that this server hasn't opened.
        """
        rows = table.list_data_keys(connection)
        for row in rows:
            entry = self._keys.get(row.id)
            if entry is None:
                raise StentorError(f"Data key {row.id} isn't one that this server has opened. Restart it, try again.")
            wrapped = seal(master.secret, entry[1], _place(row.id, master))
            table.rewrap_data_key(connection, row.id, master.key_id, wrapped)
        return len(rows)

    def seal(self, plain: bytes, table_name: str, row_id: str) -> tuple[str, bytes]:
        """The data key's id and the sealed bytes, bound to their table and row."""
        key_id = self._current[SECRETS]
        return key_id, seal(self._keys[key_id][1], plain, f"{table_name}/{row_id}/{key_id}")

    def unseal(self, key_id: str, sealed: bytes, table_name: str, row_id: str) -> bytes:
        """What was sealed at this table and row. Raises StentorError if it was moved, changed, or its key is gone."""
        entry = self._keys.get(key_id)
        try:
            if entry is None:
                raise InvalidTag
            return unseal(entry[1], sealed, f"{table_name}/{row_id}/{key_id}")
        except InvalidTag:
            raise StentorError(
                f"The secret {row_id} in {table_name} can't be opened with data key {key_id}: it was changed or "
                "copied from elsewhere. Set it again."
            ) from None


def _place(key_id: str, master: MasterKey) -> str:
    return f"data_keys/{key_id}/{master.key_id}"


def _unwrap(master: MasterKey, row: table.DataKeyRow, settings: VaultSettings) -> bytes:
    where = "STENTOR_MASTER_KEY" if settings.master_key else str(settings.key_file)
    if row.master_key_id != master.key_id:
        kept = old_file(settings.key_file, row.master_key_id)
        hint = f" It is kept in {kept}." if kept.exists() else ""
        raise StentorError(
            f"The master key in {where} is {master.key_id}, but this database was sealed with master key "
            f"{row.master_key_id}. Nothing was changed: start again with that key.{hint}"
        )
    try:
        return unseal(master.secret, row.wrapped, _place(row.id, master))
    except InvalidTag:
        raise StentorError(
            f"Data key {row.id} in the database was altered and can't be opened with master key {master.key_id}. "
            "Restore a backup."
        ) from None


def _add(connection: Connection, master: MasterKey, purpose: str, now_us: int) -> tuple[str, bytes]:
    key_id, secret = new_uuid7(), os.urandom(KEY_BYTES)
    values = {
        "id": key_id,
        "purpose": purpose,
        "master_key_id": master.key_id,
        "wrapped": seal(master.secret, secret, _place(key_id, master)),
        "created_us": now_us,
        "retired_us": None,
    }
    table.add_data_key(connection, values)
    return key_id, secret


def _missing(settings: VaultSettings, master_key_id: str) -> StentorError:
    return StentorError(
        f"This database was sealed with master key {master_key_id}, and that key is missing: STENTOR_MASTER_KEY is "
        f"empty and {settings.key_file} doesn't exist. Restore the file or give the key; a new one can't open the data."
    )
