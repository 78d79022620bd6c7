"""Where in a text an engine is to put a picture: a word that nobody else can write, known on both sides."""

import hashlib


def media_marker(token: str) -> str:
    """The marker of the engine with this token, which it doesn't tell."""
    return f"<__media_{hashlib.sha256(token.encode()).hexdigest()[:32]}__>"
