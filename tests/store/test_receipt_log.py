"""The receipt log on a database: numbering, crashes, rivals, backups, and receipts that were tampered with."""

import asyncio
import contextlib
import copy
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text

from stentor.control.ring.certified import Certified
from stentor.core.errors import Refused, StentorError, StoreUnavailable
from stentor.receipts.health import LogHealth
from stentor.receipts.keys import OVERLAP_US, Keys, given_key
from stentor.receipts.log import ReceiptLog, SequencerReplaced
from stentor.receipts.merkle import is_consistent
from stentor.receipts.note import list_signers, read_checkpoint
from stentor.receipts.office import ReceiptOffice
from stentor.receipts.sequencer import Sequencer
from stentor.receipts.settings import ReceiptSettings
from stentor.receipts.values import GenerateRequest
from stentor.receipts.verify import read_keys, verify_receipt
from stentor.store.database import Database
from stentor.store.ring_schema import client_logs, receipt_items
from stentor.store.settings import StoreSettings
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings
from tests.independent_verifier import check_receipt, merkle_root
from tests.store.conftest import House


class Registry:
    """A receipt log with its sequencer and office, as a server has them."""

    def __init__(self, house: House, settings: ReceiptSettings, log: Log) -> None:
        self.house = house
        self.settings = settings
        self._log = log
        self.receipt_log: ReceiptLog
        self.sequencer: Sequencer
        self.office: ReceiptOffice

    async def start(self) -> "Registry":
        database, clock, keyring = self.house.database, self.house.clock, self.house.keyring
        keys = await database.write(lambda c: Keys.open(c, keyring, self.settings, clock.now_us()))
        self.receipt_log = await ReceiptLog.open(database, self.settings, clock)
        self.office = ReceiptOffice(database, self.receipt_log, keys, keyring.receipt_salt(), clock)
        self.sequencer = Sequencer(database, self.receipt_log, keyring.receipt_salt(), clock, self._log)
        return self

    async def settle(self, count: int = 1) -> list[str]:
        """Settled requests; the ids of their receipts."""
        key = await self.house.add_key("ann")
        grants = [await self.house.open(key) for _ in range(count)]
        await asyncio.gather(*(self.house.close(grant) for grant in grants))
        return [f"rcpt_{grant.request_id}_{grant.attempt}" for grant in grants]

    @property
    def size(self) -> int:
        return self.receipt_log.row.size

    def public_keys(self) -> list[dict[str, Any]]:
        return json.loads(json.dumps(self.office.describe_keys()))


@pytest.fixture
def settings(tmp_path: Path) -> ReceiptSettings:
    return ReceiptSettings(anchor=tmp_path / "data" / "receipts.anchor")


@pytest.fixture
async def registry(house: House, settings: ReceiptSettings) -> AsyncIterator[Registry]:
    await house.set_tier("free")
    await house.add_user("ann", tier="free")
    log = Log(TelemetrySettings(log_level="ERROR", log_format="json"))
    yield await Registry(house, settings, log).start()
    log.close()


async def test_what_is_settled_gets_a_leaf_and_a_receipt_that_two_verifiers_accept(registry: Registry) -> None:
    names = await registry.settle(5)
    assert "log" not in await registry.office.get(None, names[0])  # pending
    assert await registry.sequencer.catch_up() == 5
    keys = registry.public_keys()
    for name in names:
        receipt = json.loads(json.dumps(await registry.office.get(None, name)))
        verdict = verify_receipt(receipt, read_keys(keys))
        assert (verdict.valid, verdict.log, verdict.problem) == (True, "included", None)
        assert check_receipt(receipt, keys)
        assert receipt["metered_by"] == "stentor"
        assert receipt["cost"]["amount"] == "0.000003000"
    assert await registry.sequencer.catch_up() == 0


