"""What others trusted the server with: sealed in the database, write-only, kept through a change of the master key."""

import asyncio
import stat
from pathlib import Path

import pytest
from sqlalchemy import Connection, select, update

from stentor.audit.log import Actor, list_changes
from stentor.control.credentials import Credentials
from stentor.core.addresses import AllowList
from stentor.core.errors import Refused, StentorError
from stentor.egress.targets import check_target, read_target
from stentor.store.database import Database
from stentor.store.schema import metadata
from stentor.store.schema import secrets as secret_rows
from stentor.vault import exchange
from stentor.vault.keyring import Keyring
from stentor.vault.providers import NewProvider, ProviderChange
from stentor.vault.settings import VaultSettings

OPERATOR = Actor("operator", "cli")
CANARY = "canary-6f1d2c-provider-key-Zq9x"
TOKEN = "hf_canaryTokenOfTheModelHub77"
ACME = NewProvider("acme", "openai", "https://api.acme.example/v1", CANARY)


class Clock:
    now = 1_000_000

    def now_us(self) -> int:
        self.now += 1
        return self.now

    def monotonic_s(self) -> float:
        return 0.0


def check(url: str) -> None:
    check_target(read_target(url), AllowList(()))


class Vaulted:
    """Credentials over a database, opened anew as a start of the server does."""

    def __init__(self, database: Database, settings: VaultSettings) -> None:
        self.database = database
        self.settings = settings
        self.clock = Clock()

    async def open(self) -> Credentials:
        self.ring = await self.database.write(lambda c: Keyring.open(c, self.settings, self.clock.now_us()))
        made = Credentials(self.database, self.ring, self.settings, self.clock, check)
        await made.load()
        return made


@pytest.fixture
def vault(database: Database, tmp_path: Path) -> Vaulted:
    return Vaulted(database, VaultSettings(key_file=tmp_path / "master.key"))


async def dump(database: Database) -> bytes:
    """Every value of every row."""

    def read(connection: Connection) -> bytes:
        rows = [row for table in metadata.sorted_tables for row in connection.execute(select(table))]
        return b"\n".join(v if isinstance(v, bytes) else str(v).encode() for row in rows for v in row)

    return await database.read(read)


async def test_a_credential_is_kept_for_use_and_never_shown(vault: Vaulted) -> None:
    held = await vault.open()
    made = await held.add_provider(OPERATOR, ACME)
    assert (made.hint, made.has_credential) == ("Zq9x", True)
    known = (await vault.open()).find_provider("acme")
    assert known is not None
    assert (known.kind, known.base_url, known.credential) == ("openai", ACME.base_url, CANARY)
    listed = await held.list_providers()
    changes = await vault.database.read(list_changes)
    for shown in (repr(made), repr(listed), repr(ACME), repr(known), repr(changes), repr(held.list_secrets)):
        assert CANARY not in shown
    assert CANARY.encode() not in await dump(vault.database)
    assert [change.action for change in changes] == ["provider_create"]


async def test_short_credentials_have_no_hint(vault: Vaulted) -> None:
    held = await vault.open()
    made = await held.add_provider(OPERATOR, NewProvider("short", "openai", "https://a.example", "secret"))
    assert made.hint == ""
    none = await held.add_provider(OPERATOR, NewProvider("open", "openai", "https://a.example"))
    assert (none.has_credential, none.hint) == (False, "")


