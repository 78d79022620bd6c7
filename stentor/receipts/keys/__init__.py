"""The keys that sign receipts and checkpoints: Ed25519, sealed in the vault, each with the time it is valid for."""

import base64
import hashlib
from typing import Literal, NamedTuple, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from stentor.core.errors import Refused, StentorError
from stentor.receipts.canonical import from_base64url, to_base64url
from stentor.receipts.keys import table
from stentor.receipts.settings import ReceiptSettings

Purpose = Literal["receipt", "checkpoint"]
PURPOSES: tuple[Purpose, ...] = ("receipt", "checkpoint")
# How long a log still signs with the key before the current one: who trusts that one learns the new one by it.
GRACE_US = 30 * 86_400 * 1_000_000
# A key ends a little after the next one begins: what is being signed gets done, and other nodes learn of it.
OVERLAP_US = 60 * 1_000_000
_TABLE = "signing_keys"


class Seals(Protocol):
    """What the vault does for keys."""

    def seal(self, plain: bytes, table_name: str, row_id: str) -> tuple[str, bytes]:
        """The data key's id and the sealed bytes."""
        ...

    def unseal(self, key_id: str, sealed: bytes, table_name: str, row_id: str) -> bytes:
        """What was sealed at this table and row."""
        ...


class PublicKey(NamedTuple):
    """The half that anyone may know. Times are UTC microseconds; ``until_us`` None: still in use."""

    id: str
    purpose: Purpose
    public: bytes
    from_us: int
    until_us: int | None

    def pem(self) -> str:
        """SubjectPublicKeyInfo (RFC 8410) as PEM."""
        key = Ed25519PublicKey.from_public_bytes(self.public)
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def jwk(self) -> dict[str, str]:
        """RFC 8037."""
        return {"kty": "OKP", "crv": "Ed25519", "x": to_base64url(self.public)}


class Keys:
    """All signing keys of a server. Private halves of old receipt keys are kept sealed and never used again."""

    def __init__(self, publics: list[PublicKey], private: dict[str, Ed25519PrivateKey]) -> None:
        self._publics = publics
        self._private = private

    def __repr__(self) -> str:
        return f"Keys({len(self._publics)})"

    @classmethod
    def open(cls, connection: Connection, seals: Seals, settings: ReceiptSettings, now_us: int) -> "Keys":
        """Load the keys; make those that are missing, and take over the one in the settings. In a write transaction.

        Raises StentorError for a key in the settings that can't be used.
        """
        rows = table.list_keys(connection)
        private = {row.id: _unseal(seals, row) for row in rows if row.sealed}
        given = given_key(settings)
        if given is not None:
            key_id = settings.key_id or default_key_id(given.public_key().public_bytes_raw())
            private[key_id] = given
        keys = cls([_public(row) for row in rows], private)
        for purpose in PURPOSES:
            if purpose == "receipt" and given is not None:
                keys._adopt(connection, given, settings.key_id, now_us)
                continue
            current = keys._find_current(purpose)
            if current is None or current.id not in private:  # it stood in the settings, and doesn't any more
                keys._make(connection, seals, purpose, now_us)
        return keys

    def _adopt(self, connection: Connection, given: Ed25519PrivateKey, key_id: str, now_us: int) -> None:
        public = given.public_key().public_bytes_raw()
        key_id = key_id or default_key_id(public)
        current = self._find_current("receipt")
        if current is not None and (current.id, current.public) == (key_id, public):
            return
        if any(known.id == key_id for known in self._publics):
            raise StentorError(
                f"STENTOR_RECEIPTS_KEY_ID is '{key_id}', which names another or an older key. Receipts say which key "
                "signed them: give every key an id of its own."
            )
        self._replace(connection, PublicKey(key_id, "receipt", public, now_us, None), "", b"")

    def _make(self, connection: Connection, seals: Seals, purpose: Purpose, now_us: int) -> PublicKey:
        private = Ed25519PrivateKey.generate()
        raw = private.public_key().public_bytes_raw()
        made = PublicKey(default_key_id(raw), purpose, raw, now_us, None)
        data_key_id, sealed = seals.seal(private.private_bytes_raw(), _TABLE, made.id)
        self._private[made.id] = private
        self._replace(connection, made, data_key_id, sealed)
        return made

    def _replace(self, connection: Connection, made: PublicKey, data_key_id: str, sealed: bytes) -> None:
        current = self._find_current(made.purpose)
        if current is not None:
            ended = current._replace(until_us=made.from_us + OVERLAP_US)
            table.end_key(connection, ended.id, made.from_us + OVERLAP_US)
            self._publics = [ended if known.id == current.id else known for known in self._publics]
        table.add_key(connection, _values(made, data_key_id, sealed))
        self._publics = [*self._publics, made]

    def rotated(self, connection: Connection, seals: Seals, purpose: Purpose, now_us: int) -> "Keys":
        """The keys with a new one for ``purpose``; old signatures stay valid. In a write transaction."""
        keys = self.reloaded(connection, seals)
        keys._make(connection, seals, purpose, now_us)
        return keys

    def reloaded(self, connection: Connection, seals: Seals) -> "Keys":
        """The keys as the database has them now: another node may have made one."""
        rows = table.list_keys(connection)
        new = {row.id: _unseal(seals, row) for row in rows if row.sealed and row.id not in self._private}
        return Keys([_public(row) for row in rows], {**self._private, **new})

    def _find_current(self, purpose: Purpose) -> PublicKey | None:
        fitting = [key for key in self._publics if key.purpose == purpose and key.until_us is None]
        return fitting[-1] if fitting else None

    def current(self, purpose: Purpose) -> PublicKey:
        """The key that signs now."""
        found = self._find_current(purpose)
        assert found is not None
        return found

    def signer(self) -> tuple[str, Ed25519PrivateKey]:
        """Id and private half of the receipt key. Raises Refused if another node alone has it."""
        current = self.current("receipt")
        private = self._private.get(current.id)
        if private is None:
            raise Refused(
                "internal_error",
                f"The receipt key '{current.id}' stands in another node's settings alone. Give all nodes the same "
                "STENTOR_RECEIPTS_PRIVATE_KEY_B64, or none.",
            )
        return current.id, private

    def checkpoint_signers(self, now_us: int) -> list[Ed25519PrivateKey]:
        """The current checkpoint key, then those that were in use within the last thirty days."""
        fresh = [
            key
            for key in reversed(self._publics)
            if key.purpose == "checkpoint" and (key.until_us is None or now_us - key.until_us < GRACE_US)
        ]
        return [self._private[key.id] for key in fresh if key.id in self._private]

    def publics(self, purpose: Purpose | None = None) -> list[PublicKey]:
        """All public keys, oldest first."""
        return [key for key in self._publics if purpose is None or key.purpose == purpose]


