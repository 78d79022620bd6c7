"""Alerts arrive signed and at least once, whatever becomes of the one who is told; and who that is."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from stentor.alerts import outbox as outbox_module
from stentor.alerts import webhooks
from stentor.alerts.outbox import ATTEMPTS_MAX, choose_pause_s, raise_alerts
from stentor.alerts.values import Alert, sign_message
from stentor.alerts.webhooks import NewWebhook, list_webhooks
from stentor.control import postman as postman_module
from stentor.control.postman import PER_HOOK, Postman
from stentor.core.errors import NotLeader, Refused, StoreUnavailable
from stentor.core.operator import Task
from stentor.egress.outbound import Outbound
from stentor.egress.settings import EgressSettings
from stentor.store.leader import Leader
from stentor.store.schema import metadata, secrets
from tests.receiver import Receiver
from tests.store.watch import SECRET, check_signature, raise_some, states

DAY_S = 86_400


class TestDelivery:
    async def test_a_message_arrives_signed_once_and_its_state_is_seen(self, watch, receiver) -> None:
        await watch.add(receiver.url + "/hook")
        await raise_some(watch)
        assert await watch.postman.deliver_due() == 1
        assert await watch.postman.deliver_due() == 0
        (got,) = receiver.received
        message = check_signature(got)
        assert (got.path, message["event"], message["data"]) == ("/hook", "absorbed_cost", {"n": 0})
        (hook,) = (await watch.operations.list_webhooks(Task("tester", "api", {})))["data"]
        assert (hook["pending"], hook["last_delivery"]["state"]) == (0, "delivered")
        assert hook["last_delivery"]["http_status"] == 204

    async def test_what_fails_is_tried_again_later_and_later_and_given_up(self, watch, receiver) -> None:
        await watch.add(receiver.url)
        await raise_some(watch)
        receiver.answers = [500] * ATTEMPTS_MAX
        for attempt in range(1, ATTEMPTS_MAX + 1):
            assert await watch.postman.deliver_due() == 1
            assert await watch.postman.deliver_due() == 0
            watch.house.clock.advance(choose_pause_s(attempt) - 1)
            assert await watch.postman.deliver_due() == 0
            watch.house.clock.advance(1)
        assert await watch.postman.deliver_due() == 0
        assert await states(watch) == [("failed", ATTEMPTS_MAX)]
        assert len({got.body for got in receiver.received}) == 1
        assert len({got.headers["x-stentor-signature"] for got in receiver.received}) == ATTEMPTS_MAX
        for got in receiver.received:
            check_signature(got)

    def test_pauses_grow_to_an_hour(self) -> None:
        assert [choose_pause_s(n) for n in range(1, 9)] == [5, 15, 45, 135, 405, 1215, 3600, 3600]

    async def test_it_arrives_once_the_receiver_is_well_again(self, watch, receiver) -> None:
        await watch.add(receiver.url)
        await raise_some(watch, 3)
        receiver.answers = [503]
        await watch.postman.deliver_due()
        assert len(receiver.received) == 1  # who doesn't take one is spared the rest for now
        watch.house.clock.advance(5)
        while await watch.postman.deliver_due():
            pass
        told = [check_signature(got)["data"]["n"] for got in receiver.received]
        assert told[0] == told[1]
        assert sorted(told[1:]) == [0, 1, 2]
        assert {state for state, _ in await states(watch)} == {"delivered"}

    async def test_one_that_never_answers_holds_up_nobody(self, watch, receiver, monkeypatch) -> None:
        deadlines: list[asyncio.Timeout] = []

        def note(delay_s: float) -> asyncio.Timeout:
            deadlines.append(asyncio.timeout(delay_s))
            return deadlines[-1]

        monkeypatch.setattr(postman_module, "asyncio", SimpleNamespace(timeout=note, TaskGroup=asyncio.TaskGroup))
        with Receiver() as dead:
            dead.answers = [0]
            await watch.add(dead.url, "dead")
            await watch.add(receiver.url, "well")
            await raise_some(watch)
            delivering = asyncio.create_task(watch.postman.deliver_due())
            async with asyncio.timeout(30):
                while ("delivered", 1) not in await states(watch):
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(dead.wait, 1)
            assert not delivering.done()
            for deadline in deadlines:
                with contextlib.suppress(RuntimeError):  # one was kept
                    deadline.reschedule(asyncio.get_running_loop().time())
            await asyncio.wait_for(delivering, 30)
            assert sorted(await states(watch)) == [("delivered", 1), ("pending", 1)]
            (alert,) = await watch.alerts()
            problem = next(each.problem for each in alert.deliveries if each.webhook == "dead")
            assert "did not answer" in problem or "silent" in problem

    async def test_a_dead_hook_with_many_alerts_does_not_starve_the_others(self, watch, receiver) -> None:
        with Receiver() as dead:
            dead.answers = [500] * 200
            await watch.add(dead.url, "dead")
            await raise_some(watch, 70)
            await watch.add(receiver.url, "well")
            late = Alert("late", "absorbed_cost", "late", {"n": 70})
            now_us = watch.house.clock.now_us()
            await watch.house.database.write(lambda connection: raise_alerts(connection, [late], now_us))
            assert await watch.postman.deliver_due() == PER_HOOK + 1
            assert [check_signature(got)["text"] for got in receiver.received] == ["late"]
            # What else waits for the dead one waits until it is tried again.
            assert await watch.postman.deliver_due() == 0
            assert len(dead.received) == 1
            watch.house.clock.advance(choose_pause_s(1))
            assert await watch.postman.deliver_due() == PER_HOOK
            assert len(dead.received) == 2

    async def test_what_is_given_up_holds_up_nothing_behind_it(self, watch, receiver, monkeypatch) -> None:
        monkeypatch.setattr(outbox_module, "ATTEMPTS_MAX", 1)
        await watch.add(receiver.url)
        await raise_some(watch, 2)
        receiver.answers = [500]
        await watch.postman.deliver_due()
        await watch.postman.deliver_due()
        assert sorted(await states(watch)) == [("delivered", 1), ("failed", 1)]

    async def test_a_secret_that_cannot_be_opened_is_that_hooks_failure_alone(self, watch, receiver) -> None:
        await watch.add(receiver.url, "spoiled")
        await watch.add(receiver.url, "well")
        spoil = update(secrets).where(secrets.c.name == "spoiled").values(sealed=b"spoiled" * 9)
        await watch.house.database.write(lambda connection: connection.execute(spoil) and None)
        await raise_some(watch)
        assert await watch.postman.deliver_due() == 2
        assert len(receiver.received) == 1
        (alert,) = await watch.alerts()
        told = {each.webhook: each for each in alert.deliveries}
        assert (told["well"].state, told["spoiled"].state, told["spoiled"].attempts) == ("delivered", "pending", 1)
        assert told["spoiled"].problem

    async def test_a_database_that_is_gone_for_a_moment_leaves_everything_as_it_was(self, watch, receiver) -> None:
        await watch.add(receiver.url)
        await raise_some(watch)

        class Faltering:
            """Its second read fails."""

            def __init__(self) -> None:
                self.reads = 0

            async def read(self, work: Any) -> Any:
                self.reads += 1
                if self.reads == 2:
                    raise StoreUnavailable("gone")
                return await watch.house.database.read(work)

        postman = Postman(watch.parts._replace(database=Faltering()))
        assert await postman.deliver_due() == 1
        assert (receiver.received, await states(watch)) == ([], [("pending", 0)])
        assert await postman.deliver_due() == 1
        assert await states(watch) == [("delivered", 1)]

    async def test_redirects_are_not_followed(self, watch, receiver) -> None:
        await watch.add(receiver.url)
        await raise_some(watch)
        receiver.answers, receiver.location = [307], receiver.url + "/elsewhere"
        await watch.postman.deliver_due()
        assert [got.path for got in receiver.received] == ["/"]
        (alert,) = await watch.alerts()
        assert "redirects are not followed" in alert.deliveries[0].problem

    @pytest.mark.parametrize(
        "url", ["http://10.0.0.1/x", "http://169.254.169.254/latest", "http://localhost:1/", "ftp://a/"]
    )
    async def test_an_address_that_may_not_be_reached_is_refused_when_it_is_given(self, watch, url: str) -> None:
        with pytest.raises(Refused) as refused:
            await watch.add(url)
        assert refused.value.code == "address_not_allowed"

    async def test_an_address_that_may_not_be_reached_any_more_gets_nothing(self, watch, receiver, house) -> None:
        await watch.add(receiver.url)
        await raise_some(watch)
        guarded = Outbound(EgressSettings())
        try:
            await Postman(watch.parts._replace(outbound=guarded)).deliver_due()
        finally:
            await guarded.close()
        assert receiver.received == []
        assert await states(watch) == [("pending", 1)]

    async def test_what_could_not_be_written_down_is_sent_again_under_the_same_id(self, watch, receiver) -> None:
        await watch.add(receiver.url)
        await raise_some(watch)

        class Deposed(Leader):
            async def write(self, *_: Any) -> Any:
                raise NotLeader("jobs")

        deposed = Deposed(watch.house.database, "jobs")
        deposed.claim = watch.leader.claim  # type: ignore[method-assign]
        await Postman(watch.parts._replace(leader=deposed)).deliver_due()
        await watch.postman.deliver_due()
        assert len(receiver.received) == 2
        assert receiver.received[0].body == receiver.received[1].body

    async def test_a_hook_that_is_removed_gets_nothing_more(self, watch, receiver) -> None:
        await watch.add(receiver.url)
        await raise_some(watch)
        await watch.operations.delete_webhook(Task("tester", "api", {}, None, {"name": "ops"}))
        assert await watch.postman.deliver_due() == 0
        assert receiver.received == []
        assert await watch.house.database.read(list_webhooks) == []

    async def test_a_test_is_sent_at_once_and_kept_nowhere(self, watch, receiver) -> None:
        await watch.add(receiver.url)
        task = Task("tester", "api", {}, None, {"name": "ops"})
        assert (await watch.operations.test_webhook(task))["ok"] is True
        receiver.answers = [404]
        answer = await watch.operations.test_webhook(task)
        assert (answer["ok"], answer["http_status"], answer["text"]) == (False, 404, "it answered 404")
        assert [check_signature(got)["event"] for got in receiver.received] == ["test", "test"]
        assert await watch.alerts() == []


class TestAmongNodes:
    @pytest.fixture
    def system(self) -> str:
        return "postgres"

    async def test_who_does_not_lead_sends_nothing(self, watch, receiver) -> None:
        await watch.add(receiver.url)
        await raise_some(watch)

        class Second(Leader):
            async def claim(self) -> None:
                return None

        with pytest.raises(NotLeader):
            await Postman(watch.parts._replace(leader=Second(watch.house.database, "jobs"))).deliver_due()
        assert receiver.received == []


class TestHooks:
    async def test_the_secret_goes_in_and_never_comes_out(self, watch, house, receiver) -> None:
        made = await watch.add(receiver.url)
        assert made["secret"] is None
        await raise_some(watch)
        await watch.postman.deliver_due()
        said = [await watch.operations.list_webhooks(Task("t", "api", {}))]
        said.append(await watch.operations.list_alerts(Task("t", "api", {})))

        def dump(connection: Connection) -> bytes:
            rows = [row for table in metadata.sorted_tables for row in connection.execute(select(table))]
            return b"\n".join(v if isinstance(v, bytes) else str(v).encode() for row in rows for v in row)

        dumped = await house.database.read(dump)
        assert SECRET not in repr(said) + repr(made)
        assert SECRET.encode() not in dumped
        assert SECRET.encode() not in b"".join(got.body for got in receiver.received)

    async def test_a_secret_that_is_made_here_is_shown_once_and_signs(self, watch, receiver) -> None:
        made = await watch.add(receiver.url, secret=None)
        await watch.operations.test_webhook(Task("t", "api", {}, None, {"name": "ops"}))
        (got,) = receiver.received
        stamp = int(got.headers["x-stentor-signature"].split(",")[0].removeprefix("t="))
        assert got.headers["x-stentor-signature"] == sign_message(made["secret"], stamp, got.body.decode())
        (hook,) = (await watch.operations.list_webhooks(Task("t", "api", {})))["data"]
        assert made["secret"] not in repr(hook)

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "no blanks"},
            {"secret": "short"},
            {"secret": "line\nfeed-in-a-secret"},
            {"events": ["rain"]},
            {"x": 1},
        ],
        ids=str,
    )
    async def test_a_hook_that_cannot_be_is_refused(self, watch, change: dict[str, Any]) -> None:
        body = {"name": "ops", "url": "https://hooks.example.org/x", **change}
        with pytest.raises(Refused):
            await watch.operations.create_webhook(Task("tester", "api", {}, body))
        assert await watch.house.database.read(list_webhooks) == []

    async def test_a_name_is_given_once_and_hooks_are_not_endless(self, watch, monkeypatch) -> None:
        monkeypatch.setattr(webhooks, "WEBHOOKS_MAX", 2)
        await watch.add("https://a.example.org/")
        with pytest.raises(Refused, match="already"):
            await watch.add("https://a.example.org/")
        await watch.add("https://a.example.org/", "second")
        with pytest.raises(Refused, match="2 webhooks"):
            await watch.add("https://a.example.org/", "third")
        assert "Zq" not in repr(NewWebhook("a", "https://a", (), "secretZqsecretZqsecret"))

    async def test_old_alerts_are_forgotten_but_not_what_still_waits_or_stands(self, watch, receiver) -> None:
        await watch.add(receiver.url)
        await raise_some(watch, 2)
        receiver.answers = [204, 500]
        await watch.postman.deliver_due()
        standing = Alert("standing", "budget_threshold", "text", {}, standing=True)
        now_us = watch.house.clock.now_us()
        await watch.house.database.write(lambda connection: raise_alerts(connection, [standing], now_us))
        watch.house.clock.advance(91 * DAY_S)
        assert await watch.alarms.forget() == 1
        assert len(await watch.alerts()) == 2

    async def test_pages_of_alerts(self, watch) -> None:
        await watch.add("https://a.example.org/")
        await raise_some(watch, 5)
        seen: list[str] = []
        after: str | None = None
        while True:
            query = {"limit": "2", **({"after": after} if after else {})}
            page = await watch.operations.list_alerts(Task("t", "api", query))
            seen += [row["message"]["text"] for row in page["data"]]
            after = page["next"]
            if after is None:
                break
        assert sorted(seen) == [f"text {number}" for number in range(5)]
