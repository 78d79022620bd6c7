"""What a metered request says in the log: the leaf of a usage event, and the receipt that repeats it."""

import hashlib
from functools import lru_cache
from typing import Any, NamedTuple

from stentor.core.clock import time_text
from stentor.receipts.canonical import canonical_json, to_base64url

PROFILE = "default"


class UsageRow(NamedTuple):
    """A usage event with the prices of its version, as the table reads it."""

    id: int
    request_id: str
    attempt: int
    settled_us: int
    project_id: str
    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    audio_ms: int
    characters: int
    cost_nano: int
    price_version: int
    billable: bool
    input_nano: int | None
    cached_nano: int | None
    output_nano: int | None
    audio_second_nano: int | None
    character_nano: int | None
    request_nano: int | None


def receipt_id(request_id: str, attempt: int) -> str:
    """The id of an event's receipt."""
    return f"rcpt_{request_id}_{attempt}"


def split_receipt_id(text: str) -> tuple[str, int] | None:
    """Request and attempt of an event's receipt; None for other ids."""
    request_id, _, attempt = text.removeprefix("rcpt_").rpartition("_")
    if not text.startswith("rcpt_") or len(request_id) != 36 or not attempt.isascii() or not attempt.isdigit():
        return None
    return request_id, int(attempt[:9])


def usd_text(cost_nano: int) -> str:
    """Nano-USD as exact US dollars with nine decimals."""
    whole, nano = divmod(cost_nano, 1_000_000_000)
    return f"{whole}.{nano:09d}"


def salt_of(key: bytes, event: str) -> str:
    """Sixteen bytes that nobody can guess without ``key``, so that a leaf's hash gives away nothing of its content.

    Keyed BLAKE2 (RFC 7693): unlike ``hmac.digest`` it doesn't hand the interpreter to another thread in between.
    """
    return to_base64url(hashlib.blake2b(event.encode(), digest_size=16, key=key, person=b"usage salt").digest())


def explain_cost(row: UsageRow) -> str:
    """The sum behind the cost, in nano-USD per million units."""
    if not row.billable:
        return "not billable"
    if row.input_nano is None or row.output_nano is None:
        return f"price version {row.price_version}"
    cached_nano = row.input_nano if row.cached_nano is None else row.cached_nano
    terms = [
        f"{row.input_tokens - row.cached_tokens} input * {row.input_nano}",
        f"{row.cached_tokens} cached * {cached_nano}",
        f"{row.output_tokens} output * {row.output_nano}",
    ]
    if row.audio_ms and row.audio_second_nano:
        terms.append(f"{row.audio_ms} audio ms * {row.audio_second_nano} / 1000")
    if row.characters and row.character_nano:
        terms.append(f"{row.characters} characters * {row.character_nano}")
    if row.request_nano:
        terms.append(f"1 request * {row.request_nano}")
    return "(" + " + ".join(terms) + ") / 1000000 nano-USD, rounded up"


def usage_leaf(row: UsageRow, salt_key: bytes) -> dict[str, Any]:
    """The object whose canonical form is the leaf: a receipt without key, signature and proof."""
    event = f"{row.request_id}/{row.attempt}"
    return {
        "id": receipt_id(row.request_id, row.attempt),
        "timestamp": time_text(row.settled_us),
        "registry_version": f"prices/{row.price_version}",
        "model": row.model,
        "alias": row.model,
        "profile": PROFILE,
        "lock_digest": "",
        "tokens": {"input": row.input_tokens, "output": row.output_tokens, "cached_input": row.cached_tokens},
        "cost": {"amount": usd_text(row.cost_nano), "calculation": explain_cost(row)},
        "salt": salt_of(salt_key, event),
        "usage_event": event,
        "price_version": row.price_version,
        "metered_by": "stentor",
    }


@lru_cache(1024)
def _quoted(text: str) -> bytes:
    return canonical_json(text)


@lru_cache(1024)
def _number(value: int) -> bytes:
    return canonical_json(value)


def usage_leaf_bytes(row: UsageRow, salt_key: bytes) -> bytes:
    """The canonical form of :func:`usage_leaf`, written down directly: it is made for every request that is metered.

    Names stand in the order of RFC 8785; ids, times, amounts and sums consist of characters that need no escape.
    """
    event = f"{row.request_id}/{row.attempt}"
    model = _quoted(row.model)
    return b"".join((
        b'{"alias":', model,
        b',"cost":{"amount":"', usd_text(row.cost_nano).encode(),
        b'","calculation":"', explain_cost(row).encode(),
        b'"},"id":"', receipt_id(row.request_id, row.attempt).encode(),
        b'","lock_digest":"","metered_by":"stentor","model":', model,
        b',"price_version":', _number(row.price_version),
        b',"profile":"default","registry_version":"prices/%d","salt":"' % row.price_version,
        salt_of(salt_key, event).encode(),
        b'","timestamp":"', time_text(row.settled_us).encode(),
        b'","tokens":{"cached_input":%d,"input":%d,"output":%d}' % (
            row.cached_tokens, row.input_tokens, row.output_tokens
        ),
        b',"usage_event":"', event.encode(), b'"}',
    ))  # fmt: skip
