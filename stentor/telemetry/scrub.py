"""What may be said of a value or an error in a log line: never a secret, never a prompt."""

import re
import traceback

from stentor.core.errors import StentorError

TEXT_MAX = 300
_SCAN_MAX = 4096
_SECRET = re.compile(r"sk-[A-Za-z0-9_\-]{8,}|hf_[A-Za-z0-9]{8,}|(?i:bearer|basic)\s+[A-Za-z0-9._~+/=\-]{8,}")
_LOGIN = re.compile(r"://[^/@\s]+@")
_CUT_SECRET = re.compile(r"(?:sk-|hf_)[A-Za-z0-9_\-]*\Z|(?i:bearer|basic)\s+\S*\Z")


def scrub_text(text: str) -> str:
    """``text`` without anything shaped like a key or token, cut at :data:`TEXT_MAX` characters.

    Scrubbed before it is cut, so that no cut can make a key too short to be recognised.
    """
    if len(text) > _SCAN_MAX:
        text = _CUT_SECRET.sub("[secret]", text[:_SCAN_MAX])
    lower = text.lower()
    # Substring tests first: most values hold none of these, and the patterns cost four times as much.
    if "sk-" in lower or "hf_" in lower or "@" in lower or "bearer" in lower or "basic" in lower:
        text = _LOGIN.sub("://[secret]@", _SECRET.sub("[secret]", text))
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"


def explain_error(error: BaseException) -> str:
    """What a log line may quote of an error's text; empty where nothing is known to be safe.

    Errors of our own were written for people, those of the system name files and ports; a database driver's first
    line names the trouble (the statement and its values follow on later lines). Any other library's text may quote the
    bytes it stumbled over, which may be somebody's prompt, so only its type and place are told.
    """
    if isinstance(error, StentorError):
        return scrub_text(str(error))
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return scrub_text(f"{error.strerror}{place}")
    if type(error).__module__.partition(".")[0] in ("sqlalchemy", "sqlite3", "pysqlite3"):
        return scrub_text(str(error).partition("\n")[0])
    return ""


def locate_error(error: BaseException) -> str:
    """Where an error was raised: the innermost frame of this package and the innermost of all, as file:line name."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    ours = [frame for frame in frames if "/stentor/" in frame.filename]
    picked = [ours[-1], frames[-1]] if ours and ours[-1] is not frames[-1] else [frames[-1]]
    return scrub_text(" > ".join(f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in picked))


def _short(filename: str) -> str:
    return "/".join(filename.rsplit("/", 3)[-2:])
