"""All SQL of the registry: every version of every document that was ever served."""

from sqlalchemy import Connection, func, insert, select

from stentor.store.ring_schema import registry_documents as documents


def find_latest(connection: Connection, provider: str) -> tuple[int, str, str] | None:
    """Version, body and digest of a provider's newest document."""
    query = select(documents.c.version, documents.c.body, documents.c.digest).where(documents.c.provider == provider)
    row = connection.execute(query.order_by(documents.c.version.desc()).limit(1)).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


def find_version(connection: Connection, provider: str, version: int) -> str | None:
    """The body of one version."""
    query = select(documents.c.body).where(documents.c.provider == provider, documents.c.version == version)
    return connection.execute(query).scalar_one_or_none()


def next_version(connection: Connection, provider: str, wanted: int) -> int:
    """``wanted`` if it is newer than all there are, else the one after them."""
    query = select(func.max(documents.c.version)).where(documents.c.provider == provider)
    newest = connection.execute(query).scalar_one() or 0
    return max(wanted, newest + 1)


def add_document(connection: Connection, provider: str, version: int, body: str, digest: str, now_us: int) -> None:
    """Insert a version."""
    values = {"provider": provider, "version": version, "body": body, "digest": digest, "created_us": now_us}
    connection.execute(insert(documents).values(**values))
