"""Which thresholds a limit has passed: pure, in whole numbers."""

from collections.abc import Sequence

from stentor.alerts.table import UseRow
from stentor.alerts.values import Alert

GRACE_US = 3_600_000_000  # a window that ended within the last hour may have been used up at its very end
_WORDS = {"none": "", "day": "daily ", "month": "monthly "}
_WHAT = {
    "key_tokens": ("key", "token limit", "tokens"),
    "key_spending": ("key", "spending limit", "nano_usd"),
    "key_budget": ("key", "budget", "nano_usd"),
    "project_budget": ("project", "budget", "nano_usd"),
}


def choose_passed(use: UseRow, thresholds: Sequence[int]) -> list[Alert]:
    """An alert for each of ``thresholds`` (percent) that is reached. A limit that was changed is told of anew."""
    if use.limit <= 0:
        return []
    return [_make_alert(use, each) for each in thresholds if use.used * 100 >= each * use.limit]


def _make_alert(use: UseRow, threshold: int) -> Alert:
    of, what, unit = _WHAT[use.kind]
    source = f"budget:{use.kind}:{use.subject}:{use.window}:{use.window_start}:{use.limit}:{threshold}"
    percent = use.used * 100 // use.limit
    text = f"{of.capitalize()} '{use.name}' of {use.owner} has used {percent} % of its {_WORDS[use.window]}{what}."
    data = {
        "threshold_percent": threshold,
        "used_percent": percent,
        "subject": of,
        "subject_id": use.id,
        "subject_name": use.name,
        "owner": use.owner,
        "limit_kind": use.kind,
        "window": use.window,
        "window_start_us": use.window_start if use.window != "none" else None,
        "unit": unit,
        "used": use.used,
        "limit": use.limit,
    }
    return Alert(source, "budget_threshold", text, data, standing=use.window == "none")
