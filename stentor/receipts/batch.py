"""What a receipt over logs says: sums that are exact, whoever measured them. Pure."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stentor.core.clock import time_text
from stentor.receipts.canonical import to_base64url
from stentor.receipts.usage import PROFILE, usd_text

NANO = 1_000_000_000


class Item(NamedTuple):
    """One log that a receipt certifies; ``kind`` is ``usage`` (metered here) or ``client``. Money is nano-USD."""

    kind: str
    id: str
    created_us: int
    provider: str
    model: str
    alias: str
    profile: str
    conversation_id: str | None
    input_tokens: int
    output_tokens: int
    cost_nano: int
    input_nano: int = 0
    output_nano: int = 0

    @property
    def tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens


def summarize(items: Sequence[Item]) -> dict[str, Any]:
    """The ``batch_summary`` of a receipt, and most of a preview."""
    times = [item.created_us for item in items]
    return {
        "total_conversations": len({item.conversation_id for item in items if item.conversation_id}),
        "total_calls": len(items),
        "total_tokens": sum(item.tokens for item in items),
        "total_cost": sum(item.cost_nano for item in items) / NANO,
        "start_date": time_text(min(times)) if times else None,
        "end_date": time_text(max(times)) if times else None,
        "by_model": _group(items, [item.model for item in items]),
        "by_alias": _group(items, [item.alias for item in items]),
        "conversation_ids": sorted({item.conversation_id for item in items if item.conversation_id}),
        "log_ids": [item.id for item in items],
    }


def _group(items: Sequence[Item], names: Sequence[str]) -> dict[str, Any]:
    sums: dict[str, list[int]] = {}
    for item, name in zip(items, names, strict=True):
        if not name:
            continue
        total = sums.setdefault(name, [0, 0, 0])
        total[0] += 1
        total[1] += item.cost_nano
        total[2] += item.tokens
    return {name: {"calls": calls, "cost": cost / NANO, "tokens": n} for name, (calls, cost, n) in sorted(sums.items())}


def certify(
    items: Sequence[Item], metered_by: str, now_us: int, description: str | None, tags: Sequence[str] | None
) -> dict[str, Any]:
    """The unsigned receipt over ``items`` (at least one), in shape B; everything in it gets signed."""
    total_nano = sum(item.cost_nano for item in items)
    prompt, completion = sum(item.input_tokens for item in items), sum(item.output_tokens for item in items)
    receipt: dict[str, Any] = {
        "receipt_id": f"rcpt_{secrets.token_hex(8)}",
        "timestamp": time_text(now_us),
        "alias": _common([item.alias or item.model for item in items]),
        "profile": _common([item.profile or PROFILE for item in items]),
        "lock_digest": "",
        "provider": _common([item.provider for item in items]),
        "model": _common([item.model for item in items]),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "input_cost": sum(item.input_nano for item in items) / NANO,
        "output_cost": sum(item.output_nano for item in items) / NANO,
        "total_cost": total_nano / NANO,
        "cost": {"amount": usd_text(total_nano), "calculation": f"sum of {len(items)} logs, metered by {metered_by}"},
        "receipt_type": "single" if len(items) == 1 else "batch",
        "batch_summary": summarize(items),
        "salt": new_salt(),
        "metered_by": metered_by,
    }
    if description is not None:
        receipt["description"] = description
    if tags is not None:
        receipt["tags"] = list(tags)
    return receipt


def preview(items: Sequence[Item]) -> dict[str, Any]:
    """What :func:`certify` would say of ``items``."""
    summary: Mapping[str, Any] = summarize(items)
    names = ("total_conversations", "total_tokens", "total_cost", "start_date", "end_date", "by_model", "by_alias")
    found = {"total_logs": len(items), **{name: summary[name] for name in names}}
    if not items:
        return {**found, "receipt_type": None, "message": "No logs found matching the criteria"}
    return {**found, "receipt_type": "single" if len(items) == 1 else "batch"}


def _common(names: Sequence[str]) -> str:
    return names[0] if len(set(names)) == 1 else "multiple"


def new_salt() -> str:
    """Sixteen random bytes."""
    return to_base64url(secrets.token_bytes(16))
