"""Sends what lies in the outbox: signed, through the guarded door, again and again until it is taken or given up.

What came of an attempt is written down after it, so a crash in between repeats it: receivers tell by the id.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from stentor.alerts.outbox import Attempt, Due, list_due, note_attempt
from stentor.alerts.values import TEST, message_body, message_headers
from stentor.alerts.webhooks import find_door, get_webhook
from stentor.core.clock import Clock
from stentor.core.errors import NotLeader, StentorError, StoreUnavailable
from stentor.core.ids import new_uuid7
from stentor.egress.outbound import Outbound, OutboundFailed, Patience
from stentor.egress.targets import EgressRefused
from stentor.store.database import Database
from stentor.store.leader import Leader
from stentor.telemetry.logs import Level, Log
from stentor.vault.keyring import Keyring

DEADLINE_S = 10.0
PER_HOOK = 8  # so that one that takes nothing leaves room for the others
ANSWER_MAX_BYTES = 4096


class PostParts(NamedTuple):
    """What it stands on."""

    database: Database
    leader: Leader
    keyring: Keyring
    outbound: Outbound
    clock: Clock
    log: Log


class Postman:
    """Works on the leading node alone, with one message at a time to each hook."""

    def __init__(self, parts: PostParts) -> None:
        self._parts = parts

    async def deliver_due(self) -> int:
        """Try to send what is due, at most :data:`PER_HOOK` to each hook; how much that was.

        Raises StoreUnavailable, NotLeader.
        """
        database, now_us = self._parts.database, self._parts.clock.now_us()
        due = await database.read(lambda connection: list_due(connection, now_us, PER_HOOK))
        if not due:
            return 0
        if await self._parts.leader.claim() is None:
            raise NotLeader("jobs")
        by_hook: dict[str, list[Due]] = {}
        for each in due:
            by_hook.setdefault(each.webhook, []).append(each)
        async with asyncio.TaskGroup() as group:
            for mine in by_hook.values():
                group.create_task(self._deliver_in_order(mine))
        return len(due)

    async def _deliver_in_order(self, mine: Sequence[Due]) -> None:
        for due in mine:
            try:
                attempt = await self._try(due.webhook, due.alert_id, due.body)
            except StoreUnavailable:
                return  # nothing was sent: it stays due
            except StentorError as error:  # the secret can't be opened
                attempt = Attempt(None, str(error))
            if not await self._note(due, attempt) or attempt.problem:
                return  # who doesn't take this one is spared the rest for now

    async def _note(self, due: Due, attempt: Attempt) -> bool:
        parts, now_us = self._parts, self._parts.clock.now_us()
        try:
            state = await parts.leader.write(lambda connection: note_attempt(connection, due, attempt, now_us))
        except (StoreUnavailable, NotLeader):
            return False  # it is sent once more: at least once, not at most
        level: Level = "info" if state == "delivered" else "warning" if state == "pending" else "error"
        reason = attempt.problem or None
        parts.log.event(f"alert_{state}", level=level, subject=due.alert_id, name=due.webhook, reason=reason)
        return True

    async def _try(self, name: str, alert_id: str, body: str) -> Attempt:
        parts = self._parts
        door = await parts.database.read(lambda connection: find_door(connection, parts.keyring, name))
        if door is None:
            return Attempt(None, "the webhook was removed")
        headers = message_headers(door.secret, parts.clock.now_us() // 1_000_000, alert_id, body)
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._send(door.url, headers, body.encode())
        except TimeoutError:
            return Attempt(None, f"it did not answer within {DEADLINE_S:.0f} s")
        except EgressRefused as refusal:
            return Attempt(None, refusal.message)
        except OutboundFailed as failure:
            return Attempt(None, str(failure))

    async def _send(self, url: str, headers: dict[str, str], body: bytes) -> Attempt:
        patience = Patience(DEADLINE_S, DEADLINE_S)
        answer = await self._parts.outbound.send("POST", url, headers=headers, body=body, patience=patience)
        try:
            await answer.read_at_most(ANSWER_MAX_BYTES)  # so that the connection can serve again; nobody looks at it
        finally:
            answer.release()
        if 200 <= answer.status < 300:
            return Attempt(answer.status, "")
        if 300 <= answer.status < 400:
            return Attempt(answer.status, f"it answered {answer.status}; redirects are not followed")
        return Attempt(answer.status, f"it answered {answer.status}")

    async def send_test(self, name: str) -> tuple[str, Attempt]:
        """Send a hook a message that means nothing, now and once; its id, and what came of it. Raises ``not_found``."""
        await self._parts.database.read(lambda connection: get_webhook(connection, name))
        alert_id = new_uuid7()
        text = f"This is a test of the webhook '{name}'."
        body = message_body(alert_id, TEST, text, {}, self._parts.clock.now_us())
        return alert_id, await self._try(name, alert_id, body)
