"""Checking receipts with nothing but public keys: the signature, the place in the log, the log's own signature.

Pure: what it is given is all it uses, so that it works on a machine that never heard of this server.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from stentor.receipts.canonical import NotCanonical, from_base64url, is_signed_by, leaf_hash
from stentor.receipts.merkle import root_from_inclusion
from stentor.receipts.note import Checkpoint, InvalidNote, list_signers, read_checkpoint


class TrustedKey(NamedTuple):
    """A public key (32 bytes) as published; ``until`` None: still in use."""

    id: str
    purpose: str
    public: bytes
    until: datetime | None = None


class Verification(NamedTuple):
    """``valid``: signature and proof, if there is one, hold. ``problem`` says what doesn't."""

    valid: bool
    log: Literal["included", "pending", "wrong"]
    problem: str | None = None
    checkpoint: Checkpoint | None = None


def receipt_name(receipt: Mapping[str, Any]) -> str:
    """The receipt's id, in either shape."""
    return str(receipt.get("receipt_id") or receipt.get("id") or "")


def read_keys(document: Any) -> list[TrustedKey]:
    """The keys of a ``public-keys.json`` document; entries that aren't Ed25519 keys are left out."""
    keys = []
    for entry in document if isinstance(document, list) else []:
        if not isinstance(entry, dict) or entry.get("crv") != "Ed25519" or not isinstance(entry.get("x"), str):
            continue
        public = from_base64url(entry["x"])
        if public is None or len(public) != 32:
            continue
        purpose = str(entry.get("purpose") or "receipt")
        keys.append(TrustedKey(str(entry.get("kid") or ""), purpose, public, _time(entry.get("valid_until"))))
    return keys


def verify_receipt(receipt: Mapping[str, Any], keys: Sequence[TrustedKey]) -> Verification:
    """Whether a receipt is what one of ``keys`` signed, and stands where it says in the log."""
    problem = _check_signature(receipt, keys)
    if problem is not None:
        return Verification(False, "wrong" if "log" in receipt else "pending", problem)
    proof = receipt.get("log")
    if proof is None:
        return Verification(True, "pending")
    publics = [key.public for key in keys if key.purpose == "checkpoint"]
    checkpoint, problem = _check_proof(receipt, proof, publics)
    if problem is not None:
        return Verification(False, "wrong", problem, checkpoint)
    return Verification(True, "included", None, checkpoint)


def _check_signature(receipt: Mapping[str, Any], keys: Sequence[TrustedKey]) -> str | None:
    key_id = receipt.get("key_id")
    fitting = [key for key in keys if key.purpose == "receipt" and key.id == key_id]
    if not fitting:
        return f"no trusted key is called {str(key_id)[:80]!r}"
    key = fitting[0]
    if not is_signed_by(receipt, key.public):
        return "the signature doesn't fit the content"
    made = _time(receipt.get("timestamp"))
    if key.until is not None and (made is None or made > key.until):
        return f"key {key.id} had ended before the receipt's time"
    return None


def _check_proof(
    receipt: Mapping[str, Any], proof: Any, publics: Sequence[bytes]
) -> tuple[Checkpoint | None, str | None]:
    if not isinstance(proof, Mapping) or not isinstance(proof.get("checkpoint"), str):
        return None, "the proof isn't one"
    note = proof["checkpoint"]
    try:
        checkpoint = read_checkpoint(note)
        if not list_signers(note, publics):
            return checkpoint, "the checkpoint isn't signed by a trusted key"
        path = [_hash(item) for item in proof["inclusion"]]
        root = root_from_inclusion(int(proof["index"]), checkpoint.size, leaf_hash(receipt), path)
    except InvalidNote as error:
        return None, f"the checkpoint can't be read: {error}"
    except (KeyError, TypeError, ValueError, NotCanonical) as error:
        return None, f"the proof can't be read: {error}"
    if root != checkpoint.root:
        return checkpoint, "the log does not hold this receipt where it says"
    return checkpoint, None


def _hash(text: Any) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise ValueError(f"{text!r} isn't base64") from None
    if len(raw) != 32:
        raise ValueError("a hash has 32 bytes")
    return raw


def _time(text: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time
