"""The bytes behind a receipt: RFC 8785 canonical JSON, its signature, its leaf."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from stentor.receipts.merkle import hash_leaf

PREFIX = "ed25519:"
_UNSIGNED = ("signature", "log")
_UNHASHED = ("signature", "log", "key_id")

Receipt = Mapping[str, Any]


class NotCanonical(Exception):
    """A value that canonical JSON can't carry; the message says which."""


def canonical_json(value: Any) -> bytes:
    """RFC 8785. Raises NotCanonical for what it can't carry (integers beyond 2^53, NaN, lone surrogates)."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError) as error:
        raise NotCanonical(str(error) or type(error).__name__) from None


def signed_bytes(receipt: Receipt) -> bytes:
    """What a receipt's signature covers: everything but the signature and the proof."""
    return canonical_json({name: value for name, value in receipt.items() if name not in _UNSIGNED})


def leaf_bytes(receipt: Receipt) -> bytes:
    """What stands in the log: what is signed, without the name of the key, which may change."""
    return canonical_json({name: value for name, value in receipt.items() if name not in _UNHASHED})


def leaf_hash(receipt: Receipt) -> bytes:
    """The hash of a receipt's leaf."""
    return hash_leaf(leaf_bytes(receipt))


def sign_receipt(receipt: Receipt, key: Ed25519PrivateKey) -> str:
    """The value for ``signature``."""
    return PREFIX + to_base64url(key.sign(signed_bytes(receipt)))


def is_signed_by(receipt: Receipt, public: bytes) -> bool:
    """Whether ``signature`` is that of the key (32 bytes) over this receipt."""
    signature = receipt.get("signature")
    if not isinstance(signature, str) or not signature.startswith(PREFIX):
        return False
    raw = from_base64url(signature.removeprefix(PREFIX))
    if raw is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(raw, signed_bytes(receipt))
    except (InvalidSignature, NotCanonical):
        return False
    return True


def to_base64url(raw: bytes) -> str:
    """Without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def from_base64url(text: str) -> bytes | None:
    """With or without padding, of either alphabet; None for anything else."""
    try:
        padded = text.rstrip("=").replace("+", "-").replace("/", "_")
        raw = base64.b64decode(padded + "=" * (-len(padded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw
