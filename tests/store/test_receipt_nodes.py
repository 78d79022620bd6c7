"""Several nodes on one PostgreSQL keep one receipt log: one of them numbers, all show it, and none is left out."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from stentor.receipts.keys import Keys
from stentor.receipts.log import ReceiptLog, SequencerReplaced
from stentor.receipts.merkle import is_consistent
from stentor.receipts.note import Checkpoint
from stentor.receipts.office import ReceiptOffice
from stentor.receipts.sequencer import Sequencer
from stentor.receipts.settings import ReceiptSettings
from stentor.store.database import Database
from stentor.store.settings import StoreSettings
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings
from tests.independent_verifier import check_receipt, merkle_root
from tests.store.house import HeldClock, House, two_houses


@pytest.fixture
def system() -> str:
    """Only here can there be two."""
    return "postgres"


class Pausable:
    """A node's database, whose writes can be held up on their way there."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.held = 0

    async def read(self, work: Callable[[Connection], Any]) -> Any:
        return await self._database.read(work)

    async def write(self, work: Callable[[Connection], Any]) -> Any:
        self.held += 1
        await self.go_on.wait()
        self.held -= 1
        return await self._database.write(work)


class Node:
    """A server as far as receipts go, with a data folder of its own."""

    def __init__(self, house: House, folder: Path) -> None:
        self.house = house
        self.folder = folder
        self.settings = ReceiptSettings(anchor=folder / "receipts.anchor")
        self.store = Pausable(house.database)
        self.log = Log(TelemetrySettings(log_level="ERROR", log_format="json"))
        self.receipt_log: ReceiptLog
        self.office: ReceiptOffice
        self.sequencer: Sequencer

    async def start(self) -> "Node":
        """Start, or start again as another process would."""
        database, keyring, clock = self.house.database, self.house.keyring, self.house.clock
        self.store = Pausable(database)
        keys = await database.write(lambda c: Keys.open(c, keyring, self.settings, clock.now_us()))
        self.receipt_log = await ReceiptLog.open(self.store, self.settings, clock, database.node_id)
        self.office = ReceiptOffice(self.store, self.receipt_log, keys, keyring.receipt_salt(), clock)
        self.sequencer = Sequencer(self.store, self.receipt_log, keyring.receipt_salt(), clock, self.log)
        return self

    async def settle(self, count: int) -> list[str]:
        """Requests that this node served; the ids of their receipts."""
        await self.house.set_tier("free")
        key = await self.house.add_key("ann")
        grants = [await self.house.open(key) for _ in range(count)]
        await asyncio.gather(*(self.house.close(grant) for grant in grants))
        return [f"rcpt_{grant.request_id}_{grant.attempt}" for grant in grants]

    async def turn(self) -> int:
        """One turn of the sequencer's: numbers what waits, if that is this node's to do."""
        return await self.sequencer.catch_up() if await self.receipt_log.leads() else 0

    async def fall_silent(self) -> None:
        """As the others see a machine that stands still."""
        self.house.books.stop()  # type: ignore[attr-defined]
        await self.house.database.maintain(lambda _: None)  # what it had begun is over
        silent = text("UPDATE nodes SET lease_until_us = 0 WHERE id = :id").bindparams(id=self.house.database.node_id)
        await self.house.database.write(lambda c: c.execute(silent))
        # The write itself was a sign of life.
        await self.other.house.database.write(lambda c: c.execute(silent))

    other: "Node"

    async def show(self) -> Checkpoint:
        return (await self.receipt_log.checkpoint(fresh=True)).checkpoint


