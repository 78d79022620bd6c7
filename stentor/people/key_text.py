"""API keys as text: ``sk-`` and 48 base62 characters (285 bits). Imports nothing of the store: workers use it too."""

import hmac
import re
import secrets

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RANDOM_CHARACTERS = 48
_FIXED = re.compile(r"[!-~]{1,255}", re.ASCII)


def new_key() -> str:
    """A fresh API key."""
    return "sk-" + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARACTERS))


def is_fixed_key(text: str) -> bool:
    """Whether ``text`` may be the one key given by the operator: 1 to 255 visible ASCII characters."""
    return _FIXED.fullmatch(text) is not None


def digest_key(pepper: bytes, text: str) -> bytes:
    """The keyed hash under which a key is stored: HMAC-SHA256, 32 bytes."""
    return hmac.digest(pepper, text.encode(), "sha256")


def hint_of(text: str) -> str:
    """What may be shown of a key: its last four characters; less of a short fixed key."""
    return text[-4:] if len(text) >= 16 else ""
