"""Durations as Ollama's clients write them: numbers of seconds, or Go's own words («1h30m», «300ms»)."""

import math
import re

from stentor.flows.ask import bad_request

FOR_EVER = math.inf
_LONGEST_S = 1e9  # thirty years: more than anything that runs
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})"
_PLAIN = re.compile(rf"([+-]?)({_NUMBER})")
_PARTS = re.compile(rf"([+-]?)((?:{_NUMBER}(?:ns|us|µs|μs|ms|s|m|h)){{1,8}})")
_PART = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)")


def read_keep_alive(value: float | str | None) -> float | None:
    """Seconds; below zero means for ever (inf). None where nothing was said. Raises Refused (400)."""
    if value is None or value == "":
        return None
    seconds = _read_text(value) if isinstance(value, str) else value
    if seconds is None or math.isnan(seconds):
        raise bad_request(
            f"'keep_alive' is '{str(value)[:40]}'; write seconds (300), a duration ('5m', '1h30m'), 0 to unload the "
            "model afterwards, or -1 to keep it.",
            "keep_alive",
        )
    return seconds if 0 <= seconds <= _LONGEST_S else FOR_EVER


def _read_text(text: str) -> float | None:
    plain = _PLAIN.fullmatch(text)
    if plain is not None:
        return float(plain[1] + plain[2])
    parts = _PARTS.fullmatch(text)
    if parts is None:
        return None
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(parts[2]))
    return -seconds if parts[1] == "-" else seconds
