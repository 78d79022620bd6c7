"""Opening a database: whose it is, which schema it has, and what is said when it can't be."""

import fcntl
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, select

from stentor.core.errors import StentorError
from stentor.store import driver, migrate, search
from stentor.store.database import Database
from stentor.store.lock import find_holder
from stentor.store.schema import meta, metadata
from stentor.store.settings import StoreSettings

HOLD = """
import sys, time
from pathlib import Path
from stentor.store.database import Database
from stentor.store.settings import StoreSettings
database = Database.open(StoreSettings(data_dir=Path(sys.argv[1])))
print("open", flush=True)
time.sleep(60)
"""


def in_data(path: Path) -> StoreSettings:
    return StoreSettings(data_dir=path, busy_timeout_s=0.1)


def test_a_second_server_is_refused_with_the_firsts_pid(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        assert find_holder(tmp_path) == child.pid
        with pytest.raises(StentorError, match=f"process {child.pid}.*STENTOR_DATA_DIR"):
            Database.open(in_data(tmp_path))
        child.send_signal(signal.SIGKILL)
        child.wait(30)
        assert find_holder(tmp_path) is None
        Database.open(in_data(tmp_path)).close()
    finally:
        child.kill()
        child.wait(30)
        child.stdout.close()


def test_two_data_directories_cannot_share_a_database(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    first = Database.open(StoreSettings(data_dir=tmp_path / "a", url=str(path)))
    try:
        with pytest.raises(StentorError, match=rf"shared\.db is in use.*process {os.getpid()}"):
            Database.open(StoreSettings(data_dir=tmp_path / "b", url=f"sqlite://{path}"))
    finally:
        first.close()


def test_a_server_that_has_just_begun_is_named_once_it_says_who_it_is(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("stentor.store.lock.HOLDER_S", 60.0)
    path = tmp_path / "stentor.lock"
    path.write_text("999999999\n")  # the one before, which was killed
    with path.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        saying = threading.Timer(0.3, path.write_text, [f"{os.getppid()}\n"])
        saying.start()
        with pytest.raises(StentorError, match=f"process {os.getppid()}\\)"):
            Database.open(in_data(tmp_path))
        saying.join()


def test_looking_for_the_holder_does_not_refuse_a_start(tmp_path: Path) -> None:
    assert find_holder(tmp_path / "nowhere") is None
    database = Database.open(in_data(tmp_path))
    assert find_holder(tmp_path) == os.getpid()
    database.close()
    assert find_holder(tmp_path) is None


def test_migrations_make_what_the_code_expects(tmp_path: Path) -> None:
    Database.open(in_data(tmp_path)).close()
    engine = create_engine("sqlite://", creator=lambda: driver.connect(tmp_path / "stentor.db", "ro", 1.0))
    with engine.connect() as connection:
        # The search index is a virtual table with tables of its own.
        options = {"include_name": lambda name, kind, _: kind != "table" or not name.startswith(search.INDEX)}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
    engine.dispose()


async def test_the_node_keeps_its_name_and_counts_its_starts(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        database = Database.open(in_data(tmp_path))
        seen.append(dict(await database.read(lambda c: [tuple(row) for row in c.execute(select(meta))])))
        database.close()
    assert seen[0]["node_id"] == seen[1]["node_id"]
    assert (seen[0]["epoch"], seen[1]["epoch"]) == ("1", "2")
    assert seen[0]["product"] == "stentor"


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE customers (id INTEGER)"],
        ["CREATE TABLE alembic_version (version_num TEXT)", "INSERT INTO alembic_version VALUES ('0001')"],
        ["CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE meta (name TEXT, value TEXT)"],
        ["CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE meta (something TEXT)"],
    ],
)
def test_a_foreign_database_is_left_untouched(tmp_path: Path, statements: list[str]) -> None:
    path = tmp_path / "stentor.db"
    foreign = sqlite3.connect(path)
    for statement in statements:
        foreign.execute(statement)
    foreign.commit()
    foreign.close()
    before = path.read_bytes()
    with pytest.raises(StentorError, match=r"tables that aren't Stentor's.*untouched.*STENTOR_DATABASE_URL"):
        Database.open(in_data(tmp_path))
    assert path.read_bytes() == before
    assert find_holder(tmp_path) is None


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    Database.open(in_data(tmp_path)).close()
    newer = sqlite3.connect(tmp_path / "stentor.db")
    newer.execute("UPDATE alembic_version SET version_num = '9999'")
    newer.commit()
    newer.close()
    with pytest.raises(StentorError, match=r"newer Stentor \(schema 9999"):
        Database.open(in_data(tmp_path))


def test_an_interrupted_first_migration_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(connection: object, current: object) -> None:
        real(connection, current)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    real = migrate.upgrade
    monkeypatch.setattr(migrate, "upgrade", stop)
    with pytest.raises(KeyboardInterrupt):
        Database.open(in_data(tmp_path))
    monkeypatch.undo()
    Database.open(in_data(tmp_path)).close()


@pytest.mark.parametrize("content", [b"not a database, just text" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "stentor.db"
    path.write_bytes(content)
    with pytest.raises(StentorError, match=r"Can't open the database .*(damaged|not a database).*[Bb]ackup"):
        Database.open(in_data(tmp_path))
    assert path.read_bytes() == content


def test_a_directory_that_cannot_be_made_is_named() -> None:
    with pytest.raises(StentorError, match=r"/proc/stentor.*STENTOR_DATA_DIR"):
        Database.open(in_data(Path("/proc/stentor")))


def test_a_directory_that_cannot_be_written_is_named() -> None:
    with pytest.raises(StentorError, match=r"Can't write in /proc/self/fdinfo.*STENTOR_DATA_DIR"):
        Database.open(in_data(Path("/proc/self/fdinfo")))


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StentorError, match=r"data.*STENTOR_DATA_DIR"):
        Database.open(in_data(tmp_path / "data"))


def test_a_database_that_another_process_locks_is_refused_in_words(tmp_path: Path, foreign) -> None:
    Database.open(in_data(tmp_path)).close()
    other = foreign(tmp_path / "stentor.db")
    other.run("PRAGMA locking_mode=EXCLUSIVE")
    other.run("BEGIN EXCLUSIVE")
    with pytest.raises(StentorError, match=r"another process holds the database locked.*fuser"):
        Database.open(in_data(tmp_path))
    other.end()
    Database.open(in_data(tmp_path)).close()


def test_other_systems_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StentorError, match="postgresql://"):
        Database.open(StoreSettings(data_dir=tmp_path, url="postgresql://localhost/stentor"))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("", "/data/stentor.db"),
        ("/srv/a.db", "/srv/a.db"),
        ("sqlite:///srv/a.db", "/srv/a.db"),
        ("sqlite://a.db?mode=rwc", "a.db"),
    ],
)
def test_urls_are_read_as_sqlx_does(url: str, path: str) -> None:
    assert driver.database_path(StoreSettings(data_dir=Path("/data"), url=url)) == Path(path)


def test_the_build_in_use_has_the_fixed_log() -> None:
    if platform.machine() == "x86_64":  # the dependency is for these
        assert driver.module is not sqlite3
    assert driver.module is sqlite3 or driver.is_wal_safe()


def test_the_database_is_its_owners_alone_in_a_folder_that_others_may_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    Database.open(in_data(tmp_path)).close()
    assert [oct(path.stat().st_mode & 0o077) for path in tmp_path.glob("stentor.db*")] == ["0o0"]
    database = Database.open(in_data(tmp_path))
    try:
        assert {path.stat().st_mode & 0o077 for path in tmp_path.glob("stentor.db*")} == {0}
    finally:
        database.close()