@pytest.fixture
async def pair(store_settings: StoreSettings, tmp_path: Path, clock: HeldClock) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes with the same clock and master key; the first leads."""
    async with two_houses(store_settings, tmp_path, clock) as houses:
        one, two = (Node(house, tmp_path / name) for house, name in zip(houses, ("one", "two"), strict=True))
        await one.house.set_tier("free")
        await one.house.add_user("ann", tier="free")
        one.other, two.other = two, one
        for node in (one, two):
            await node.start()
        yield one, two
    for node in (one, two):
        node.log.close()


async def count(node: Node, query: str) -> int:
    return int(await node.house.database.read(lambda c: c.execute(text(query)).scalar_one()))


async def check_whole(node: Node, leaves: int) -> None:
    """Every event is one leaf of one log, and the tree is that of its leaves."""
    assert await count(node, "SELECT count(*) FROM merkle_logs") == 1
    assert await count(node, "SELECT sum(leaves) FROM usage_runs") == leaves
    each = "SELECT count(DISTINCT at) FROM usage_runs, generate_series({0}, {0} + leaves - 1) AS at"
    assert await count(node, each.format("first_usage")) == leaves
    assert await count(node, each.format("first_leaf")) == leaves
    shown = await node.show()
    hashes = await node.receipt_log.leaf_hashes(node.receipt_log.row, 0, leaves)
    assert (shown.size, shown.root) == (leaves, merkle_root(hashes))


async def test_two_nodes_share_one_log(pair) -> None:
    first, second = pair
    assert (first.receipt_log.is_leading, second.receipt_log.is_leading) == (True, False)
    names = [*await first.settle(3), *await second.settle(3)]
    assert (await second.turn(), await first.turn()) == (0, 6)
    keys = first.office.describe_keys()
    assert second.office.describe_keys() == keys
    for node in pair:
        for name in names:
            receipt = await node.office.get(None, name)
            assert check_receipt(receipt, keys)
    assert (await first.show()) == (await second.show())
    await check_whole(second, 6)


async def test_a_node_that_does_not_number_knows_at_once_what_was_numbered(pair) -> None:
    first, second = pair
    await first.settle(3)
    await first.turn()
    shown = await first.show()
    assert (await second.receipt_log.get_row("")).size == 3  # whoever saw it there asks here for a proof
    (name,) = await second.settle(1)
    await first.turn()
    assert (await second.office.get(None, name))["log"]["index"] == 3
    proof = await second.receipt_log.prove_consistency(second.receipt_log.row.id, 3, 4)
    assert is_consistent(3, 4, shown.root, (await second.show()).root, proof)


async def test_a_clients_receipt_from_the_other_node_is_taken_up(pair) -> None:
    first, second = pair
    await second.office.issue("p", {"id": "mine", "model": "x", "cost": {"amount": "1.00", "calculation": ""}}, "A")
    await first.turn()
    for node in pair:
        assert check_receipt(await node.office.get("p", "mine"), first.office.describe_keys())


async def test_who_ends_lets_the_other_number(pair) -> None:
    first, second = pair
    await first.settle(2)
    await first.sequencer.finish()
    await second.settle(2)
    assert await second.turn() == 2
    assert second.receipt_log.is_leading
    assert await first.turn() == 0
    await check_whole(second, 4)


async def test_a_leader_that_was_silent_and_resumes_appends_nothing(pair) -> None:
    first, second = pair
    await first.settle(2)
    await first.turn()
    # It has read what waits, planned its leaves, and stands still before they are written.
    await first.settle(3)
    first.store.go_on.clear()
    frozen = asyncio.create_task(first.sequencer.catch_up())
    async with asyncio.timeout(30):
        while not first.store.held:
            await asyncio.sleep(0.005)
    assert await second.turn() == 0  # as long as its lease holds nobody takes its place
    await first.fall_silent()
    assert await second.turn() == 3
    await second.settle(1)
    assert await second.turn() == 1
    first.store.go_on.set()
    with pytest.raises(SequencerReplaced):
        await frozen
    await check_whole(second, 6)
    assert await first.receipt_log.resync()  # goes on as one who follows
    assert not first.receipt_log.is_leading
    await second.settle(1)
    assert (await first.turn(), await second.turn()) == (0, 1)
    await check_whole(first, 7)


async def test_a_leader_between_commit_and_knowing_it_repeats_nothing(pair) -> None:
    first, second = pair
    await first.settle(2)

    async def write(work: Callable[[Connection], Any]) -> Any:
        await first.house.database.write(work)
        raise SequencerReplaced  # the answer is lost

    original, first.store.write = first.store.write, write  # type: ignore[method-assign]
    with pytest.raises(SequencerReplaced):
        await first.sequencer.catch_up()
    first.store.write = original  # type: ignore[method-assign]
    assert await first.receipt_log.resync()
    assert first.receipt_log.is_leading
    await first.settle(1)
    assert await first.turn() == 1
    await check_whole(second, 3)


async def test_whoever_leads_when_history_never_forks(pair) -> None:
    """Both number as fast as they can while each is taken for dead again and again, in the middle of anything."""
    chance = random.Random(6)
    shown: list[Checkpoint] = []
    done = asyncio.Event()

    async def number(node: Node) -> None:
        while not done.is_set():
            with contextlib.suppress(SequencerReplaced):
                await node.turn()
                shown.append(await node.show())
                await asyncio.sleep(0)
                continue
            await node.receipt_log.resync()

    async def unsettle() -> None:
        id_of = [node.house.database.node_id for node in pair]
        while not done.is_set():
            await asyncio.sleep(chance.random() * 0.02)
            victim = chance.choice(pair)
            victim.store.go_on.clear()
            silent = text("UPDATE nodes SET lease_until_us = 0 WHERE id = :id")
            silent = silent.bindparams(id=id_of[pair.index(victim)])
            await victim.other.house.database.write(lambda c, silent=silent: c.execute(silent))
            await asyncio.sleep(chance.random() * 0.05)
            victim.store.go_on.set()

    tasks = [asyncio.create_task(number(node)) for node in pair]
    trouble = asyncio.create_task(unsettle())
    total = 0
    changes = "SELECT max(epoch) FROM merkle_logs"
    for turn in range(200):
        for node in pair:
            total += len(await node.settle(10))
        if turn >= 11 and await count(pair[0], changes) > 3:  # it did change hands
            break
    async with asyncio.timeout(60):
        while max((one.size for one in shown), default=0) < total:
            await asyncio.sleep(0.02)
    done.set()
    await asyncio.gather(*tasks, trouble)
    await check_whole(pair[0], total)
    assert await count(pair[0], changes) > 3
    hashes = await pair[0].receipt_log.leaf_hashes(pair[0].receipt_log.row, 0, total)
    for size, root in {(one.size, one.root) for one in shown}:
        assert root == merkle_root(hashes[:size])


async def test_events_that_were_committed_late_are_numbered(pair, clock: HeldClock) -> None:
    first, second = pair
    await first.settle(1)
    await second.settle(1)
    # As if the other node's group, begun earlier, were committed after this one's was numbered.
    move = text("UPDATE usage_events SET id = id + :by").bindparams
    await first.house.database.write(lambda c: c.execute(move(by=100)))
    await first.turn()
    hide = text("UPDATE usage_runs SET first_leaf = 1, first_usage = first_usage + 1, leaves = leaves - 1")
    await first.house.database.write(lambda c: c.execute(hide))
    clock.advance(1)
    assert await first.turn() == 1


# -- keys


async def test_a_new_key_is_everyones(pair, clock: HeldClock) -> None:
    first, second = pair
    (name,) = await second.settle(1)
    await first.turn()
    clock.advance(10)
    await first.office.rotate("receipt", first.house.keyring)
    await first.office.rotate("checkpoint", first.house.keyring)
    clock.advance(1)
    # Until it has heard of it the other signs with the key before, which holds for a moment longer.
    issued = await second.office.issue("p", {"id": "a", "timestamp": "2027-01-15T08:00:11Z", "cost": {}}, "A")
    assert second.office.verify(issued).valid
    assert first.office.verify(issued).valid
    await second.office.follow_keys(second.house.keyring)
    assert second.office.describe_keys() == first.office.describe_keys()
    receipt = await second.office.get(None, name)
    assert receipt["key_id"] == first.office.keys.current("receipt").id
    assert check_receipt(receipt, first.office.describe_keys())


async def test_keys_made_at_both_nodes_come_one_after_the_other(pair, clock: HeldClock) -> None:
    first, second = pair
    for node in (first, second, first):
        clock.advance(10)
        await node.office.rotate("receipt", node.house.keyring)
    for node in pair:
        await node.office.follow_keys(node.house.keyring)
        assert [key.until_us is None for key in node.office.keys.publics("receipt")] == [False, False, False, True]


# -- backups


async def put_back(node: Node, size: int) -> None:
    """The database as it was when the log had so many leaves."""

    def work(connection: Connection) -> None:
        here = "FROM usage_runs WHERE first_leaf < :size ORDER BY first_leaf DESC LIMIT 1"
        last = text(f"SELECT first_usage + :size - 1 - first_leaf {here}").bindparams(size=size)
        mark = connection.execute(last).scalar_one()
        connection.execute(text("DELETE FROM usage_runs WHERE first_leaf >= :size").bindparams(size=size))
        cut = text("UPDATE usage_runs SET leaves = :size - first_leaf WHERE first_leaf + leaves > :size")
        connection.execute(cut.bindparams(size=size))
        connection.execute(text("DELETE FROM usage_events WHERE id > :mark").bindparams(mark=mark))
        back = text("UPDATE merkle_logs SET size = :size, event_mark = :mark").bindparams(size=size, mark=mark)
        connection.execute(back)

    await node.house.database.write(work)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["the leader starts first", "the follower starts first"])
async def test_a_restored_backup_is_one_new_origin_for_all(pair, order: tuple[int, int]) -> None:
    await pair[0].settle(3)
    await pair[0].turn()
    await pair[0].settle(2)
    await pair[0].turn()
    shown = await pair[0].show()
    await pair[1].show()
    for node in pair:
        await node.sequencer.finish()
    await put_back(pair[0], 3)
    for at in order:
        await pair[at].start()
    new = [await node.show() for node in pair]
    assert new[0] == new[1]
    assert new[0].origin != shown.origin
    assert (new[0].size, new[0].previous) == (0, shown)
    for node in pair:
        await node.start()  # and from now on everything is in order
        assert (await node.show()).origin == new[0].origin
    await pair[1].settle(1)
    assert await pair[0].turn() + await pair[1].turn() == 1


async def test_a_node_that_has_shown_more_than_the_leader_knows_begins_anew(pair) -> None:
    first, second = pair
    await first.settle(3)
    await first.turn()
    await first.show()
    await second.settle(2)
    await first.turn()
    shown = await second.show()  # this node alone has shown five
    await put_back(first, 3)
    await first.start()
    await first.settle(1)
    assert await first.turn() == 1
    await first.settle(1)
    await second.start()
    new = await second.show()
    assert new.previous == shown
    with pytest.raises(SequencerReplaced):
        await first.turn()
    assert await first.receipt_log.resync()
    assert not first.receipt_log.is_leading
    assert await second.turn() == 1
    assert (await first.show()).origin == new.origin


async def test_a_database_put_back_under_running_nodes_is_noticed(pair) -> None:
    """As when a standby takes over that hadn't got the last commits."""
    first, second = pair
    await first.settle(5)
    await first.turn()
    shown = await first.show()
    await second.show()
    await put_back(first, 3)
    await second.settle(1)
    found = None
    async with asyncio.timeout(30):
        while found is None or found.origin == shown.origin or found.size == 0:
            for node in pair:
                try:
                    await node.turn()
                    found = await node.show()
                except SequencerReplaced:
                    await node.receipt_log.resync()
    assert found.previous == shown
    assert await count(first, "SELECT count(*) FROM merkle_logs") == 2


async def test_what_nobody_has_shown_may_go(pair) -> None:
    first, second = pair
    await first.settle(3)
    await first.turn()
    origin = (await first.show()).origin
    await second.show()
    await first.settle(2)
    await first.turn()
    await put_back(first, 3)
    await first.settle(1)
    with pytest.raises(SequencerReplaced):
        await first.turn()
    assert await first.receipt_log.resync()
    assert await first.turn() == 1
    for node in pair:
        assert (await node.show()).origin == origin
    await check_whole(second, 4)


async def test_an_empty_folder_joins_whom_it_finds_but_trusts_no_log_alone(pair, store_settings, tmp_path) -> None:
    first, second = pair
    await first.settle(2)
    await first.turn()
    shown = await first.show()
    second.settings.anchor.unlink()
    await second.start()
    assert (await second.show()) == shown
    second.settings.anchor.unlink()
    await first.fall_silent()
    await second.start()
    assert (await second.show()).previous == shown
