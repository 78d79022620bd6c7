"""All SQL of the vault."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, insert, select, update

from stentor.core.remote import RemoteKind
from stentor.store.schema import data_keys, providers, secrets


class DataKeyRow(NamedTuple):
    """A wrapped data key."""

    id: str
    purpose: str
    master_key_id: str
    wrapped: bytes
    retired_us: int | None


def list_data_keys(connection: Connection) -> list[DataKeyRow]:
    """All data keys, oldest first."""
    query = select(
        data_keys.c.id,
        data_keys.c.purpose,
        data_keys.c.master_key_id,
        data_keys.c.wrapped,
        data_keys.c.retired_us,
    ).order_by(data_keys.c.created_us, data_keys.c.id)
    return [DataKeyRow(*row) for row in connection.execute(query)]


def add_data_key(connection: Connection, values: dict[str, Any]) -> None:
    """Insert one wrapped data key."""
    connection.execute(insert(data_keys).values(**values))


def rewrap_data_key(connection: Connection, key_id: str, master_key_id: str, wrapped: bytes) -> None:
    """Replace how a data key is wrapped."""
    values = {"master_key_id": master_key_id, "wrapped": wrapped}
    connection.execute(update(data_keys).where(data_keys.c.id == key_id).values(**values))


class SecretRow(NamedTuple):
    """A sealed secret."""

    id: str
    kind: str
    name: str
    data_key_id: str
    sealed: bytes
    hint: str
    created_us: int
    updated_us: int


_SECRET = (
    secrets.c.id,
    secrets.c.kind,
    secrets.c.name,
    secrets.c.data_key_id,
    secrets.c.sealed,
    secrets.c.hint,
    secrets.c.created_us,
    secrets.c.updated_us,
)


def find_secret(connection: Connection, kind: str, name: str) -> SecretRow | None:
    """One secret, still sealed."""
    query = select(*_SECRET).where(secrets.c.kind == kind, secrets.c.name == name)
    row = connection.execute(query).first()
    return None if row is None else SecretRow(*row)


def list_secrets(connection: Connection, kind: str | None) -> list[SecretRow]:
    """Secrets of a kind, or all, by kind and name."""
    query = select(*_SECRET).order_by(secrets.c.kind, secrets.c.name)
    if kind is not None:
        query = query.where(secrets.c.kind == kind)
    return [SecretRow(*row) for row in connection.execute(query)]


def add_secret(connection: Connection, values: dict[str, Any]) -> None:
    """Insert one sealed secret."""
    connection.execute(insert(secrets).values(**values))


def change_secret(connection: Connection, row_id: str, values: dict[str, Any]) -> None:
    """Replace what a row holds."""
    connection.execute(update(secrets).where(secrets.c.id == row_id).values(**values))


def delete_secret(connection: Connection, kind: str, name: str) -> bool:
    """Delete one secret; whether there was one."""
    done = connection.execute(delete(secrets).where(secrets.c.kind == kind, secrets.c.name == name))
    return done.rowcount > 0


class ProviderRow(NamedTuple):
    """Where an upstream is; its credential is a secret of its name."""

    name: str
    kind: RemoteKind
    base_url: str
    created_us: int
    updated_us: int


_PROVIDER = (
    providers.c.name,
    providers.c.kind,
    providers.c.base_url,
    providers.c.created_us,
    providers.c.updated_us,
)


def find_provider(connection: Connection, name: str) -> ProviderRow | None:
    """One provider."""
    row = connection.execute(select(*_PROVIDER).where(providers.c.name == name)).first()
    return None if row is None else ProviderRow(*row)


def list_providers(connection: Connection) -> list[ProviderRow]:
    """All providers by name."""
    return [ProviderRow(*row) for row in connection.execute(select(*_PROVIDER).order_by(providers.c.name))]


def add_provider(connection: Connection, row: ProviderRow) -> None:
    """Insert one provider."""
    connection.execute(insert(providers).values(**row._asdict()))


def change_provider(connection: Connection, name: str, values: dict[str, Any]) -> None:
    """Change one provider."""
    connection.execute(update(providers).where(providers.c.name == name).values(**values))


def delete_provider(connection: Connection, name: str) -> None:
    """Delete one provider."""
    connection.execute(delete(providers).where(providers.c.name == name))
