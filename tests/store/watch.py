"""Alarms, postman and operations over a house's books, and what they told."""

import hashlib
import hmac
import json
from typing import Any

from stentor.alerts.outbox import ToldAlert, list_alerts, raise_alerts
from stentor.alerts.values import Alert
from stentor.control.alarms import Alarms
from stentor.control.alert_operations import AlertOperations
from stentor.control.postman import Postman, PostParts
from stentor.core.operator import Task
from stentor.core.scheduler import CrashLoop
from stentor.egress.outbound import Outbound
from stentor.store.leader import Leader
from stentor.telemetry.logs import Log
from tests.receiver import Received
from tests.store.house import House

SECRET = "canary-webhook-secret-9d3f77"


class Watch:
    """Alarms, postman and operations over a house's books."""

    def __init__(self, house: House, outbound: Outbound, log: Log) -> None:
        self.house = house
        self.loops: list[CrashLoop] = []
        leader = Leader(house.database, "jobs")
        self.leader = leader
        self.alarms = Alarms(house.database, leader, house.clock, (50, 80, 100), lambda: self.loops)
        self.parts = PostParts(house.database, leader, house.keyring, outbound, house.clock, log)
        self.postman = Postman(self.parts)
        self.operations = AlertOperations(self.parts, self.postman)

    async def add(self, url: str, name: str = "ops", *events: str, secret: str | None = SECRET) -> dict[str, Any]:
        body = {"name": name, "url": url, "events": list(events), "secret": secret}
        return await self.operations.create_webhook(Task("tester", "api", {}, body))

    async def alerts(self) -> list[ToldAlert]:
        """Oldest first."""
        found = await self.house.database.read(lambda c: list_alerts(c, before=None, limit=1000))
        return found[::-1]

    async def passed(self) -> list[int]:
        return [json.loads(bytes(each.message))["data"]["threshold_percent"] for each in await self.alerts()]


def check_signature(got: Received) -> dict[str, Any]:
    """As a receiver does that knows nothing but the documentation; the message."""
    timestamp, _, digest = got.headers["x-stentor-signature"].partition(",")
    signed = timestamp.removeprefix("t=").encode() + b"." + got.body
    assert digest == "v1=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    message: dict[str, Any] = json.loads(got.body)
    assert got.headers["x-stentor-alert"] == message["id"]
    assert got.headers["content-type"] == "application/json"
    return message


async def raise_some(watch: Watch, count: int = 1) -> None:
    alerts = [Alert(f"source-{number}", "absorbed_cost", f"text {number}", {"n": number}) for number in range(count)]
    now_us = watch.house.clock.now_us()
    await watch.house.database.write(lambda connection: raise_alerts(connection, alerts, now_us))


async def states(watch: Watch) -> list[tuple[str, int]]:
    return [(each.state, each.attempts) for alert in await watch.alerts() for each in alert.deliveries]
