"""What operators ask for and get: the shapes of management, the same for the command line and the admin API."""

import msgspec

from stentor.core.errors import Refused
from stentor.core.ids import ProjectId
from stentor.core.principal import goes_beyond
from stentor.people.values import ApiKey, KeyLimits, User


class KeyAsk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key to be made. ``user`` is a name, email or id; ``project`` empty: the user's own; ``limits`` None: none."""

    user: str
    name: str = ""
    project: str = ""
    scopes: tuple[str, ...] = ("inference",)
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    limits: KeyLimits | None = None
    expires_us: int | None = None


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key to be replaced; the old one works for ``grace_s`` more."""

    grace_s: int = 0


def check_within(creator: ApiKey, ask: KeyAsk | ApiKey) -> None:
    """Raises Refused if ``ask`` would allow what the creator's own key doesn't."""
    for field in ("scopes", "models", "endpoints"):
        own, wanted = getattr(creator, field), getattr(ask, field)
        if goes_beyond(wanted, own):
            raise Refused(
                "insufficient_scope", f"A key can't allow more {field} than its maker's: {', '.join(own)}.", param=field
            )
    limits = ask.limits or KeyLimits()
    for field in creator.limits.__struct_fields__:
        most, wanted = getattr(creator.limits, field), getattr(limits, field)
        if most is not None and (wanted is None or wanted > most):
            raise Refused(
                "insufficient_scope", f"A key's {field} can't be above its maker's {most}.", param=f"limits.{field}"
            )
    ends_us = creator.ends_us()
    if ends_us is not None and (ask.expires_us is None or ask.expires_us > ends_us):
        raise Refused("insufficient_scope", "A key can't outlive its maker's.", param="expires_us")


def check_maker(maker: ApiKey, ask: KeyAsk | ApiKey, project: ProjectId) -> None:
    """Raises Refused where a key of ``project``, whose text the maker is to read, would get it beyond its own bounds.

    Every key counts by itself: one with limits that could make others, or read another's text, would have no limits.
    Who manages could lift them anyway.
    """
    check_within(maker, ask)
    if "admin" in maker.scopes:
        return
    if any(value is not None for value in msgspec.structs.astuple(maker.limits)):
        raise Refused(
            "insufficient_scope",
            "A key with limits of its own makes no other: each key counts by itself. Sign in with your password, or "
            "use a key without limits.",
            param="limits",
        )
    if maker.project_id != project:
        raise Refused("insufficient_scope", "A key makes keys in its own project only.", param="project")


class UserAsk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
