"""A second verifier, written from RFC 6962, RFC 8032 (by way of ``cryptography``), RFC 8785 and C2SP alone.

It imports nothing of Stentor and shares no code with it: what both accept is not accepted by a common mistake. The
RFC 8785 form is written for what receipts hold: objects, arrays, strings, booleans, null, integers and doubles.
"""

import base64
import hashlib
import json
import math
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def jcs(value: Any) -> str:
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{jcs(name)}:{jcs(value[name])}" for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(jcs, value)) + "]"
    if isinstance(value, float):
        return es6_number(value)
    return json.dumps(value, ensure_ascii=False)


def es6_number(value: float) -> str:
    """Number.prototype.toString of ECMA-262, from Python's shortest digits."""
    assert math.isfinite(value)
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}e0".partition("e")
    exponent = exponent.partition("e")[0]
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0)
    point -= len(whole + fraction) - len((whole + fraction).lstrip("0"))
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return sign + digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    power = point - 1
    tail = f"e{'+' if power >= 0 else '-'}{abs(power)}"
    return sign + digits[0] + ("." + digits[1:] if count > 1 else "") + tail


def _b64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _signed_by(public: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def merkle_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 §2.1, over leaf hashes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + merkle_root(leaves[:k]) + merkle_root(leaves[k:])).digest()


def root_by_path(m: int, n: int, leaf: bytes, path: list[bytes]) -> bytes:
    """The root from PATH(m, D[n]) of RFC 6962 §2.1.1, by the recursion that defines the path."""
    if n == 1:
        assert not path
        return leaf
    k = 1
    while k * 2 < n:
        k *= 2
    *rest, top = path
    if m < k:
        return hashlib.sha256(b"\x01" + root_by_path(m, k, leaf, rest) + top).digest()
    return hashlib.sha256(b"\x01" + top + root_by_path(m - k, n - k, leaf, rest)).digest()


def check_checkpoint(note: str, keys: list[dict[str, Any]]) -> tuple[str, int, bytes]:
    """Origin, size and root of a note that one of the keys signed; ValueError for any other."""
    text, _, tail = note.rpartition("\n\n")
    text += "\n"
    origin, size, root = text.split("\n")[:3]
    for line in tail.strip("\n").split("\n"):
        dash, name, blob = line.split(" ")
        raw = base64.b64decode(blob)
        for key in keys:
            public = _b64url(key["x"])
            wanted = hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4]
            if dash == "—" and name == origin and raw[:4] == wanted and _signed_by(public, raw[4:], text.encode()):
                return origin, int(size), base64.b64decode(root)
    raise ValueError("nobody we know signed this checkpoint")


def check_receipt(receipt: dict[str, Any], keys: list[dict[str, Any]]) -> bool:
    """Whether the signature holds and, if there is a proof, the log holds the receipt; keys as in public-keys.json."""
    signed = {name: value for name, value in receipt.items() if name not in ("signature", "log")}
    signature = _b64url(receipt["signature"].removeprefix("ed25519:"))
    publics = [_b64url(key["x"]) for key in keys if key["kid"] == receipt["key_id"]]
    if not any(_signed_by(public, signature, jcs(signed).encode()) for public in publics):
        return False
    proof = receipt.get("log")
    if proof is None:
        return True
    try:
        _, size, root = check_checkpoint(proof["checkpoint"], [key for key in keys if key["purpose"] == "checkpoint"])
    except ValueError:
        return False
    del signed["key_id"]
    leaf = hashlib.sha256(b"\x00" + jcs(signed).encode()).digest()
    path = [base64.b64decode(node) for node in proof["inclusion"]]
    try:
        return root_by_path(proof["index"], size, leaf, path) == root
    except (AssertionError, ValueError):
        return False
