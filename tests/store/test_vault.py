"""The master key and the data keys: made once, opened by the right key alone, never replaced by accident."""

import base64
import os
import stat
from pathlib import Path

import pytest
from sqlalchemy import select, update

from stentor.core.errors import StentorError
from stentor.store.database import Database
from stentor.store.schema import data_keys
from stentor.vault.keyring import Keyring, seal, unseal
from stentor.vault.master import parse_master_key
from stentor.vault.settings import VaultSettings

KEY = "ab" * 32


async def open_keyring(database: Database, settings: VaultSettings) -> Keyring:
    return await database.write(lambda connection: Keyring.open(connection, settings, 1))


@pytest.fixture
def in_file(tmp_path: Path) -> VaultSettings:
    return VaultSettings(key_file=tmp_path / "master.key")


async def rows(database: Database) -> list[tuple]:
    return await database.read(lambda c: [tuple(row) for row in c.execute(select(data_keys).order_by(data_keys.c.id))])


async def test_the_first_start_makes_a_key_that_only_its_owner_reads(database: Database, in_file) -> None:
    ring = await open_keyring(database, in_file)
    mode = stat.S_IMODE(in_file.key_file.stat().st_mode)
    assert mode == 0o600
    assert len(bytes.fromhex(in_file.key_file.read_text().strip())) == 32
    assert len(ring.pepper()) == 32


async def test_the_pepper_stays_the_same(database: Database, in_file) -> None:
    first = await open_keyring(database, in_file)
    before = await rows(database)
    again = await open_keyring(database, in_file)
    assert again.pepper() == first.pepper()
    assert await rows(database) == before


async def test_a_lost_key_file_is_not_replaced(database: Database, in_file) -> None:
    ring = await open_keyring(database, in_file)
    in_file.key_file.unlink()
    with pytest.raises(StentorError, match=rf"sealed with master key {ring.master_key_id}.*missing"):
        await open_keyring(database, in_file)
    assert not in_file.key_file.exists()


async def test_a_wrong_key_is_refused_and_destroys_nothing(database: Database, in_file) -> None:
    ring = await open_keyring(database, in_file)
    before = await rows(database)
    wrong = VaultSettings(key_file=in_file.key_file, master_key=KEY)
    with pytest.raises(StentorError) as caught:
        await open_keyring(database, wrong)
    assert ring.master_key_id in str(caught.value)
    assert "STENTOR_MASTER_KEY" in str(caught.value)
    assert KEY not in str(caught.value)
    assert await rows(database) == before
    assert (await open_keyring(database, in_file)).pepper() == ring.pepper()


async def test_an_altered_data_key_is_noticed(database: Database, in_file) -> None:
    await open_keyring(database, in_file)
    await database.write(lambda c: c.execute(update(data_keys).values(wrapped=os.urandom(60))).rowcount)
    with pytest.raises(StentorError, match="altered"):
        await open_keyring(database, in_file)


async def test_a_data_key_opens_in_its_own_row_only(database: Database, in_file) -> None:
    await open_keyring(database, in_file)
    first, second, *_ = await rows(database)
    await database.write(
        lambda c: c.execute(update(data_keys).where(data_keys.c.id == first[0]).values(wrapped=second[3])).rowcount
    )
    with pytest.raises(StentorError, match="altered"):
        await open_keyring(database, in_file)


async def test_a_given_key_needs_no_file(database: Database, tmp_path: Path) -> None:
    nowhere = tmp_path / "none" / "master.key"
    ring = await open_keyring(database, VaultSettings(nowhere, KEY))
    same = VaultSettings(nowhere, base64.b64encode(bytes.fromhex(KEY)).decode())
    assert (await open_keyring(database, same)).pepper() == ring.pepper()


async def test_a_key_file_that_cannot_be_written_is_named(database: Database, tmp_path: Path) -> None:
    with pytest.raises(StentorError, match=r"none/master\.key.*STENTOR_MASTER_KEY"):
        await open_keyring(database, VaultSettings(tmp_path / "none" / "master.key"))
    assert await rows(database) == []


@pytest.mark.parametrize("text", ["", "short", "zz" * 32, "ab" * 31, base64.b64encode(bytes(31)).decode()])
def test_what_is_no_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(StentorError) as caught:
        parse_master_key(text, "here")
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_keys_may_be_base64(encode) -> None:
    secret = bytes(range(224, 256))
    assert parse_master_key(encode(secret).decode(), "x").secret == secret
    assert parse_master_key(encode(secret).decode().rstrip("=") + "\n", "x").secret == secret


async def test_secrets_open_where_they_were_sealed(database: Database, in_file) -> None:
    ring = await open_keyring(database, in_file)
    key_id, sealed = ring.seal(b"token", "secrets", "row-1")
    assert b"token" not in sealed
    assert ring.unseal(key_id, sealed, "secrets", "row-1") == b"token"
    for moved in (("secrets", "row-2"), ("other", "row-1")):
        with pytest.raises(StentorError, match="can't be opened"):
            ring.unseal(key_id, sealed, *moved)
    with pytest.raises(StentorError, match="can't be opened"):
        ring.unseal("unknown", sealed, "secrets", "row-1")


def test_two_seals_of_the_same_differ() -> None:
    key = bytes(32)
    assert seal(key, b"x", "p") != seal(key, b"x", "p")
    assert unseal(key, seal(key, b"x", "p"), "p") == b"x"


def test_nothing_secret_is_printed(tmp_path: Path) -> None:
    settings = VaultSettings(tmp_path / "k", KEY)
    assert KEY not in repr(settings)
    assert KEY not in repr(parse_master_key(KEY, "x"))
