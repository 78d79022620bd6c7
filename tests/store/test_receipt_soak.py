"""A log of ten million leaves: how fast it grows, how fast it proves, and that it needs no more memory for it."""

import os
import random
import resource
import time
from hashlib import sha256
from pathlib import Path

import pytest

from stentor.receipts.log import Entry, ReceiptLog
from stentor.receipts.merkle import root_from_inclusion
from stentor.receipts.settings import ReceiptSettings
from stentor.store.database import Database
from tests.store.conftest import HeldClock

LEAVES = int(os.environ.get("SOAK_LEAVES", "10000000"))
BATCH = 1024


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_ten_million_leaves(database: Database, clock: HeldClock, tmp_path: Path) -> None:
    log = await ReceiptLog.open(database, ReceiptSettings(anchor=tmp_path / "data" / "anchor"), clock)
    memory: list[float] = []
    start = time.perf_counter()
    number = 0
    while number < LEAVES:
        count = min(BATCH, LEAVES - number)
        entries = [Entry(sha256(b"%d" % at).digest(), at + 1) for at in range(number, number + count)]
        number = await log.append(entries, number + count)
        if number % (BATCH * 512) == 0:
            memory.append(resident_mb())
    rate = LEAVES / (time.perf_counter() - start)
    took = []
    root = (await log.checkpoint(fresh=True)).checkpoint.root
    for _ in range(200):
        index = random.randrange(LEAVES)
        began = time.perf_counter()
        leaf, path = await log.prove_inclusion(log.row.id, index, LEAVES)
        took.append(time.perf_counter() - began)
        assert root_from_inclusion(index, LEAVES, leaf, path) == root
    took.sort()
    print(
        f"\n{LEAVES} leaves: {rate:.0f}/s, proof median {took[100] * 1000:.2f} ms, p95 {took[190] * 1000:.2f} ms, "
        f"memory {memory[0]:.0f} -> {max(memory):.0f} MB"
    )
    assert rate >= 20_000
    assert took[190] < 0.005
    assert max(memory) < memory[0] * 1.2 + 32
