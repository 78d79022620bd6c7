"""Who is calling: one frozen value, made at authentication and passed on by type."""

from collections.abc import Collection
from typing import Protocol

import msgspec

from stentor.core.ids import KeyId, ProjectId, TierId, UserId

SCOPES = ("inference", "ring", "mcp", "admin")


class Principal(msgspec.Struct, frozen=True, array_like=True):
    """The caller behind an API key.

    ``scopes`` are a subset of :data:`SCOPES`; ``models`` and ``endpoints`` narrow what the key may use, empty meaning
    all. ``key_hint`` is the last four characters of the key, for humans. Behind a console session there is no key:
    then ``session_id`` and ``user_name`` are set, and ``session_key`` if the session was opened with a key.
    """

    key_id: KeyId
    user_id: UserId
    project_id: ProjectId
    tier_id: TierId
    scopes: frozenset[str]
    models: frozenset[str] = frozenset()
    endpoints: frozenset[str] = frozenset()
    expires_us: int | None = None
    key_hint: str = ""
    session_id: str = ""
    user_name: str = ""
    session_key: str = ""


def goes_beyond(wanted: Collection[str], own: Collection[str]) -> bool:
    """Whether ``wanted`` allows something that ``own`` doesn't; either allows all where it is empty."""
    return bool(own) and not (wanted and set(wanted) <= set(own))


class Rights(Protocol):
    """What a key may use, empty meaning all."""

    @property
    def models(self) -> Collection[str]: ...

    @property
    def endpoints(self) -> Collection[str]: ...


def is_narrowed(before: Rights, after: Rights) -> bool:
    """Whether something that was allowed isn't any more."""
    return goes_beyond(before.models, after.models) or goes_beyond(before.endpoints, after.endpoints)
