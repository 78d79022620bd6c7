"""The operations on webhooks and alerts, as JSON rows. No secret is in any of them but the one that was just made."""

from typing import Any

import msgspec
from sqlalchemy import Connection

from stentor.alerts import webhooks
from stentor.alerts.outbox import list_alerts
from stentor.alerts.webhooks import NewWebhook, Webhook
from stentor.audit.log import record_change
from stentor.control.postman import Postman, PostParts
from stentor.control.reading import Operation, Row, actor_of, limit_of, page_of, read_body, text_of
from stentor.core.operator import Task


class AlertOperations:
    """Whom to tell, and what there was to tell."""

    def __init__(self, parts: PostParts, postman: Postman) -> None:
        self._parts = parts
        self._postman = postman

    def table(self) -> dict[str, Operation]:
        """The operations by name."""
        return {
            "list_webhooks": self.list_webhooks,
            "create_webhook": self.create_webhook,
            "delete_webhook": self.delete_webhook,
            "test_webhook": self.test_webhook,
            "list_alerts": self.list_alerts,
        }

    async def list_webhooks(self, task: Task) -> Row:
        """Hooks by name."""
        found = await self._parts.database.read(webhooks.list_webhooks)
        return page_of([hook.row() for hook in found], None)

    async def create_webhook(self, task: Task) -> Row:
        """A new hook, with its secret this once if it was made here."""
        new = read_body(task.body, NewWebhook)
        self._parts.outbound.check(new.url)

        def work(connection: Connection) -> tuple[Webhook, str | None]:
            now_us = self._parts.clock.now_us()
            hook, secret = webhooks.add_webhook(connection, self._parts.keyring, new, now_us)
            subject = ("webhook", hook.name)
            record_change(connection, now_us, actor_of(task), "webhook_create", subject, after=_visible(hook))
            return hook, secret

        hook, secret = await self._parts.database.write(work)
        return {**hook.row(), "secret": secret}

    async def delete_webhook(self, task: Task) -> Row:
        """The hook that is gone."""

        def work(connection: Connection) -> Webhook:
            gone = webhooks.remove_webhook(connection, task.params["name"])
            subject = ("webhook", gone.name)
            record_change(
                connection, self._parts.clock.now_us(), actor_of(task), "webhook_delete", subject, before=_visible(gone)
            )
            return gone

        return (await self._parts.database.write(work)).row()

    async def test_webhook(self, task: Task) -> Row:
        """What came of a message that means nothing."""
        name = task.params["name"]
        alert_id, attempt = await self._postman.send_test(name)
        return {
            "name": name,
            "alert_id": alert_id,
            "ok": not attempt.problem,
            "http_status": attempt.http_status,
            "text": attempt.problem or "It was taken.",
        }

    async def list_alerts(self, task: Task) -> Row:
        """Alerts with their deliveries, newest first."""
        limit, before = limit_of(task.query), text_of(task.query, "after")
        found = await self._parts.database.read(lambda connection: list_alerts(connection, before=before, limit=limit))
        rows = [{**msgspec.structs.asdict(each), "message": msgspec.json.decode(each.message)} for each in found]
        return page_of(msgspec.to_builtins(rows), found[-1].id if len(found) == limit else None)


def _visible(hook: Webhook) -> dict[str, Any]:
    return {"name": hook.name, "url": hook.url, "events": list(hook.events)}
