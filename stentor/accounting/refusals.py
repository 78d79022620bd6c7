"""What the limits say: each refusal names its rule, the limit, what is left, and when that changes."""

import datetime
import math

from stentor.accounting.meters import Meter, Minute, Moment, Pace
from stentor.core.errors import Refused


def usd(nano: int) -> str:
    """Nano-USD for people: six digits, more where that would show zero for an amount that isn't."""
    text = f"{nano / 1e9:.6f}"
    return f"${nano / 1e9:.9f}" if nano and float(text) == 0 else f"${text}"


def too_parallel(limit: int) -> Refused:
    """The user's or key's own concurrency is used up."""
    return Refused(
        "rate_limit_exceeded",
        f"This account may run {limit} requests at once, and that many are running. Wait for one to end.",
        retry_after_s=1.0,
        details={"rule": "concurrency", "unit": "parallel", "limit": limit, "left": 0},
    )


def too_fast(window: Minute, wanted: int, now: Moment, second: int) -> Refused:
    """Requests per minute are used up."""
    wait_s = window.retry_after_s(second, wanted)
    return Refused(
        "rate_limit_exceeded",
        f"Rate limit of {window.limit} {window.unit} per minute reached. Try again in {wait_s} s.",
        retry_after_s=float(wait_s),
        details={
            "rule": f"{window.unit}_per_minute",
            "unit": window.unit,
            "limit": window.limit,
            "left": max(window.free(second), 0),
            "resets_at": now.us // 1_000_000 + wait_s,
        },
    )


def too_many_tokens(window: Minute, wanted: int, now: Moment, second: int) -> Refused:
    """Tokens per minute are used up, or held by running requests."""
    refused = too_fast(window, wanted, now, second)
    refused.details["wanted"] = wanted
    return refused


def too_soon(pace: Pace, wait_s: float, now: Moment) -> Refused:
    """The key's requests come faster than the server allows."""
    return Refused(
        "rate_limit_exceeded",
        f"This key's requests come faster than {pace.per_second:g} a second. Try again in {math.ceil(wait_s)} s.",
        retry_after_s=wait_s,
        details={
            "rule": "requests_per_second",
            "unit": "requests",
            "limit": int(pace.per_second) if pace.per_second.is_integer() else pace.per_second,
            "left": 0,
            "resets_at": math.ceil(now.us / 1_000_000 + wait_s),
        },
    )


def never_fits(window: Minute, wanted: int, affordable: int, free: int) -> Refused:
    """A request that is larger than a whole minute's tokens. Waiting doesn't help."""
    return Refused(
        "rate_limit_exceeded",
        f"This request may use up to {wanted} tokens, more than the {window.limit} tokens per minute of this account. "
        + _shorter(affordable),
        param="max_tokens",
        details={
            "rule": "tokens_per_minute",
            "unit": "tokens",
            "limit": window.limit,
            "left": max(free, 0),
            "wanted": wanted,
            "affordable_output_tokens": max(affordable, 0),
        },
    )


def over_quota(quota: Meter, wanted: int, affordable: int) -> Refused:
    """The key's token limit can't cover the request. Waiting doesn't help."""
    left = max(quota.free(), 0)
    return Refused(
        "quota_exceeded",
        f"This key may use {quota.limit} tokens in all and has {left} left; this request may use up to {wanted}. "
        + _shorter(affordable),
        param="max_tokens",
        details={
            "rule": "token_limit",
            "limit": quota.limit,
            "left": left,
            "wanted": wanted,
            "affordable_output_tokens": max(affordable, 0),
        },
    )


_WHOSE = {
    "balance": ("The balance has", "Top up the account"),
    "key_spending": ("The key's spending limit leaves", "Use a key with a higher spending limit"),
    "project_budget": ("The project's budget leaves", "Raise the budget"),
    "key_budget": ("The key's budget leaves", "Raise the key's budget"),
}


def unaffordable(meter: Meter, wanted_nano: int, affordable: int | None) -> Refused:
    """Money doesn't cover the worst case; names how many output tokens it would pay for (None: there are none)."""
    left = max(meter.free(), 0)
    whose, advice = _WHOSE[meter.kind]
    of = "" if meter.kind == "balance" else f" of {usd(meter.limit)}"
    window = "" if meter.window == "none" else f" for this {meter.window}"
    details = {
        "rule": meter.code,
        "limit_nano": meter.limit,
        "left_nano": left,
        "wanted_nano": wanted_nano,
    }
    shorter = "Send less at once."
    if affordable is not None:
        details["affordable_output_tokens"] = affordable
        shorter = _shorter(affordable)
    if meter.window_end is not None:
        details["resets_at"] = meter.window_end // 1_000_000
        ends = datetime.datetime.fromtimestamp(meter.window_end // 1_000_000, datetime.UTC)
        window += f", which ends at {ends:%Y-%m-%d %H:%M} UTC"
    return Refused(
        meter.code,
        f"{whose} {usd(left)}{of} left{window}; this request may cost up to {usd(wanted_nano)}. "
        f"{shorter} {advice}{' or wait' if window else ''}.",
        param="max_tokens" if affordable is not None else None,
        details=details,
    )


def _shorter(affordable: int) -> str:
    if affordable < 1:
        return "Even one output token is too much after this prompt."
    return f"At most {affordable} output tokens (max_tokens) are affordable now."
