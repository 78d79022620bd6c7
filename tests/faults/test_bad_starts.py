"""A server that can't start says in one line why and what to do, and changes nothing."""

import hashlib
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import MakeSubject
from tests.faults.subject import MORTAL, Subject, Surroundings, fail_start, limited, run_stentor
from tests.serving import scripted_model


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file below the folder by its bytes; the lock file says who came last, and may."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "stentor.lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def contents(subject: Subject) -> list[str]:
    """Everything in the database but the number of the last start."""
    raw = sqlite3.connect(f"file:{subject.data_dir / 'stentor.db'}?mode=ro", uri=True)
    try:
        return [line for line in raw.iterdump() if "'epoch'" not in line]
    finally:
        raw.close()


@pytest.fixture(scope="module")
def veteran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The data folder of a server that has run once and answered once, and its key."""
    place = Surroundings(tmp_path_factory.mktemp("veteran"))
    subject = Subject(place, scripted_model(), "--admin-key")
    subject.start()
    assert subject.chat("hello").status == 200
    assert subject.stop() == 0
    yield subject.data_dir, subject.key
    place.check_empty()


@pytest.fixture
def used(make_subject: MakeSubject, veteran: tuple[Path, str]) -> Subject:
    """A server that has run before, on a copy of its data; it stands still."""
    subject = make_subject()
    data_dir, subject.key = veteran
    shutil.copytree(data_dir, subject.data_dir, ignore=shutil.ignore_patterns("*.sock"))
    subject.data_dir.chmod(0o700)
    return subject


def assert_works_again(subject: Subject) -> None:
    """The same key opens, and the first answer is still in the books."""
    subject.start()
    assert subject.ready["api_key"] is None, "it began anew"
    assert subject.chat("hello again").status == 200
    assert [event["status"] for event in subject.rows("/usage")] == ["completed", "completed"]
    assert subject.stop() == 0


# -- ports and locks


@pytest.mark.parametrize(("workers", "shared"), [(1, False), (2, False), (2, True)])
def test_a_taken_port(make_subject: MakeSubject, workers: int, shared: bool) -> None:
    subject = make_subject(GATEWAY_WORKERS=workers)
    with socket.socket() as other:
        if shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", subject.port))
        other.listen()
        said = fail_start(subject)
    assert f"127.0.0.1:{subject.port}" in said
    assert "--port" in said


def test_a_second_server_on_the_same_data(make_subject: MakeSubject) -> None:
    first, second = make_subject(), make_subject()
    first.start()
    said = fail_start(second)
    assert str(first.data_dir) in said
    assert f"process {first.pid}" in said
    assert "STENTOR_DATA_DIR" in said
    assert first.chat("still there?").status == 200


def test_a_database_that_another_program_locks(used: Subject) -> None:
    raw = sqlite3.connect(used.data_dir / "stentor.db", isolation_level=None)
    try:
        raw.execute("BEGIN EXCLUSIVE")
        said = fail_start(used)
        raw.execute("ROLLBACK")
    finally:
        raw.close()
    assert "another process holds the database locked" in said
    assert "fuser" in said
    assert_works_again(used)


# -- files


def damage_header(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(b"\0" * 4096 + data[4096:])


def make_foreign(path: Path) -> None:
    path.unlink()
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE conversations (id INTEGER PRIMARY KEY, title TEXT)")
    raw.execute("INSERT INTO conversations VALUES (1, 'precious')")
    raw.commit()
    raw.close()


def make_newer(path: Path) -> None:
    raw = sqlite3.connect(path)
    raw.execute("UPDATE alembic_version SET version_num = 'm9999'")
    raw.commit()
    raw.close()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage_header, ["stentor.db", "not a database", "backup"]),
        (make_foreign, ["stentor.db", "aren't Stentor's", "untouched", "STENTOR_DATABASE_URL"]),
        (make_newer, ["m9999", "newer"]),
    ],
    ids=["damaged", "foreign", "newer"],
)
def test_a_database_that_is_not_what_it_should_be(
    used: Subject, harm: Callable[[Path], None], words: list[str]
) -> None:
    database = used.data_dir / "stentor.db"
    whole = database.read_bytes()
    harm(database)
    before = fingerprint(used.data_dir)
    said = fail_start(used)
    assert all(word in said for word in words), said
    assert fingerprint(used.data_dir) == before
    database.write_bytes(whole)
    assert_works_again(used)


@pytest.mark.parametrize("right", [0o500, 0o000], ids=["read-only", "closed"])
def test_a_data_folder_without_rights(used: Subject, right: int) -> None:
    used.data_dir.chmod(right)
    try:
        said = fail_start(used, *MORTAL)
    finally:
        used.data_dir.chmod(0o700)
    assert str(used.data_dir) in said
    assert_works_again(used)


@pytest.mark.parametrize(("right", "problem"), [(0o400, "read-only"), (0o000, "can't be opened")])
def test_a_database_file_without_rights(used: Subject, right: int, problem: str) -> None:
    database = used.data_dir / "stentor.db"
    database.chmod(right)
    try:
        said = fail_start(used, *MORTAL)
    finally:
        database.chmod(0o600)
    assert problem in said
    assert str(database) in said
    assert_works_again(used)


def test_a_file_where_the_data_folder_should_be(make_subject: MakeSubject) -> None:
    subject = make_subject()
    subject.data_dir.write_text("mine")
    assert str(subject.data_dir) in fail_start(subject)
    assert subject.data_dir.read_text() == "mine"


@pytest.mark.parametrize("size_bytes", [0, 4096, 40_000, 120_000])
def test_a_disk_without_room_at_the_first_start(make_subject: MakeSubject, size_bytes: int) -> None:
    subject = make_subject()
    said = fail_start(subject, *limited(size_bytes))
    assert "disk" in said
    # What was begun is no obstacle once there is room.
    subject.start()
    assert subject.ready["api_key"]
    assert subject.chat("hello").status == 200


def test_a_disk_without_room_at_a_later_start(used: Subject) -> None:
    said = fail_start(used, *limited(2048))
    assert "disk" in said
    assert_works_again(used)


# -- the master key


def test_a_missing_master_key(used: Subject) -> None:
    (key_file,) = used.data_dir.glob("*key*")
    text = key_file.read_text()
    key_file.unlink()
    before = contents(used)
    said = fail_start(used)
    assert str(key_file) in said
    assert "STENTOR_MASTER_KEY" in said
    assert not key_file.exists(), "a new key was made"
    assert contents(used) == before
    key_file.write_text(text)
    assert_works_again(used)


@pytest.mark.parametrize(
    ("key", "words"),
    [("0" * 64, "sealed with master key"), ("A" * 43 + "=", "sealed with master key"), ("tooshort", "64 hex digits")],
    ids=["another-hex", "another-base64", "no-key"],
)
def test_a_wrong_master_key(used: Subject, key: str, words: str) -> None:
    before = contents(used)
    said = fail_start(used, STENTOR_MASTER_KEY=key)
    assert words in said
    assert key not in said
    assert contents(used) == before
    assert_works_again(used)


# -- settings


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        ("port = [", {}, ["stentor.toml", "not valid TOML"]),
        ("port = 70000", {}, ["port", "stentor.toml", "70000"]),
        ("prot = 4000", {}, ["prot", "port"]),
        ("[[models]]\nid = 'a b'\nsource = 'file:x.gguf'", {}, ["id", "stentor.toml:2"]),
        ("[[models]]\nid = 'x'\nengine = 'command'\ncommand = ['true']", {}, ["${PORT}"]),
        ("", {"STENTOR_GATEWAY_WORKERS": "none"}, ["GATEWAY_WORKERS", "none"]),
        ("", {"STENTOR_DRAIN_S": "-1"}, ["DRAIN_S", "-1"]),
        ("", {"STENTOR_API_KEY": "changeme"}, ["STENTOR_API_KEY"]),
        ("", {"STENTOR_DATABASE_URL": "mysql://u:secret@h/d"}, ["STENTOR_DATABASE_URL"]),
    ],
)
def test_settings_that_make_no_sense(
    make_subject: MakeSubject, config: str, settings: dict[str, str], words: list[str]
) -> None:
    subject = make_subject(config or scripted_model())
    said = fail_start(subject, **settings)
    assert all(word in said for word in words), said
    assert "secret" not in said
    assert fingerprint(subject.data_dir) == {}


def test_a_settings_file_that_cannot_be_read(make_subject: MakeSubject) -> None:
    subject = make_subject()
    subject.config.chmod(0)
    assert str(subject.config) in fail_start(subject, *MORTAL)
    subject.config.unlink()
    assert str(subject.config) in fail_start(subject)
    subject.config.mkdir()
    assert str(subject.config) in fail_start(subject)


def test_a_misspelt_setting_is_told_with_the_nearest_name(make_subject: MakeSubject) -> None:
    subject = make_subject()
    ended = run_stentor(subject.place, "config", environ={**subject.environ, "STENTOR_GATEWAY_WORKER": "2"})
    assert "STENTOR_GATEWAY_WORKERS" in ended.err
