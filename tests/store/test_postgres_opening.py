"""PostgreSQL: whose schema it is, what is said when it can't be used, and that nothing foreign is touched."""

import concurrent.futures
import time
from pathlib import Path

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text

from stentor.core.errors import StentorError
from stentor.store import postgres, search
from stentor.store.database import Database
from stentor.store.inspection import inspect_store
from stentor.store.lock import find_holder
from stentor.store.schema import metadata, nodes
from stentor.store.settings import StoreSettings


@pytest.fixture
def system() -> str:
    """This is about PostgreSQL."""
    return "postgres"


def run(settings: StoreSettings, *statements: str) -> None:
    """What somebody else does to the database."""
    engine = postgres.writer_engine(settings)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def dump(settings: StoreSettings) -> list[tuple[str, str]]:
    """Every table and column of the schema."""
    engine = postgres.writer_engine(settings)
    query = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = :s ORDER BY 1, 2"
    with engine.begin() as connection:
        found = [(row[0], row[1]) for row in connection.execute(text(query), {"s": settings.schema})]
    engine.dispose()
    return found


def test_migrations_make_what_the_code_expects(store_settings: StoreSettings) -> None:
    Database.open(store_settings).close()
    engine = postgres.writer_engine(store_settings)
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
        # The index of the text search is PostgreSQL's own kind.
        assert [each for each in found if (each[0], each[1].name) != ("remove_index", search.INDEX)] == []
    engine.dispose()


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE customers (id INTEGER)"],
        ["CREATE VIEW customers AS SELECT 1 AS id"],
        ["CREATE TABLE alembic_version (version_num TEXT)", "INSERT INTO alembic_version VALUES ('0001')"],
        ["CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE meta (name TEXT, value TEXT)"],
        ["CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE meta (something TEXT)"],
    ],
)
def test_a_foreign_schema_is_left_untouched(store_settings: StoreSettings, statements: list[str]) -> None:
    run(store_settings, f"CREATE SCHEMA {store_settings.schema}", *statements)
    before = dump(store_settings)
    with pytest.raises(StentorError, match=r"tables that aren't Stentor's.*untouched.*STENTOR_DATABASE_SCHEMA"):
        Database.open(store_settings)
    assert dump(store_settings) == before
    assert find_holder(store_settings.data_dir) is None


def test_a_newer_schema_is_refused(store_settings: StoreSettings) -> None:
    Database.open(store_settings).close()
    run(store_settings, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StentorError, match=r"newer Stentor \(schema 9999"):
        Database.open(store_settings)


def test_a_busy_machine_has_time_to_make_the_schema(store_settings: StoreSettings, monkeypatch) -> None:
    real = postgres.load

    def slowly(name: str):
        time.sleep(0.5)
        return real(name)

    with monkeypatch.context() as busy:
        busy.setattr(postgres, "IDLE_IN_TRANSACTION_S", 0.1)
        busy.setattr(postgres, "load", slowly)
        postgres.open_schema(store_settings)
    assert dump(store_settings)


def test_servers_that_start_at_once_make_one_schema(store_settings: StoreSettings, tmp_path: Path) -> None:
    def start(number: int) -> None:
        mine = msgspec.structs.replace(store_settings, data_dir=tmp_path / str(number))
        Database.open(mine).close()

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(start, range(4)))
    status = inspect_store(store_settings)
    assert status.revision == status.newest_revision
    assert status.system.startswith("PostgreSQL 18")
    assert status.size_bytes > 0


async def test_each_start_is_a_new_life_of_the_same_node(store_settings: StoreSettings) -> None:
    seen = []
    for _ in range(2):
        database = Database.open(store_settings)
        seen.append(await database.read(lambda connection: connection.execute(select(nodes.c.id, nodes.c.epoch)).all()))
        database.close()
    assert [len(rows) for rows in seen] == [1, 1]
    assert seen[0][0].id == seen[1][0].id
    assert (seen[0][0].epoch, seen[1][0].epoch) == (1, 2)


def test_looking_makes_nothing(store_settings: StoreSettings) -> None:
    assert inspect_store(store_settings).revision is None
    assert dump(store_settings) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("/postgres", "/nowhere"), "doesn't exist.*createdb"),
        (("stentor@", "nobody-known:hush@"), "Can't open the database"),
        (("127.0.0.1:", "127.0.0.1:1"), "can't be reached|Can't open"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    store_settings: StoreSettings, change: tuple[str, str], words: str
) -> None:
    url = store_settings.url.replace(*change)
    if change[0].endswith(":"):
        url = "postgresql://stentor:hush@127.0.0.1:1/postgres"
    with pytest.raises(StentorError, match=words) as caught:
        Database.open(msgspec.structs.replace(store_settings, url=url))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "Stentor", "a b", 'x"; DROP', "pg_catalog", "a" * 64])
def test_a_schema_that_needs_quoting_is_refused(store_settings: StoreSettings, name: str) -> None:
    with pytest.raises(StentorError, match="STENTOR_DATABASE_SCHEMA"):
        Database.open(msgspec.structs.replace(store_settings, schema=name))