async def test_what_is_settled_meanwhile_waits_for_the_next_time(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or under steady load each few settlements would have a transaction of their own, and none would be gathered."""
    await registry.settle(3)
    append = registry.receipt_log.append
    more = iter(range(5))

    async def append_and_settle(*given: Any) -> Any:
        done = await append(*given)
        if next(more, None) is not None:
            await registry.settle(2)
        return done

    monkeypatch.setattr(registry.receipt_log, "append", append_and_settle)
    assert await registry.sequencer.catch_up() == 3
    assert await registry.sequencer.catch_up() == 2


async def test_many_batches_make_the_tree_that_the_leaves_say(registry: Registry) -> None:
    await registry.settle(700)
    assert await registry.sequencer.catch_up() == 700
    row = registry.receipt_log.row
    leaves = await registry.receipt_log.leaf_hashes(row, 0, 700)
    signed = await registry.receipt_log.checkpoint(fresh=True)
    assert signed.checkpoint.root == merkle_root(leaves)
    for first in (1, 255, 256, 257, 699):
        proof = await registry.receipt_log.prove_consistency(row.id, first, 700)
        assert is_consistent(first, 700, merkle_root(leaves[:first]), signed.checkpoint.root, proof)


async def test_each_leaf_is_found_from_its_event_and_each_event_from_its_leaf(registry: Registry, house: House) -> None:
    names: list[str] = []
    for gap in (0, 7, 1000):  # numbers are lost where a transaction was undone
        settled = await registry.settle(3)
        ids = ", ".join(f"'{name.split('_')[1]}'" for name in settled)
        lose = text(f"UPDATE usage_events SET id = id + {gap} WHERE request_id IN ({ids})")
        await house.database.write(lambda connection, lose=lose: connection.execute(lose).rowcount)
        await registry.sequencer.catch_up()
        names += settled
    indexes = [(await registry.office.get(None, name))["log"]["index"] for name in names]
    assert sorted(indexes) == list(range(9))
    for start, end in ((0, 9), (0, 1), (2, 4), (4, 5), (5, 9)):
        entries = await registry.office.entries(registry.receipt_log.row, start, end, None)
        told = [entry["content"]["id"] for entry in entries]
        assert told == [names[indexes.index(index)] for index in range(start, end)]


async def test_a_crash_between_settlement_and_append_loses_and_repeats_nothing(registry: Registry) -> None:
    first = await registry.settle(3)
    await registry.sequencer.catch_up()
    second = await registry.settle(4)
    await registry.start()  # the process died before the four were numbered
    assert registry.size == 3
    assert await registry.sequencer.catch_up() == 4
    await registry.start()  # and again, right after
    assert await registry.sequencer.catch_up() == 0
    indexes = [(await registry.office.get(None, name))["log"]["index"] for name in first + second]
    assert sorted(indexes) == list(range(7))


async def test_an_append_that_fails_is_made_again_whole(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    await registry.settle(3)
    database = registry.house.database
    write = database.write

    async def fails_after(work):
        await write(work)
        raise StoreUnavailable("the line broke after the commit")

    monkeypatch.setattr(database, "write", fails_after)
    with pytest.raises(StoreUnavailable):
        await registry.sequencer.catch_up()
    monkeypatch.undo()
    await registry.settle(1)
    with pytest.raises(SequencerReplaced):
        await registry.sequencer.catch_up()
    assert await registry.receipt_log.resync()
    assert await registry.sequencer.catch_up() == 1
    assert registry.size == 4


async def test_of_two_sequencers_the_older_one_stops(registry: Registry, house: House, settings) -> None:
    log = Log(TelemetrySettings(log_level="ERROR", log_format="json"))
    rival = await Registry(house, settings, log).start()
    await registry.settle(6)
    for one in (registry, rival, registry):
        try:
            await one.sequencer.catch_up()
        except SequencerReplaced:
            assert one is registry
    assert rival.size == 6
    assert not await registry.receipt_log.resync()
    await registry.settle(1)
    await asyncio.wait_for(registry.sequencer.run(), 30)  # ends by itself
    assert registry.sequencer.replaced
    taken = await house.database.read(lambda c: c.execute(text("SELECT sum(leaves) FROM usage_runs")).scalar_one())
    assert taken == 6
    log.close()


async def test_two_sequencers_at_once_never_fork(registry: Registry, house: House, settings) -> None:
    log = Log(TelemetrySettings(log_level="ERROR", log_format="json"))
    rivals = [registry, *[await Registry(house, settings, log).start() for _ in range(3)]]
    await registry.settle(300)
    results = await asyncio.gather(*(one.sequencer.catch_up() for one in rivals), return_exceptions=True)
    assert [type(result) for result in results[:-1]] == [SequencerReplaced] * 3
    assert results[-1] == 300
    log.close()


async def test_the_task_numbers_soon_when_it_is_woken(
    registry: Registry, wait_until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stentor.receipts.sequencer.IDLE_S", 3600.0)  # by itself it would look then
    monkeypatch.setattr("stentor.receipts.sequencer.POLL_S", 3600.0)
    task = asyncio.create_task(registry.sequencer.run())
    try:
        await asyncio.sleep(0.05)
        await registry.settle(2)
        registry.sequencer.wake()
        await wait_until(lambda: registry.size >= 2)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_receipt_asked_for_while_its_append_is_confirmed_has_its_proof(registry: Registry) -> None:
    """Readers see a commit before the sequencer hears of it."""
    await registry.settle(1)
    await registry.sequencer.catch_up()
    await registry.receipt_log.checkpoint(fresh=True)
    unsigned = {"id": "mine", "model": "x", "cost": {"amount": "1.00", "calculation": ""}}
    await registry.office.issue("p", unsigned, "A")
    store, found = registry.receipt_log._store, []

    class Slow:
        read = staticmethod(store.read)

        @staticmethod
        async def write(work):
            await store.write(work)
            found.append(await registry.office.get("p", "mine"))

    registry.receipt_log._store = Slow
    assert await registry.sequencer.catch_up() == 1
    assert check_receipt(found[0], registry.public_keys())


async def test_late_commits_with_lower_numbers_are_taken_by_the_sweep(registry: Registry, house: House) -> None:
    names = await registry.settle(3)
    await registry.sequencer.catch_up()

    def forget_one(connection):
        connection.execute(text("UPDATE usage_events SET id = 100 + id"))
        connection.execute(text("UPDATE usage_events SET id = 1 WHERE id = 102"))
        connection.execute(text("UPDATE usage_runs SET first_usage = 101, leaves = 1"))
        third = "INSERT INTO usage_runs (log_id, first_leaf, first_usage, leaves)"
        connection.execute(text(f"{third} SELECT log_id, 2, 103, 1 FROM usage_runs"))
        connection.execute(text("UPDATE merkle_logs SET event_mark = 103"))

    await house.database.write(forget_one)
    assert await registry.receipt_log.resync()
    assert await registry.sequencer.catch_up() == 0
    house.clock.advance(120)
    # A server that has the database for itself commits in the order of its numbers, and needn't look.
    assert await registry.sequencer.catch_up() == (1 if house.database.is_shared else 0)
    assert len(names) == 3


# -- backups


async def _restart(registry: Registry) -> Registry:
    return await Registry(registry.house, registry.settings, registry._log).start()


async def test_a_restart_goes_on_with_the_same_origin(registry: Registry) -> None:
    await registry.settle(3)
    await registry.sequencer.catch_up()
    before = await registry.receipt_log.checkpoint(fresh=True)
    await registry.settle(2)
    await registry.sequencer.catch_up()
    again = await _restart(registry)
    after = await again.receipt_log.checkpoint(fresh=True)
    assert after.checkpoint.origin == before.checkpoint.origin
    assert after.checkpoint.extensions == ()


async def test_a_database_put_back_in_time_is_a_new_origin(registry: Registry, house: House) -> None:
    await registry.settle(5)
    await registry.sequencer.catch_up()
    shown = await registry.receipt_log.checkpoint(fresh=True)

    def put_back(connection):
        mark = connection.execute(text("SELECT first_usage + 2 FROM usage_runs")).scalar_one()
        connection.execute(text("UPDATE usage_runs SET leaves = 3"))
        connection.execute(text("DELETE FROM usage_events WHERE id > :mark").bindparams(mark=mark))
        connection.execute(text("UPDATE merkle_logs SET size = 3, event_mark = :mark").bindparams(mark=mark))

    await house.database.write(put_back)
    again = await _restart(registry)
    new = (await again.receipt_log.checkpoint(fresh=True)).checkpoint
    assert new.origin != shown.checkpoint.origin
    assert (new.size, new.previous) == (0, shown.checkpoint)


@pytest.mark.parametrize("system", ["sqlite"])  # copies the database's file; the test before this one is for both
async def test_a_restored_backup_is_a_new_origin_that_names_the_old_checkpoint(
    registry: Registry, house: House, tmp_path: Path
) -> None:
    old_names = await registry.settle(3)
    await registry.sequencer.catch_up()
    await registry.receipt_log.checkpoint(fresh=True)
    source = sqlite3.connect(f"file:{house.database.path}?mode=ro", uri=True)
    backup = sqlite3.connect(tmp_path / "backup.db")
    with contextlib.closing(source), contextlib.closing(backup):
        source.backup(backup)
    await registry.settle(2)
    await registry.sequencer.catch_up()
    shown = await registry.receipt_log.checkpoint(fresh=True)
    house.database.close()
    for leftover in (tmp_path / "data").glob("stentor.db-*"):
        leftover.unlink()
    shutil.copy(tmp_path / "backup.db", tmp_path / "data" / "stentor.db")

    restored = Database.open(StoreSettings(data_dir=tmp_path / "data", durability="process"))
    try:
        house.database = restored
        await house.start_books()
        again = await _restart(registry)
        new = await again.receipt_log.checkpoint(fresh=True)
        assert new.checkpoint.origin != shown.checkpoint.origin
        assert new.checkpoint.previous == shown.checkpoint._replace(extensions=())
        await again.settle(1)
        assert await again.sequencer.catch_up() == 1
        assert again.size == 1
        # What the old log holds is still proven by it, as far as this database remembers.
        old = json.loads(json.dumps(await again.office.get(None, old_names[0])))
        assert check_receipt(old, again.public_keys())
        assert read_checkpoint(old["log"]["checkpoint"]).origin == shown.checkpoint.origin
        third = await _restart(again)
        assert third.receipt_log.row.origin == new.checkpoint.origin
    finally:
        restored.close()


async def test_a_log_without_its_anchor_is_taken_for_restored(registry: Registry, settings: ReceiptSettings) -> None:
    await registry.settle(1)
    await registry.sequencer.catch_up()
    origin = (await registry.receipt_log.checkpoint(fresh=True)).checkpoint.origin
    settings.anchor.unlink()
    assert (await _restart(registry)).receipt_log.row.origin != origin


async def test_a_database_that_says_other_than_what_was_shown_is_a_new_origin(registry: Registry, house: House) -> None:
    await registry.settle(3)
    await registry.sequencer.catch_up()
    shown = await registry.receipt_log.checkpoint(fresh=True)
    forged = text("UPDATE merkle_tiles SET hashes = :hashes").bindparams(hashes=bytes(96))
    await house.database.write(lambda c: c.execute(forged))
    assert (await _restart(registry)).receipt_log.row.origin != shown.checkpoint.origin


async def test_an_origin_of_the_operators_own(registry: Registry, settings: ReceiptSettings) -> None:
    registry.settings = ReceiptSettings(anchor=settings.anchor, origin="stentor.example.org/log")
    first = (await _restart(registry)).receipt_log.row.origin
    assert first.startswith("stentor.example.org/log")
    assert (await _restart(registry)).receipt_log.row.origin == first
    for wrong in ("two words", "one+one"):
        registry.settings = ReceiptSettings(anchor=settings.anchor, origin=wrong)
        with pytest.raises(StentorError, match="STENTOR_RECEIPTS_ORIGIN"):
            await _restart(registry)


async def test_a_damaged_anchor_stops_the_start(registry: Registry, settings: ReceiptSettings) -> None:
    settings.anchor.write_text("{")
    with pytest.raises(StentorError, match=r"receipts\.anchor.*another origin"):
        await _restart(registry)


# -- tampering


@pytest.fixture
async def receipt(registry: Registry) -> dict[str, Any]:
    """One of nine, with its proof."""
    names = await registry.settle(9)
    await registry.sequencer.catch_up()
    return json.loads(json.dumps(await registry.office.get(None, names[4])))


def tamper(receipt: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(receipt)
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("cost", "amount"), "0.000000001"),
        (("tokens", "output"), 1),
        (("metered_by",), "client"),
        (("timestamp",), "2020-01-01T00:00:00.000000Z"),
        (("usage_event",), "another/1"),
        (("salt",), "AAAAAAAAAAAAAAAAAAAAAA"),
        (("key_id",), "key_of_somebody"),
        (("extra",), "more"),
        (("log", "index"), 3),
        (("log", "index"), 9),
        (("log", "inclusion"), []),
        (("log", "inclusion", 0), "A" * 43 + "="),
        (("log", "checkpoint"), "nothing"),
    ],
)
async def test_a_tampered_receipt_is_found_out(registry: Registry, receipt, path, value) -> None:
    keys = registry.public_keys()
    assert verify_receipt(receipt, read_keys(keys)).valid
    changed = tamper(receipt, *path, value=value)
    verdict = verify_receipt(changed, read_keys(keys))
    assert not verdict.valid
    assert verdict.problem
    with contextlib.suppress(ValueError, KeyError):
        assert not check_receipt(changed, keys)


async def test_a_checkpoint_of_another_key_or_size_is_found_out(registry: Registry, receipt) -> None:
    trusted = read_keys(registry.public_keys())
    note = receipt["log"]["checkpoint"]
    grown = tamper(receipt, "log", "checkpoint", value=note.replace("\n9\n", "\n10\n", 1))
    assert "signature" in (verify_receipt(grown, trusted).problem or "")
    others = [key for key in trusted if key.purpose != "checkpoint"]
    assert "isn't signed by a trusted key" in (verify_receipt(receipt, others).problem or "")


async def test_a_tampered_event_gets_no_receipt(registry: Registry, house: House, receipt) -> None:
    request_id = receipt["usage_event"].partition("/")[0]
    statement = text("UPDATE usage_events SET cost_nano = 1 WHERE request_id = :id").bindparams(id=request_id)
    await house.database.write(lambda c: c.execute(statement))
    with pytest.raises(Refused, match="changed after it was settled"):
        await registry.office.get(None, receipt["id"])


async def test_rotated_keys_verify_what_they_signed(registry: Registry, house: House, receipt) -> None:
    house.clock.advance(10)
    await registry.office.rotate("receipt", house.keyring)
    await registry.office.rotate("checkpoint", house.keyring)
    await registry.settle(1)
    await registry.sequencer.catch_up()
    again = await _restart(registry)
    keys = again.public_keys()
    assert check_receipt(receipt, keys)
    assert verify_receipt(receipt, read_keys(keys)).valid
    fresh = json.loads(json.dumps(await again.office.get(None, receipt["id"])))
    assert fresh["key_id"] != receipt["key_id"]
    assert check_receipt(fresh, keys)
    # Whoever trusts the older checkpoint key alone still follows the log, and learns the new one by its co-signature.
    publics = [key.public for key in again.office.keys.publics("checkpoint")]
    assert list_signers(fresh["log"]["checkpoint"], publics[:1]) == publics[:1]
    assert set(list_signers(fresh["log"]["checkpoint"], publics)) == set(publics)
    house.clock.advance(31 * 86_400)
    late = (await (await _restart(again)).receipt_log.checkpoint(fresh=True)).note
    assert list_signers(late, publics[:1]) == []


async def test_an_ended_key_signs_nothing_that_happened_later(registry: Registry, house: House, receipt) -> None:
    keys = registry.public_keys()
    for key in keys:
        if key["purpose"] == "receipt":
            key["valid_until"] = "2001-01-01T00:00:00Z"
    assert "had ended" in (verify_receipt(receipt, read_keys(keys)).problem or "")


# -- what doctor says


async def examined(registry: Registry, *, numbering: bool = True) -> dict[str, tuple[bool, str]]:
    house = registry.house
    health = LogHealth(house.database, registry.receipt_log, registry.office, house.clock)
    health.numbering = numbering
    return {check.name: (check.ok, check.text) for check in await health.examine()}


async def test_a_log_in_order_has_nothing_to_complain_of(registry: Registry, receipt) -> None:
    found = await examined(registry)
    assert list(found) == ["receipt log", "receipt entries", "receipt checkpoint", "receipt keys"]
    assert all(ok for ok, _ in found.values()), found
    await registry.office.issue("p", {"id": "x", "model": "x", "cost": {}}, "A")
    await registry.settle(2)
    assert "3 wait" in (await examined(registry))["receipt log"][1]
    await registry.sequencer.catch_up()
    found = await examined(registry)
    assert all(ok for ok, _ in found.values()), found


async def test_what_waits_too_long_is_told(registry: Registry, receipt, house: House) -> None:
    await registry.settle(2)
    house.clock.advance(61)
    assert (await examined(registry, numbering=False))["receipt log"][0]
    ok, said = (await examined(registry))["receipt log"]
    assert not ok
    assert "2 wait, the first for 61 s" in said
    await registry.sequencer.catch_up()
    assert (await examined(registry))["receipt checkpoint"][0]  # it had nothing to sign until now
    house.clock.advance(61)
    ok, said = (await examined(registry))["receipt checkpoint"]
    assert not ok
    assert "signed 122 s ago" in said


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE usage_events SET output_tokens = output_tokens + 1",
        "DELETE FROM usage_runs",
        "UPDATE usage_runs SET first_leaf = first_leaf + 1000",
        "DELETE FROM merkle_tiles",
    ],
)
async def test_entries_that_are_not_what_was_logged_are_told(registry: Registry, receipt, harm: str) -> None:
    await registry.house.database.write(lambda c: c.execute(text(harm)))
    ok, said = (await examined(registry))["receipt entries"]
    assert not ok, said


# -- clients' receipts


async def test_a_clients_receipt_is_a_leaf_and_says_whose_word_it_is(registry: Registry) -> None:
    unsigned = {"id": "mine-1", "model": "x", "cost": {"amount": "9999.00", "calculation": ""}}
    issued = await registry.office.issue("p", unsigned, "A")
    assert issued["metered_by"] == "client"
    await registry.settle(2)
    assert await registry.sequencer.catch_up() == 3
    kept = json.loads(json.dumps(await registry.office.get("p", "mine-1")))
    assert check_receipt(kept, registry.public_keys())
    assert kept["log"]["index"] == 2
    with pytest.raises(Refused, match="There is a receipt 'mine-1' already"):
        await registry.office.issue("p", unsigned, "A")
    with pytest.raises(Refused, match="no receipt"):
        await registry.office.get("another", "mine-1")
    row = registry.receipt_log.row
    mine = await registry.office.entries(row, 0, 3, "p")
    assert [entry["content"] is not None for entry in mine] == [False, False, True]
    assert [entry["kind"] for entry in mine] == ["usage", "usage", "receipt"]
    assert all(entry["content"] for entry in await registry.office.entries(row, 0, 3, None))


async def test_old_logs_without_a_receipt_are_found_behind_ten_thousand_that_have_one(registry: Registry) -> None:
    def fill(connection):
        for number in range(10_020):
            values = dict.fromkeys([column.name for column in client_logs.c])
            values |= {"id": f"log-{number:05d}", "project_id": "p", "key_id": "k", "model": "m", "provider": "o"}
            values |= dict.fromkeys(["input_tokens", "output_tokens", "cached_tokens", "cost_nano"], 1)
            rows.append(values | {"created_us": 1_000_000 + number})
        connection.execute(insert(client_logs), rows)
        here = {"project_id": "p", "kind": "client", "receipt_id": "r", "certified_us": 1}
        connection.execute(insert(receipt_items), [{**here, "item_id": row["id"]} for row in rows[10:]])

    rows: list[dict[str, Any]] = []
    await registry.house.database.write(fill)
    certified = Certified(registry.house.database, registry.office)
    old = [row["id"] for row in rows[:10]]
    assert [item.id for item in await certified.list_uncertified("p", "client")] == old[::-1]
    assert [item.id for item in await certified.choose("p", GenerateRequest(since_last_receipt=True))] == old
    assert await certified.list_uncertified("other", "client") == []


async def test_only_what_we_signed_is_kept(registry: Registry, receipt) -> None:
    assert await registry.office.store("p", receipt, "A") == receipt["id"]
    assert await registry.office.store("p", receipt, "A") == receipt["id"]
    with pytest.raises(Refused, match="Invalid receipt signature"):
        await registry.office.store("p", tamper(receipt, "cost", "amount", value="0"), "A")
    await registry.sequencer.catch_up()
    assert registry.size == 9
    listed, total = await registry.office.list_kept("p", 10, 0)
    assert ([one["id"] for one in listed], total) == ([receipt["id"]], 1)


def test_a_key_in_the_settings_signs(tmp_path: Path) -> None:
    given = given_key(ReceiptSettings(anchor=tmp_path, private_key_b64="A" * 43))
    assert given is not None
    for bad in (
        {"private_key_b64": "AAAA"},
        {"public_key_b64": "AAAA"},
        {"private_key_b64": "A" * 43, "public_key_b64": "B" * 43},
    ):
        with pytest.raises(StentorError, match="STENTOR_RECEIPTS_"):
            given_key(ReceiptSettings(anchor=tmp_path, **bad))


async def test_keys_come_and_go_with_the_settings(house: House, settings: ReceiptSettings) -> None:
    async def open_keys(**more: str) -> Keys:
        own = ReceiptSettings(anchor=settings.anchor, **more)
        house.clock.advance(1)
        return await house.database.write(lambda c: Keys.open(c, house.keyring, own, house.clock.now_us()))

    first = await open_keys()
    own = await open_keys(private_key_b64="A" * 43, key_id="mine")
    assert own.current("receipt").id == "mine"
    assert (await open_keys(private_key_b64="A" * 43, key_id="mine")).publics() == own.publics()
    with pytest.raises(StentorError, match="names another"):
        await open_keys(private_key_b64="B" * 43, key_id="mine")
    third = await open_keys(private_key_b64="B" * 43)
    assert len(third.publics("receipt")) == 3
    assert third.publics("receipt")[0] == first.current("receipt")._replace(
        until_us=third.publics("receipt")[1].from_us + OVERLAP_US
    )
