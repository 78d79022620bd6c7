"""Receipts as they lie in the database: JSON without proof."""

from typing import Any

import msgspec

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def encode_body(receipt: dict[str, Any]) -> str:
    """A receipt's JSON without its proof, which changes as the log grows."""
    return msgspec.json.encode({name: value for name, value in receipt.items() if name != "log"}).decode()


def decode_body(body: str) -> dict[str, Any]:
    """What :func:`encode_body` wrote."""
    return _decode(body)