def find_state(connection: Connection) -> tuple[object, ...]:
    """Something that changes when any key in the database does."""
    return table.find_key_state(connection)


def default_key_id(public: bytes) -> str:
    """``key_`` and the first sixteen hex digits of SHA-256 over the key's base64url."""
    return "key_" + hashlib.sha256(base64.urlsafe_b64encode(public)).hexdigest()[:16]


def given_key(settings: ReceiptSettings) -> Ed25519PrivateKey | None:
    """The private key in the settings, or None. Raises StentorError for one that can't be used."""
    if not settings.private_key_b64:
        if settings.public_key_b64:
            raise StentorError(
                "STENTOR_RECEIPTS_PUBLIC_KEY_B64 is set without STENTOR_RECEIPTS_PRIVATE_KEY_B64. Give both, or "
                "neither: then a key is made and kept in the vault."
            )
        return None
    raw = from_base64url(settings.private_key_b64)
    if raw is None or len(raw) not in (32, 64):
        raise StentorError(
            "STENTOR_RECEIPTS_PRIVATE_KEY_B64 isn't base64 of a 32-byte Ed25519 key. Leave it empty to have one made."
        )
    key = Ed25519PrivateKey.from_private_bytes(raw[:32])
    public = key.public_key().public_bytes_raw()
    if settings.public_key_b64 and from_base64url(settings.public_key_b64) != public:
        raise StentorError("STENTOR_RECEIPTS_PUBLIC_KEY_B64 isn't the other half of STENTOR_RECEIPTS_PRIVATE_KEY_B64.")
    return key


def _unseal(seals: Seals, row: table.KeyRow) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seals.unseal(row.data_key_id, row.sealed, _TABLE, row.id))


def _public(row: table.KeyRow) -> PublicKey:
    purpose: Purpose = "checkpoint" if row.purpose == "checkpoint" else "receipt"
    return PublicKey(row.id, purpose, row.public, row.from_us, row.until_us)


def _values(key: PublicKey, data_key_id: str, sealed: bytes) -> dict[str, object]:
    return {**key._asdict(), "data_key_id": data_key_id, "sealed": sealed}
