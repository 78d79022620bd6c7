"""What operators ask for and get: the shapes of management, the same for the command line and the admin API."""

import msgspec

from stentor.people.values import ApiKey, KeyLimits, User


class KeyAsk(msgspec.Struct, frozen=True):
    """A key to be made. ``user`` is a name, email or id; ``project`` empty: the user's own."""

    user: str
    name: str = ""
    project: str = ""
    scopes: tuple[str, ...] = ("inference",)
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    limits: KeyLimits = KeyLimits()
    expires_us: int | None = None


class UserAsk(msgspec.Struct, frozen=True):
    """A user to be made."""

    name: str
    email: str | None = None
    role: str = "user"
    tier: str = "payg"
    password: str | None = None


class MadeKey(msgspec.Struct, frozen=True):
    """A new key with its text, which nobody can read again."""

    key: str
    made: ApiKey

    def row(self) -> dict[str, object]:
        """The key's fields and its text in one JSON object."""
        return {"key": self.key, **msgspec.to_builtins(self.made)}


class UserView(msgspec.Struct, frozen=True):
    """A user and what they have left."""

    user: User
    balance_nano: int

    def row(self) -> dict[str, object]:
        """The user's fields and the balance in one JSON object."""
        return {**msgspec.to_builtins(self.user), "balance_nano": self.balance_nano}


class FirstRun(msgspec.Struct, frozen=True):
    """What was made at the first start and is shown once."""

    admin_user: str
    admin_password: str
    api_key: str


class Finding(msgspec.Struct, frozen=True):
    """One thing that the books were checked for. ``step``: what to do if it isn't ``ok``."""

    name: str
    ok: bool
    text: str
    step: str = ""
