"""Bodies of the LLMRing surface that come in more than one form, or are for administrators."""

from typing import Any, Literal

import msgspec

from stentor.receipts.values import PublicKeyEntry

AnyReceipt = dict[str, Any]
"""A receipt in either shape, signed or not: nested with ``tokens`` and ``cost``, or flat with ``prompt_tokens``."""


class RotateReceiptKeyRequest(msgspec.Struct, omit_defaults=True):
    """Which key is to be followed by a new one."""

    purpose: Literal["receipt", "checkpoint"] = "receipt"


class ReceiptKeyPage(msgspec.Struct):
    """All public keys."""

    data: list[PublicKeyEntry]
    next: str | None
