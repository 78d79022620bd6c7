"""Conversations and templates of projects."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from sqlalchemy import Connection

from stentor.control.ring.reading import flag_of, number_of, optional_number, read_body, text_of, unprocessable
from stentor.control.ring.tenants import Tenants
from stentor.control.ring.usage import RingUsage
from stentor.core.clock import DAY_US, Clock
from stentor.core.errors import Refused
from stentor.core.ring import RingAnswer, RingCall
from stentor.history import conversations, logs, templates
from stentor.history.values import (
    ConversationCreate,
    ConversationLogRequest,
    ConversationLogResponse,
    ConversationUpdate,
    Deleted,
    LoggingLevel,
    Message,
    MessageBatch,
    MessageCreate,
    Said,
    TemplateCreate,
    TemplateUpdate,
    UsageLogRequest,
)
from stentor.store.database import Database

T = TypeVar("T")
Texts = TypeVar("Texts", ConversationCreate, ConversationUpdate)
_encode = msgspec.json.Encoder().encode
EXPORT_MAX = 5_000


class RingTalks:
    """Every conversation route. ``level`` is the most that is kept of messages, ``retention_days`` 0 keeps them."""

    def __init__(
        self,
        database: Database,
        usage: RingUsage,
        tenants: Tenants,
        clock: Clock,
        level: LoggingLevel = "full",
        retention_days: int = 0,
    ) -> None:
        self._database = database
        self._usage = usage
        self._tenants = tenants
        self._clock = clock
        self._level = level
        self._retention_days = retention_days

    async def create(self, call: RingCall) -> RingAnswer:
        """A new conversation."""
        wanted = self._without_texts(read_body(call, ConversationCreate))
        who, now_us = call.principal, self._clock.now_us()

        def work(connection: Connection) -> object:
            count = lambda: conversations.count_conversations(connection, who.project_id)  # noqa: E731
            self._tenants.check_room(who, "conversations", count)
            return conversations.add_conversation(connection, who.project_id, who.key_id, wanted, now_us)

        return RingAnswer(await self._database.write(work))

    def _without_texts(self, wanted: Texts) -> Texts:
        """What is said of a conversation, without what was said in it: a title is often a message's beginning."""
        return wanted if self._level == "full" else msgspec.structs.replace(wanted, title=None, system_prompt=None)

    async def list(self, call: RingCall) -> RingAnswer:
        """A page of conversations."""
        limit, offset = number_of(call, "limit", 20, 1, 100), number_of(call, "offset", 0, 0, 10**9)
        return await self._read(
            lambda connection: conversations.list_conversations(connection, call.principal.project_id, limit, offset)
        )

    async def get(self, call: RingCall) -> RingAnswer:
        """One conversation, with its first messages."""
        limit = number_of(call, "message_limit", 100, 1, 1000) if flag_of(call, "include_messages", True) else 0
        return await self._read(
            lambda connection: conversations.get_with_messages(
                connection, call.principal.project_id, call.params["id"], limit
            )
        )

    async def update(self, call: RingCall) -> RingAnswer:
        """Change a conversation."""
        wanted, now_us = self._without_texts(read_body(call, ConversationUpdate)), self._clock.now_us()
        return await self._write(
            lambda connection: conversations.update_conversation(
                connection, call.principal.project_id, call.params["id"], wanted, now_us
            )
        )

    async def delete(self, call: RingCall) -> RingAnswer:
        """Remove a conversation."""
        await self._write(
            lambda connection: conversations.delete_conversation(
                connection, call.principal.project_id, call.params["id"]
            )
        )
        return RingAnswer(Said("Conversation deleted successfully"))

    # -- messages ----------------------------------------------------------------------------------------------------

    async def messages(self, call: RingCall) -> RingAnswer:
        """A page of messages."""
        limit, offset = number_of(call, "limit", 100, 1, 1000), number_of(call, "offset", 0, 0, 10**9)
        return await self._read(
            lambda connection: conversations.list_messages(
                connection, call.principal.project_id, call.params["id"], limit, offset
            )
        )

    async def add_batch(self, call: RingCall) -> RingAnswer:
        """Keep messages."""
        batch = read_body(call, MessageBatch)
        if self._level == "none":
            raise Refused("invalid_request", "Message logging is disabled")
        level = "metadata" if (self._level, batch.logging_level) == ("metadata", "full") else batch.logging_level
        return RingAnswer(await self._add(call, batch.messages, level))

    async def add_one(self, call: RingCall) -> RingAnswer:
        """Keep one message."""
        message = read_body(call, MessageCreate)
        if self._level == "none":
            raise Refused("invalid_request", "Message logging is disabled")
        added = await self._add(call, [message], self._level)
        return RingAnswer(added[0])

    async def _add(self, call: RingCall, wanted: Sequence[MessageCreate], level: LoggingLevel) -> Sequence[Message]:
        who, now_us = call.principal, self._clock.now_us()

        def work(connection: Connection) -> Sequence[Message]:
            found = conversations.get_conversation(connection, who.project_id, call.params["id"])
            self._tenants.check_room(who, "messages", lambda: found.message_count + len(wanted))
            return conversations.add_messages(connection, who.project_id, found.id, wanted, level, now_us)

        return await self._database.write(work)

    async def log(self, call: RingCall) -> RingAnswer:
        """Keep a whole exchange, and what it used as a client's log."""
        wanted = read_body(call, ConversationLogRequest)
        who, now_us, meta = call.principal, self._clock.now_us(), wanted.metadata
        told = {"input_cost": meta.input_cost, "output_cost": meta.output_cost}
        used = UsageLogRequest(
            model=meta.model,
            provider=meta.provider,
            input_tokens=meta.input_tokens or 0,
            output_tokens=meta.output_tokens or 0,
            cached_input_tokens=meta.cached_tokens or 0,
            alias=meta.alias,
            profile=meta.profile,
            cost=meta.cost,
            origin=meta.origin,
        )
        cost_nano = await self._usage.cost_of(used)

        def work(connection: Connection) -> tuple[str, str]:
            count = lambda: conversations.count_conversations(connection, who.project_id)  # noqa: E731
            self._tenants.check_room(who, "conversations", count)
            try:
                ids = conversations.log_exchange(connection, who.project_id, who.key_id, wanted, self._level, now_us)
            except msgspec.ValidationError as error:
                raise unprocessable("value_error", ("body", "messages"), str(error), None) from None
            noted = {"conversation_id": ids[0], **{name: cost for name, cost in told.items() if cost is not None}}
            full = msgspec.structs.replace(used, metadata=noted)
            logs.add_log(connection, who.project_id, who.key_id, full, cost_nano, now_us)
            return ids

        conversation_id, message_id = await self._database.write(work)
        return RingAnswer(ConversationLogResponse(conversation_id, message_id))

    async def delete_old(self, call: RingCall) -> RingAnswer:
        """Remove the project's old messages; nobody else's."""
        days = optional_number(call, "retention_days")
        days = self._retention_days if days is None else days
        if days == 0 and text_of(call, "retention_days") is None:
            raise Refused("invalid_request", "Say which messages are old: retention_days=30, for example.")
        count = await self.forget(call.principal.project_id, self._clock.now_us() - days * DAY_US)
        return RingAnswer(Deleted(count, days))

    async def forget(self, project_id: str, before_us: int) -> int:
        """Remove a project's messages from before then, slice by slice; returns how many.

        Of conversations that nobody has touched since and that are empty now, title and system prompt go, too.
        """
        count = 0
        while removed := await self._database.maintain(
            lambda connection: conversations.delete_old_messages(connection, project_id, before_us)
        ):
            count += removed
        while await self._database.maintain(
            lambda connection: conversations.clear_old_texts(connection, project_id, before_us)
        ):
            pass
        return count

    async def forget_everywhere(self) -> int:
        """Remove what is older than the setting says, project by project."""
        if not self._retention_days:
            return 0
        before_us = self._clock.now_us() - self._retention_days * DAY_US
        projects = await self._database.read(
            lambda connection: conversations.list_projects_with_old_texts(connection, before_us)
        )
        return sum([await self.forget(project_id, before_us) for project_id in projects])

    async def search(self, call: RingCall) -> RingAnswer:
        """The project's messages that hold all words."""
        words = text_of(call, "q")
        if words is None:
            raise unprocessable("missing", ("query", "q"), "Field required", None)
        limit, offset = number_of(call, "limit", 20, 1, 100), number_of(call, "offset", 0, 0, 10_000)
        return await self._read(
            lambda connection: conversations.search_messages(
                connection, call.principal.project_id, words, limit, offset
            )
        )

    async def export(self, call: RingCall) -> RingAnswer:
        """A conversation as JSON Lines: itself, then its messages. ``after`` goes on where a part ended."""
        after = optional_number(call, "after") or 0
        project_id, conversation_id = call.principal.project_id, call.params["id"]

        def work(connection: Connection) -> tuple[bytes, int, bool]:
            head = conversations.get_conversation(connection, project_id, conversation_id)
            page, last = conversations.list_exported(connection, project_id, conversation_id, after, EXPORT_MAX)
            rows: list[object] = [*([] if after else [head]), *page]
            return b"".join(_encode(row) + b"\n" for row in rows), last, len(page) == EXPORT_MAX

        lines, last, more = await self._database.read(work)
        headers = (("x-next-after", str(last)),) if more else ()
        return RingAnswer(lines, "application/jsonl", headers)

    # -- templates ---------------------------------------------------------------------------------------------------

    async def create_template(self, call: RingCall) -> RingAnswer:
        """A new template."""
        wanted = read_body(call, TemplateCreate)
        who, now_us = call.principal, self._clock.now_us()

        def work(connection: Connection) -> object:
            count = lambda: templates.count_templates(connection, who.project_id)  # noqa: E731
            self._tenants.check_room(who, "templates", count)
            return templates.add_template(connection, who.project_id, who.key_id, wanted, now_us)

        return RingAnswer(await self._database.write(work))

    async def list_templates(self, call: RingCall) -> RingAnswer:
        """A page of templates."""
        limit, offset = number_of(call, "limit", 50, 1, 100), number_of(call, "offset", 0, 0, 10**9)
        by = text_of(call, "created_by")
        return await self._read(
            lambda connection: templates.list_templates(connection, call.principal.project_id, by, limit, offset)
        )

    async def template_stats(self, call: RingCall) -> RingAnswer:
        """The most used templates."""
        limit = number_of(call, "limit", 20, 1, 50)
        return await self._read(lambda connection: templates.list_stats(connection, call.principal.project_id, limit))

    async def get_template(self, call: RingCall) -> RingAnswer:
        """One template."""
        return await self._read(
            lambda connection: templates.get_template(connection, call.principal.project_id, call.params["id"])
        )

    async def update_template(self, call: RingCall) -> RingAnswer:
        """Change a template."""
        wanted, now_us = read_body(call, TemplateUpdate), self._clock.now_us()
        return await self._write(
            lambda connection: templates.update_template(
                connection, call.principal.project_id, call.params["id"], wanted, now_us
            )
        )

    async def use_template(self, call: RingCall) -> RingAnswer:
        """Count a use."""
        now_us = self._clock.now_us()
        return await self._write(
            lambda connection: templates.use_template(connection, call.principal.project_id, call.params["id"], now_us)
        )

    async def delete_template(self, call: RingCall) -> RingAnswer:
        """Remove a template."""
        await self._write(
            lambda connection: templates.delete_template(connection, call.principal.project_id, call.params["id"])
        )
        return RingAnswer(Said("Template deleted successfully"))

    async def _read(self, work: Callable[[Connection], T]) -> RingAnswer:
        return RingAnswer(await self._database.read(work))

    async def _write(self, work: Callable[[Connection], T]) -> RingAnswer:
        return RingAnswer(await self._database.write(work))