async def test_a_credential_is_not_sent_to_another_address(vault: Vaulted) -> None:
    held = await vault.open()
    await held.add_provider(OPERATOR, ACME)
    with pytest.raises(Refused, match="needs the credential again"):
        await held.change_provider(OPERATOR, "acme", ProviderChange(base_url="https://evil.example/v1"))
    known = held.find_provider("acme")
    assert known is not None
    assert known.base_url == ACME.base_url
    await held.change_provider(OPERATOR, "acme", ProviderChange(base_url="https://b.example/v1", credential="k" * 20))
    known = held.find_provider("acme")
    assert known is not None
    assert (known.base_url, known.credential) == ("https://b.example/v1", "k" * 20)
    changed = await held.change_provider(OPERATOR, "acme", ProviderChange(credential=""))
    assert not changed.has_credential


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000", "http://169.254.169.254/", "ftp://x", "http://u:p@x.example/",
        f"https://a.example/v1?key={CANARY}", "https://a.example/v1#x",
    ],
)  # fmt: skip
async def test_an_api_names_no_address_inside(vault: Vaulted, url: str) -> None:
    held = await vault.open()
    with pytest.raises(Refused):
        await held.add_provider(OPERATOR, NewProvider("inside", "openai", url, CANARY))
    assert await held.list_providers() == []


@pytest.mark.parametrize("credential", ["with space in it", "line\nbreak", "ümläut", "x" * 5000])
async def test_a_wrong_credential_is_refused_unspoken_and_leaves_nothing(vault: Vaulted, credential: str) -> None:
    held = await vault.open()
    with pytest.raises(Refused) as caught:
        await held.add_provider(OPERATOR, NewProvider("acme", "openai", "https://a.example", credential))
    assert credential not in caught.value.message
    assert await held.list_providers() == []


async def test_names_are_taken_once_and_gone_when_removed(vault: Vaulted) -> None:
    held = await vault.open()
    await held.add_provider(OPERATOR, ACME)
    with pytest.raises(Refused) as caught:
        await held.add_provider(OPERATOR, ACME)
    assert caught.value.code == "conflict"
    await held.remove_provider(OPERATOR, "acme")
    assert held.find_provider("acme") is None
    assert await held.list_secrets() == []
    for work in (held.remove_provider(OPERATOR, "acme"), held.change_provider(OPERATOR, "acme", ProviderChange())):
        with pytest.raises(Refused) as caught:
            await work
        assert caught.value.code == "not_found"


async def test_the_hub_token_that_was_set_last_counts(vault: Vaulted) -> None:
    held = await vault.open()
    assert await held.find_hf_token() is None
    await held.set_hub_token(OPERATOR, "default", TOKEN)
    await held.set_hub_token(OPERATOR, "team", "hf_other")
    assert await held.find_hf_token() == "hf_other"
    await held.set_hub_token(OPERATOR, "default", TOKEN)
    assert await held.find_hf_token() == TOKEN
    assert [(each.name, each.hint) for each in await held.list_hub_tokens()] == [("default", "ub77"), ("team", "")]
    await held.remove_hub_token(OPERATOR, "default")
    assert await held.find_hf_token() == "hf_other"
    assert TOKEN.encode() not in await dump(vault.database)


async def test_a_secret_that_was_moved_or_changed_does_not_open(vault: Vaulted) -> None:
    held = await vault.open()
    await held.add_provider(OPERATOR, ACME)
    await held.set_hub_token(OPERATOR, "default", TOKEN)

    def swap(connection) -> None:  # type: ignore[no-untyped-def]
        rows = {row.kind: row for row in connection.execute(select(secret_rows))}
        where = update(secret_rows).where(secret_rows.c.kind == "provider")
        connection.execute(where.values(sealed=rows["hf_token"].sealed))

    await vault.database.write(swap)
    with pytest.raises(StentorError, match="changed or"):
        await vault.open()


# -- the master key


