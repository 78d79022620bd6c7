"""Providers: where upstreams are, how they are spoken to, and under which name their credential is kept."""

import msgspec
from sqlalchemy import Connection

from stentor.core.errors import Refused
from stentor.core.remote import RemoteKind
from stentor.vault import table
from stentor.vault.keyring import Keyring
from stentor.vault.secrets import PROVIDER, check_name, check_secret, delete_secret, open_secret, set_secret


class Provider(msgspec.Struct, frozen=True):
    """A provider as people see it: ``hint`` is the end of its credential, ``has_credential`` whether it has one."""

    name: str
    kind: RemoteKind
    base_url: str
    has_credential: bool
    hint: str
    created_us: int
    updated_us: int


class NewProvider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A provider to be made. ``credential`` empty: it wants none."""

    name: str
    kind: RemoteKind
    base_url: str
    credential: str = ""

    def __repr__(self) -> str:
        return f"NewProvider(name={self.name!r}, kind={self.kind!r}, base_url={self.base_url!r})"


class ProviderChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change; None stays. A credential goes to one address: a new address needs it again."""

    kind: RemoteKind | None = None
    base_url: str | None = None
    credential: str | None = None

    def __repr__(self) -> str:
        return f"ProviderChange(kind={self.kind!r}, base_url={self.base_url!r})"


def add_provider(connection: Connection, keyring: Keyring, new: NewProvider, now_us: int) -> Provider:
    """Make a provider. Raises Refused for a name that is taken."""
    check_name(new.name)
    if table.find_provider(connection, new.name) is not None:
        raise Refused("conflict", f"There is a provider '{new.name}' already; change or remove it.", param="name")
    row = table.ProviderRow(new.name, new.kind, new.base_url, now_us, now_us)
    table.add_provider(connection, row)
    if new.credential:
        _set_credential(connection, keyring, new.name, new.credential, now_us)
    return get_provider(connection, new.name)


def change_provider(
    connection: Connection, keyring: Keyring, name: str, change: ProviderChange, now_us: int
) -> Provider:
    """Change a provider. Raises Refused, also for a new address without the credential that is to go there."""
    old = get_provider(connection, name)
    moves = change.base_url is not None and change.base_url.rstrip("/") != old.base_url.rstrip("/")
    if moves and old.has_credential and change.credential is None:
        raise Refused(
            "invalid_request",
            "A new base_url needs the credential again: what was kept for one address is not sent to another.",
            param="credential",
        )
    values = {"kind": change.kind, "base_url": change.base_url}
    given = {field: value for field, value in values.items() if value is not None}
    table.change_provider(connection, name, {**given, "updated_us": now_us})
    if change.credential:
        _set_credential(connection, keyring, name, change.credential, now_us)
    elif change.credential == "" and old.has_credential:
        delete_secret(connection, PROVIDER, name)
    return get_provider(connection, name)


def _set_credential(connection: Connection, keyring: Keyring, name: str, credential: str, now_us: int) -> None:
    check_secret(credential, "credential")
    set_secret(connection, keyring, PROVIDER, name, credential, now_us)


def remove_provider(connection: Connection, name: str) -> Provider:
    """Forget a provider and its credential. Raises Refused ``not_found``."""
    old = get_provider(connection, name)
    if old.has_credential:
        delete_secret(connection, PROVIDER, name)
    table.delete_provider(connection, name)
    return old


def get_provider(connection: Connection, name: str) -> Provider:
    """One provider. Raises Refused ``not_found``."""
    row = table.find_provider(connection, name)
    if row is None:
        raise Refused("not_found", f"There is no provider '{name[:64]}'; `stentor providers list` shows all.")
    return _describe(row, table.find_secret(connection, PROVIDER, name))


def list_providers(connection: Connection) -> list[Provider]:
    """All providers by name."""
    secrets = {row.name: row for row in table.list_secrets(connection, PROVIDER)}
    return [_describe(row, secrets.get(row.name)) for row in table.list_providers(connection)]


def load_credentials(connection: Connection, keyring: Keyring) -> dict[str, str]:
    """Every provider's credential by name, empty for one that has none. Raises StentorError."""
    secrets = {row.name: open_secret(keyring, row) for row in table.list_secrets(connection, PROVIDER)}
    return {row.name: secrets.get(row.name, "") for row in table.list_providers(connection)}


def _describe(row: table.ProviderRow, secret: table.SecretRow | None) -> Provider:
    return Provider(
        row.name,
        row.kind,
        row.base_url,
        secret is not None,
        secret.hint if secret is not None else "",
        row.created_us,
        max(row.updated_us, secret.updated_us if secret is not None else 0),
    )
