"""Two nodes and every limit at once, by chance: what was admitted and charged is recounted from outside.

Seconds turn while something is borrowed, places are refused, clients leave while they wait, answers use less than was
reserved. The storm is another one with every number; what it was is printed.
"""

import asyncio
import contextlib
import random
from collections import Counter, defaultdict
from typing import Any

import pytest

from stentor.accounting import lending
from stentor.control.nodes import shared
from stentor.core.errors import Refused, StoreUnavailable
from stentor.core.ids import KeyId
from stentor.people.values import KeyLimits
from stentor.store.schema import bucket, leases
from tests.store.house import OPERATOR, HeldClock, House
from tests.store.test_nodes import PRICE, rows, silence

CLIENTS = 10
STORM_S = 3.0
USER = "ann"


@pytest.fixture
def system() -> str:
    """Only here can there be two."""
    return "postgres"


class Storm:
    """Clients that ask by chance, and a count of what they were given."""

    def __init__(
        self, pair: tuple[House, House], clock: HeldClock, chance: random.Random, *, silences: bool = False
    ) -> None:
        """``silences``: now and then a node has been silent for too long and lost what it had borrowed."""
        self._silences = silences
        self._pair = pair
        self._clock = clock
        self._chance = chance
        self.limits: dict[str, dict[str, int]] = {}
        self.prepaid = chance.random() < 0.7
        self.balance_nano = chance.choice([20, 60, 300]) * PRICE
        self.admitted_s: dict[str, list[int]] = defaultdict(list)
        self.most: Counter[str] = Counter()
        self.spent_nano: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._over = False

    async def prepare(self) -> None:
        """A user with two keys, each level with limits that are soon reached, or none."""
        first, pick = self._pair[0], self._chance.choice
        tier = _given(
            requests_per_minute=pick([0, 6, 15]), tokens_per_minute=pick([0, 300, 900]), concurrency=pick([0, 2, 5])
        )
        await first.set_tier("payg", prepaid=self.prepaid, **tier)
        await first.add_user(USER, self.balance_nano)
        project = await first.management.add_project(OPERATOR, "team", USER)
        budget_nano = pick([0, 15, 50]) * PRICE
        if budget_nano:
            await first.management.set_budget(OPERATOR, project.id, pick(["none", "day", "month"]), budget_nano)
        self.limits[USER] = tier
        for _ in range(2):
            limits = _given(
                requests_per_minute=pick([0, 3, 8]),
                tokens_per_minute=pick([0, 200]),
                concurrency=pick([0, 1, 3]),
                token_limit=pick([0, 400, 1000]),
                spending_limit_nano=pick([0, 9 * PRICE]),
                budget_day_nano=pick([0, 12 * PRICE]),
            )
            self.limits[await first.add_key(USER, project=project.id, limits=KeyLimits(**limits))] = limits

    async def rage(self, seconds: float) -> None:
        """All at once, for so long."""
        clients = [asyncio.create_task(self._ask_on()) for _ in range(CLIENTS)]
        weather = asyncio.create_task(self._change_weather())
        await asyncio.sleep(seconds)
        self._over = True
        await asyncio.gather(*clients, weather)
        for house in self._pair:
            house.places.problem = None

    async def _ask_on(self) -> None:
        chance = self._chance
        while not self._over:
            house, key = chance.choice(self._pair), KeyId(chance.choice([*self.limits][1:]))
            prompt, asked = chance.choice([1, 10, 15]), chance.choice([None, 5, 10, 20])
            patience_s = chance.random() * 0.004 if chance.random() < 0.1 else None
            try:
                async with asyncio.timeout(patience_s):
                    grant = await house.open(key, prompt, asked)
            except Refused as refusal:
                self.refusals[refusal.details.get("rule", refusal.code)] += 1
                await asyncio.sleep(chance.random() * 0.02)
                continue
            except TimeoutError:
                continue
            self._note_start(key, house.books._running[grant.request_id, grant.attempt].hold.admitted_s)
            await asyncio.sleep(chance.random() * 0.03)
            output = chance.choice([0, 1, grant.output_cap // 2, grant.output_cap])
            self._running.subtract((key, USER))
            try:
                settled = await house.close(grant, (prompt, output))
            except StoreUnavailable:
                assert self._silences  # who is the first to find out that a node lost its leases
                self.refusals["lost"] += 1
                continue
            self.spent_nano[key] += settled.cost_nano - settled.absorbed_nano
            self.tokens[key] += prompt + output

    def _note_start(self, key: KeyId, admitted_s: int) -> None:
        for name in (key, USER):
            self.admitted_s[name].append(admitted_s)
            self._running[name] += 1
            self.most[name] = max(self.most[name], self._running[name])

    async def _change_weather(self) -> None:
        chance = self._chance
        while not self._over:
            await asyncio.sleep(chance.random() * 0.05)
            self._clock.advance(chance.choice([0.1, 0.5, 1, 5]))
            if self._silences and chance.random() < 0.1:
                await silence(*chance.sample(self._pair, 2))
            if chance.random() < 0.05:
                problem = Refused("overloaded", "no place") if chance.random() < 0.5 else None
                chance.choice(self._pair).places.problem = problem

    def find_excess(self) -> list[tuple[str, str, int]]:
        """Limits that were passed: whose, which, and how much it was."""
        found = []
        for name, limits in self.limits.items():
            times = self.admitted_s[name]
            minute = max((sum(second - 60 <= other <= second for other in times) for second in times), default=0)
            used = {
                "requests_per_minute": minute,
                # What a silent node still runs is nobody's: it isn't counted, and paid by the house.
                "concurrency": 0 if self._silences else self.most[name],
                "token_limit": 0 if self._silences else self.tokens[name],
                "spending_limit_nano": self.spent_nano[name],
            }
            found += [(name, rule, much) for rule, much in used.items() if much > limits.get(rule, much)]
        if self.prepaid and sum(self.spent_nano.values()) > self.balance_nano:
            found.append((USER, "balance", sum(self.spent_nano.values())))
        return found


def _given(**limits: int) -> dict[str, int]:
    return {name: limit for name, limit in limits.items() if limit}


def numbers(*numbers: int) -> list[Any]:
    """The first of them for every run, the rest for long ones."""
    return [numbers[0], *(pytest.param(number, marks=pytest.mark.soak) for number in numbers[1:])]


@pytest.mark.parametrize("number", numbers(*range(1, 32)))
async def test_no_limit_is_passed_and_nothing_stays_lent(pair, clock, monkeypatch, number: int) -> None:
    storm = Storm(pair, clock, random.Random(number))
    await ride_out(storm, pair, clock, monkeypatch)


@pytest.mark.parametrize("number", numbers(*range(101, 132)))
async def test_no_balance_is_passed_though_nodes_lose_their_leases(pair, clock, monkeypatch, number: int) -> None:
    storm = Storm(pair, clock, random.Random(number), silences=True)
    await ride_out(storm, pair, clock, monkeypatch)


async def ride_out(storm: Storm, pair: tuple[House, House], clock: HeldClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it rage while seconds turn on the way to the database, then count."""
    await storm.prepare()
    chance = random.Random(len(storm.limits))

    def borrow_slowly(*parts: Any) -> list[lending.Grant]:
        grants = lending.borrow(*parts)
        if chance.random() < 0.15:
            clock.advance(chance.choice([0.3, 1, 2]))
        return grants

    monkeypatch.setattr(shared, "borrow", borrow_slowly)
    await storm.rage(STORM_S)
    print(storm.limits, storm.refusals, {name: len(times) for name, times in storm.admitted_s.items()})
    assert storm.admitted_s
    assert storm.refusals
    assert storm.find_excess() == []
    for house in pair:
        with contextlib.suppress(StoreUnavailable):  # who is the first to find out
            await house.books.return_spare()
        await house.books.return_spare()
        await house.check()
    assert [row for row in await rows(pair[0], bucket, "kind", "subject", "leased") if row[2]] == []
    assert [row for row in await rows(pair[0], leases, "kind", "amount") if row[1]] == []