async def test_after_a_rotation_everything_opens_as_before(vault: Vaulted) -> None:
    held = await vault.open()
    await held.add_provider(OPERATOR, ACME)
    pepper, old_id, old_text = vault.ring.pepper(), vault.ring.master_key_id, vault.settings.key_file.read_text()
    done = await held.rotate(OPERATOR, None)
    assert done.master_key_id != old_id
    assert done.data_keys >= 2
    assert vault.settings.key_file.read_text() != old_text
    assert done.kept is not None
    assert Path(done.kept).read_text() == old_text
    for path in (Path(done.kept), vault.settings.key_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    known = (await vault.open()).find_provider("acme")
    assert known is not None
    assert known.credential == CANARY
    assert vault.ring.pepper() == pepper
    assert vault.ring.master_key_id == done.master_key_id
    wrong = VaultSettings(key_file=vault.settings.key_file, master_key=old_text.strip())
    with pytest.raises(StentorError, match="Nothing was changed"):
        await vault.database.write(lambda c: Keyring.open(c, wrong, 1))


async def test_a_start_after_a_cut_between_wrapping_and_exchange_finishes_it(
    vault: Vaulted, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await vault.open()
    await held.add_provider(OPERATOR, ACME)
    monkeypatch.setattr("stentor.control.credentials.install_key", lambda _path: None)  # the power goes here
    done = await held.rotate(OPERATOR, None)
    monkeypatch.undo()
    assert exchange.next_file(vault.settings.key_file).exists()
    known = (await vault.open()).find_provider("acme")
    assert known is not None
    assert known.credential == CANARY
    assert vault.ring.master_key_id == done.master_key_id
    assert not exchange.next_file(vault.settings.key_file).exists()
    assert len(list(vault.settings.key_file.parent.glob("master.key.*.old"))) == 1


async def test_a_cut_before_the_wrapping_leaves_the_old_key_in_force(vault: Vaulted) -> None:
    held = await vault.open()
    before = vault.ring.master_key_id
    await held.set_hub_token(OPERATOR, "default", TOKEN)
    exchange.stage_key(vault.settings.key_file, exchange.MasterKey(b"x" * 32))
    again = await vault.open()
    assert vault.ring.master_key_id == before
    assert await again.find_hf_token() == TOKEN
    await again.rotate(OPERATOR, None)
    assert await (await vault.open()).find_hf_token() == TOKEN


async def test_a_key_that_may_be_in_force_outlives_the_next_rotation(
    vault: Vaulted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database took the first key and couldn't say so; the second rotation is cut before it takes another."""
    held = await vault.open()
    await held.add_provider(OPERATOR, ACME)
    monkeypatch.setattr("stentor.control.credentials.install_key", lambda _path: None)
    first = await held.rotate(OPERATOR, None)
    exchange.stage_key(vault.settings.key_file, exchange.MasterKey(b"y" * 32))  # and the power goes here
    with pytest.raises(StentorError, match="It is kept in"):
        await vault.open()
    kept = exchange.old_file(vault.settings.key_file, first.master_key_id)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.replace(vault.settings.key_file)
    known = (await vault.open()).find_provider("acme")
    assert known is not None
    assert known.credential == CANARY


async def test_a_given_key_needs_a_given_successor(database: Database, tmp_path: Path) -> None:
    vault = Vaulted(database, VaultSettings(key_file=tmp_path / "none.key", master_key="ab" * 32))
    held = await vault.open()
    await held.set_hub_token(OPERATOR, "default", TOKEN)
    for given, words in ((None, "has to be given"), ("ab" * 32, "already"), ("short", "isn't 64 hex digits")):
        with pytest.raises(Refused, match=words):
            await held.rotate(OPERATOR, given)
    done = await held.rotate(OPERATOR, "cd" * 32)
    assert done.kept is None
    assert not vault.settings.key_file.exists()
    vault.settings = VaultSettings(key_file=tmp_path / "none.key", master_key="cd" * 32)
    assert await (await vault.open()).find_hf_token() == TOKEN


async def test_rotations_and_changes_at_once_lose_nothing(vault: Vaulted) -> None:
    held = await vault.open()
    names = [f"token-{number}" for number in range(8)]
    await asyncio.gather(
        *(held.set_hub_token(OPERATOR, name, f"hf_{name}_abcdefghijk") for name in names),
        *(held.rotate(OPERATOR, None) for _ in range(3)),
    )
    again = await vault.open()
    assert [each.name for each in await again.list_hub_tokens()] == names
    assert await again.find_hf_token() is not None
