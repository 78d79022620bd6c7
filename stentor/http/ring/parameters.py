"""What the query parameters of the LLMRing routes are, for the OpenAPI document."""

from typing import Any

_TEXT = {"type": "string"}
_NUMBER = {"type": "integer", "minimum": 0}
_DATE = {"type": "string", "description": "RFC 3339 time or date, UTC where it names no zone."}

RING_PARAMETERS: dict[str, dict[str, Any]] = {
    "offset": {**_NUMBER, "default": 0, "description": "How many to pass over."},
    "start_date": _DATE,
    "end_date": {**_DATE, "description": "RFC 3339 time, excluded, or date, included."},
    "alias": {**_TEXT, "description": "The alias a client used."},
    "origin": {**_TEXT, "description": "The program that called."},
    "metered_by": {"enum": ["client", "stentor", "all"], "default": "client", "description": "By whose count."},
    "group_by": {"enum": ["day", "week", "month"], "default": "day"},
    "q": {**_TEXT, "description": "Words, all of which must occur."},
    "include_messages": {"type": "boolean", "default": True},
    "message_limit": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    "created_by": {**_TEXT, "description": "Who made it."},
    "retention_days": {**_NUMBER, "description": "Messages older than this go."},
    "log": {**_TEXT, "description": "A log's origin; the one that grows where it is left out."},
    "index": {**_NUMBER, "description": "A leaf's number, from 0."},
    "size": {**_NUMBER, "description": "Leaves of the tree to prove against."},
    "first": {**_NUMBER, "description": "Leaves of the earlier tree."},
    "second": {**_NUMBER, "description": "Leaves of the later tree."},
    "start": {**_NUMBER, "description": "The first leaf."},
    "version": {**_TEXT, "description": "An earlier version."},
    "providers": {**_TEXT, "description": "Names, separated by commas."},
    "capabilities": {**_TEXT, "description": "Abilities, separated by commas: vision, function_calling."},
}

RING_RANGES: dict[tuple[str, str], dict[str, Any]] = {
    ("ring_list_conversations", "limit"): {"maximum": 100, "default": 20},
    ("ring_search_messages", "limit"): {"maximum": 100, "default": 20},
    ("ring_list_templates", "limit"): {"maximum": 100, "default": 50},
    ("ring_template_stats", "limit"): {"maximum": 50, "default": 20},
    ("ring_logs", "limit"): {"maximum": 500, "default": 50},
}
"""Where a route takes another range than its parameter has elsewhere, by handler."""
