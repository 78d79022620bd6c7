"""What operators are told of, once each and at least once, whatever becomes of the one who is told."""

import json

import pytest
from sqlalchemy import Connection, update

from stentor.alerts.outbox import raise_alerts
from stentor.alerts.table import UseRow
from stentor.alerts.thresholds import choose_passed
from stentor.alerts.values import Alert
from stentor.control.people.changes import Changes, KeyChange, LimitsChange
from stentor.core.ids import InstanceId, ModelId
from stentor.core.scheduler import CrashLoop
from stentor.people.values import KeyLimits
from stentor.store.schema import bucket
from tests.store.house import OPERATOR, USD

COST = 3000  # of ten tokens in and ten out
DAY_S = 86_400


class TestLimits:
    async def test_each_threshold_of_a_budget_is_told_once_and_anew_in_the_next_window(self, house, watch) -> None:
        await watch.add("http://127.0.0.1:9999/")
        await house.add_user("ann", USD)
        key = await house.add_key("ann", limits=KeyLimits(budget_day_nano=10 * COST))
        told = []
        for _ in range(10):
            await house.close(await house.open(key))
            await watch.alarms.check_limits()
            await watch.alarms.check_limits()
            told.append(sorted(await watch.passed()))
        assert told == [[]] * 4 + [[50]] * 3 + [[50, 80]] * 2 + [[50, 80, 100]]
        message = json.loads(bytes((await watch.alerts())[0].message))
        assert message["event"] == "budget_threshold"
        assert message["data"]["limit_kind"] == "key_budget"
        assert (message["data"]["used"], message["data"]["limit"]) == (5 * COST, 10 * COST)
        house.clock.advance(DAY_S)
        for _ in range(5):
            await house.close(await house.open(key))
        await watch.alarms.check_limits()
        assert sorted(await watch.passed()) == [50, 50, 80, 100]

    async def test_what_a_window_saw_at_its_very_end_is_told_in_the_next(self, house, watch) -> None:
        await watch.add("http://127.0.0.1:9999/")
        await house.add_user("ann", USD)
        key = await house.add_key("ann", limits=KeyLimits(budget_day_nano=2 * COST))
        await house.close(await house.open(key))
        house.clock.advance(DAY_S - house.clock.now_us() // 10**6 % DAY_S + 60)
        await watch.alarms.check_limits()
        assert await watch.passed() == [50]

    @pytest.mark.parametrize("window", ["none", "day", "month"])
    async def test_a_projects_budgets_are_watched(self, house, watch, window: str) -> None:
        await watch.add("http://127.0.0.1:9999/")
        await house.add_user("ann", USD)
        project = await house.management.add_project(OPERATOR, "team", "ann")
        await house.management.set_budget(OPERATOR, project.id, window, 2 * COST)
        await house.close(await house.open(await house.add_key("ann", project=project.id)))
        assert await watch.alarms.check_limits() == 1
        (alert,) = await watch.alerts()
        message = json.loads(bytes(alert.message))
        assert (message["data"]["subject_name"], message["data"]["owner"]) == ("team", "ann")
        assert message["data"]["window"] == window

    async def test_tokens_and_spending_are_watched_and_a_changed_limit_is_told_of_anew(self, house, watch) -> None:
        await watch.add("http://127.0.0.1:9999/")
        await house.add_user("ann", USD)
        key = await house.add_key("ann", limits=KeyLimits(token_limit=40, spending_limit_nano=4 * COST))
        await house.close(await house.open(key))
        assert await watch.alarms.check_limits() == 1  # half of the tokens
        changes = Changes(house.database, house.books, house.management, house.clock)
        await changes.change_key(OPERATOR, key, KeyChange(limits=LimitsChange(token_limit=30)))
        assert await watch.alarms.check_limits() == 1  # half of the new limit, too
        kinds = [json.loads(bytes(each.message))["data"]["limit_kind"] for each in await watch.alerts()]
        assert kinds == ["key_tokens", "key_tokens"]
        await house.management.revoke_key(OPERATOR, key)
        await house.database.write(lambda c: c.execute(update(bucket).values(used=10**6)))
        assert await watch.alarms.check_limits() == 0  # nobody can use it any more

    async def test_where_nobody_wants_to_know_nothing_is_looked_at_or_written(self, house, watch) -> None:
        await house.add_user("ann", USD)
        key = await house.add_key("ann", limits=KeyLimits(token_limit=20))
        await house.close(await house.open(key))
        assert await watch.alarms.check_limits() == 0
        await watch.add("http://127.0.0.1:9999/", "engines", "engine_crash_loop")
        assert await watch.alarms.check_limits() == 0
        await watch.add("http://127.0.0.1:9999/", "budgets", "budget_threshold")
        assert await watch.alarms.check_limits() == 3
        assert {each.webhook for alert in await watch.alerts() for each in alert.deliveries} == {"budgets"}

    def test_thresholds_are_exact_in_whole_numbers(self) -> None:
        def passed(used: int, limit: int) -> list[int]:
            use = UseRow("key_spending", "k", "none", 0, used, limit, "name", "ann")
            return [alert.data["threshold_percent"] for alert in choose_passed(use, (50, 80, 100))]

        assert [passed(used, 3) for used in range(4)] == [[], [], [50], [50, 80, 100]]
        huge = 9 * 10**18
        assert passed(huge // 2 - 1, huge) == []
        assert passed(huge // 2, huge) == [50]
        assert passed(5, 0) == []


class TestAbsorbed:
    async def test_what_nobody_paid_is_told_in_the_settlements_own_transaction(self, house, watch) -> None:
        await watch.add("http://127.0.0.1:9999/")
        await house.set_tier("payg", prepaid=True)
        await house.add_user("ann", COST)
        key = await house.add_key("ann")
        grant = await house.open(key)
        settled = await house.close(grant, (10, 1000))
        assert settled.absorbed_nano > 0
        (alert,) = await watch.alerts()
        message = json.loads(bytes(alert.message))
        assert message["event"] == "absorbed_cost"
        assert message["data"]["absorbed_nano"] == settled.absorbed_nano
        assert message["data"]["request_id"] == grant.request_id

    async def test_a_key_is_told_of_once_an_hour_and_a_repeated_close_not_again(self, house, watch) -> None:
        await watch.add("http://127.0.0.1:9999/")
        await house.set_tier("payg", prepaid=True)
        await house.add_user("ann", 10 * COST)
        key = await house.add_key("ann")
        for _ in range(2):
            grants = [await house.open(key) for _ in range(2)]
            for grant in grants:
                await house.close(grant, (10, 10_000))
                await house.close(grant, (10, 10_000))
            await house.management.top_up(OPERATOR, "ann", 10 * COST)
            house.clock.advance(3600)
        assert len(await watch.alerts()) == 2

    async def test_a_settlement_that_comes_to_nothing_tells_nothing(self, house, watch) -> None:
        await watch.add("http://127.0.0.1:9999/")

        def work(connection: Connection) -> None:
            raise_alerts(connection, [Alert("s", "absorbed_cost", "text", {})], 1)
            raise ValueError("undone")

        with pytest.raises(ValueError, match="undone"):
            await house.database.write(work)
        assert await watch.alerts() == []


class TestEngines:
    async def test_a_crash_loop_is_told_once_until_the_engine_was_ready_again(self, watch) -> None:
        await watch.add("http://127.0.0.1:9999/")
        loop = CrashLoop(ModelId("tiny"), InstanceId("tiny-1"), 4, "it ended with status 3")
        for wanted in ([], [loop], [loop], [], [loop]):
            watch.loops = wanted
            await watch.alarms.check_engines()
            watch.house.clock.advance(5)
        messages = [json.loads(bytes(alert.message)) for alert in await watch.alerts()]
        assert [message["data"]["model"] for message in messages] == ["tiny", "tiny"]
        assert "status 3" in messages[0]["text"]
