"""Console passwords: Argon2id, and generated ones that are shown once."""

import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

# RFC 9106 §4, second recommended option: 64 MiB, three passes. Slow on purpose: run it in a thread.
_hasher = PasswordHasher(time_cost=3, memory_cost=65_536, parallelism=4)
# Without the characters that are easily mistaken for one another.
_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"


def new_password() -> str:
    """Four groups of five characters, 99 bits."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(5)) for _ in range(4))


def hash_password(password: str) -> str:
    """The Argon2id hash in PHC format, with its own salt and parameters."""
    return _hasher.hash(password)


def is_password(stored: str | None, password: str) -> bool:
    """Whether ``password`` is the one behind ``stored``; as slow for a user without a password as for any other."""
    try:
        return _hasher.verify(stored if stored is not None else _DECOY, password) and stored is not None
    except (VerificationError, InvalidHashError):
        return False


_DECOY = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$sDM+UeNxaZZ+RrErPFCWE+sBMxTBEAFbdJE9lIoyGJw"
