"""Conversations and their messages, each inside its project."""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from stentor.core.clock import time_text
from stentor.core.errors import Refused
from stentor.core.ids import new_uuid7
from stentor.history import table
from stentor.history.values import (
    Conversation,
    ConversationCreate,
    ConversationLogRequest,
    ConversationUpdate,
    ConversationWithMessages,
    FoundMessage,
    LoggingLevel,
    Message,
    MessageCreate,
)

NANO = 1_000_000_000
DEFAULT_ALIAS = "default"
DEFAULT_TEMPERATURE = 0.7
DELETE_SLICE = 200
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def to_nano(usd: float) -> int:
    """US dollars as they came in JSON, to the nearest nano-USD."""
    return round(usd * NANO)


def add_conversation(
    connection: Connection, project_id: str, key_id: str, wanted: ConversationCreate, now_us: int
) -> Conversation:
    """A new, empty conversation."""
    conversation_id = new_uuid7()
    values = {
        "id": conversation_id,
        "project_id": project_id,
        "key_id": key_id,
        "project_label": wanted.project_id,
        "title": wanted.title,
        "system_prompt": wanted.system_prompt,
        "model_alias": DEFAULT_ALIAS if wanted.model_alias is None else wanted.model_alias,
        "temperature": DEFAULT_TEMPERATURE if wanted.temperature is None else wanted.temperature,
        "max_tokens": wanted.max_tokens,
        **dict.fromkeys(("message_count", "input_tokens", "output_tokens", "cost_nano"), 0),
        "created_us": now_us,
        "updated_us": now_us,
        "last_message_us": None,
    }
    table.add_conversation(connection, values)
    return get_conversation(connection, project_id, conversation_id)


def get_conversation(connection: Connection, project_id: str, conversation_id: str) -> Conversation:
    """One of the project's. Raises Refused."""
    row = table.find_conversation(connection, project_id, conversation_id)
    if row is None:
        raise Refused("not_found", f"Conversation not found: '{conversation_id[:64]}'.")
    return _conversation(row)


def get_with_messages(
    connection: Connection, project_id: str, conversation_id: str, limit: int
) -> ConversationWithMessages:
    """One of the project's, with up to ``limit`` of its messages. Raises Refused."""
    found = get_conversation(connection, project_id, conversation_id)
    rows = table.list_messages(connection, conversation_id, limit, 0) if limit else []
    return ConversationWithMessages(**msgspec.structs.asdict(found), messages=[_message(row) for row in rows])


def list_conversations(connection: Connection, project_id: str, limit: int, offset: int) -> list[Conversation]:
    """The project's, the one last written to first."""
    return [_conversation(row) for row in table.list_conversations(connection, project_id, limit, offset)]


def count_conversations(connection: Connection, project_id: str) -> int:
    """How many the project has."""
    return table.count_conversations(connection, project_id)


def update_conversation(
    connection: Connection, project_id: str, conversation_id: str, wanted: ConversationUpdate, now_us: int
) -> Conversation:
    """Change what is given. Raises Refused."""
    get_conversation(connection, project_id, conversation_id)
    values = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    table.update_conversation(connection, project_id, conversation_id, {**values, "updated_us": now_us})
    return get_conversation(connection, project_id, conversation_id)


def delete_conversation(connection: Connection, project_id: str, conversation_id: str) -> None:
    """Remove one of the project's with its messages. Raises Refused."""
    if not table.delete_conversation(connection, project_id, conversation_id):
        raise Refused("not_found", f"Conversation not found: '{conversation_id[:64]}'.")


def add_messages(
    connection: Connection,
    project_id: str,
    conversation_id: str,
    wanted: Sequence[MessageCreate],
    level: LoggingLevel,
    now_us: int,
) -> list[Message]:
    """Keep messages at the given level and count them. Raises Refused."""
    get_conversation(connection, project_id, conversation_id)
    if level == "none" or not wanted:
        return []
    rows = [_message_row(conversation_id, message, level, now_us) for message in wanted]
    table.add_messages(connection, rows)
    sums = {
        "message_count": len(rows),
        "input_tokens": sum(row["input_tokens"] or 0 for row in rows),
        "output_tokens": sum(row["output_tokens"] or 0 for row in rows),
        "cost_nano": sum(row["cost_nano"] for row in rows),
    }
    table.add_to_conversation(connection, conversation_id, sums, now_us)
    return [_message_of(row) for row in rows]


def _message_row(conversation_id: str, message: MessageCreate, level: LoggingLevel, now_us: int) -> dict[str, Any]:
    content = message.content
    text = content if isinstance(content, str) else _text_of(content)
    full = level == "full"
    hashed = (
        None if content is None else hashlib.sha256(_encode(content) if text is None else text.encode()).hexdigest()
    )
    metadata = message.metadata or {}
    cost = metadata.get("cost")
    costs = isinstance(cost, int | float) and not isinstance(cost, bool) and 0 <= cost <= NANO
    return {
        "id": new_uuid7(),
        "conversation_id": conversation_id,
        "role": message.role,
        "content": text if full else None,
        "parts": _encode(content).decode() if full and isinstance(content, list) else None,
        "content_hash": None if full else hashed,
        "input_tokens": message.input_tokens,
        "output_tokens": message.output_tokens,
        "tool_calls": _json(message.tool_calls) if full else None,
        "tool_results": _json(message.tool_results) if full else None,
        "metadata": _encode(metadata).decode(),
        "receipt_id": message.receipt_id,
        "cost_nano": to_nano(float(cost)) if costs and isinstance(cost, int | float) else 0,
        "created_us": now_us,
    }


def _text_of(content: list[Any] | None) -> str | None:
    """The words of a message in parts, for the search."""
    if content is None:
        return None
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _json(value: Any) -> str | None:
    return None if value is None else _encode(value).decode()


def list_messages(
    connection: Connection, project_id: str, conversation_id: str, limit: int, offset: int
) -> list[Message]:
    """A page of messages, the oldest first. Raises Refused."""
    get_conversation(connection, project_id, conversation_id)
    return [_message(row) for row in table.list_messages(connection, conversation_id, limit, offset)]


def list_exported(
    connection: Connection, project_id: str, conversation_id: str, after: int, limit: int
) -> tuple[list[Message], int]:
    """Messages behind the one numbered ``after``, and the number of the last. Raises Refused."""
    get_conversation(connection, project_id, conversation_id)
    rows = table.list_messages_after(connection, conversation_id, after, limit)
    return [_message(row) for row in rows], rows[-1].number if rows else after


def search_messages(connection: Connection, project_id: str, words: str, limit: int, offset: int) -> list[FoundMessage]:
    """The project's messages that hold all of these words, newest first."""
    rows = table.search_messages(connection, project_id, words, limit, offset)
    return [FoundMessage(**msgspec.structs.asdict(_message(row)), title=row.title) for row in rows]


def delete_old_messages(connection: Connection, project_id: str, before_us: int) -> int:
    """Remove one slice of the project's messages from before then; returns how many, 0 when none is left."""
    return table.delete_old_messages(connection, project_id, before_us, DELETE_SLICE)


def clear_old_texts(connection: Connection, project_id: str, before_us: int) -> int:
    """Forget title and system prompt of one slice of the project's conversations that are empty and that nobody has
    touched since then; returns of how many, 0 when none is left.
    """
    return table.clear_old_texts(connection, project_id, before_us, DELETE_SLICE)


def list_projects_with_old_texts(connection: Connection, before_us: int) -> list[str]:
    """The projects that have messages from before then, or texts of empty conversations."""
    return table.list_projects_with_old_texts(connection, before_us)


def log_exchange(
    connection: Connection,
    project_id: str,
    key_id: str,
    wanted: ConversationLogRequest,
    level: LoggingLevel,
    now_us: int,
) -> tuple[str, str]:
    """Keep one exchange as a conversation of its own; returns its id and the answer's. Raises Refused."""
    meta, answer = wanted.metadata, wanted.response
    messages = [_exchanged(message, level) for message in wanted.messages]
    prompt = next((m.content for m in messages if m.role == "system" and isinstance(m.content, str)), None)
    first = next((m.content for m in messages if m.role == "user" and isinstance(m.content, str)), None)
    new = ConversationCreate(
        title=None if first is None else first[:80],
        system_prompt=prompt if level == "full" else None,
        model_alias=meta.alias or f"{meta.provider}:{meta.model}"[:255],
    )
    if level != "full":
        new.title = None
    conversation = add_conversation(connection, project_id, key_id, new, now_us)
    facts = {name: value for name, value in msgspec.structs.asdict(meta).items() if value is not None}
    content = answer.get("content")
    reply = MessageCreate(
        role="assistant",
        content=content if isinstance(content, str | list) else None,
        tool_calls=answer.get("tool_calls") if isinstance(answer.get("tool_calls"), list) else None,
        metadata={**facts, "finish_reason": answer.get("finish_reason"), "usage": answer.get("usage")},
        input_tokens=meta.input_tokens,
        output_tokens=meta.output_tokens,
    )
    kept = add_messages(connection, project_id, conversation.id, [*messages, reply], level, now_us)
    return conversation.id, kept[-1].id if kept else new_uuid7()


def _exchanged(message: dict[str, Any], level: LoggingLevel) -> MessageCreate:
    """A chat message as clients send it: names that aren't ours go to the metadata, where all may be kept.

    What a client says there can be text as well: a model's reasoning, a refusal.
    """
    known = {"role", "content", "tool_calls"}
    kept = message.keys() - known if level == "full" else message.keys() & {"name", "tool_call_id"}
    rest = {name: value for name, value in message.items() if name in kept and value is not None}
    own = {name: message.get(name) for name in known}
    return msgspec.convert({**own, "metadata": rest}, MessageCreate)


def _conversation(row: table.AnyRow) -> Conversation:
    return Conversation(
        row.id,
        row.title,
        row.system_prompt,
        row.model_alias,
        row.temperature,
        row.max_tokens,
        row.key_id,
        row.project_label,
        row.message_count,
        row.input_tokens,
        row.output_tokens,
        row.cost_nano / NANO,
        time_text(row.created_us),
        time_text(row.updated_us),
        None if row.last_message_us is None else time_text(row.last_message_us),
    )


def _message(row: table.AnyRow) -> Message:
    return _message_of(dict(row._mapping))


def _message_of(row: dict[str, Any]) -> Message:
    return Message(
        row["id"],
        row["conversation_id"],
        row["role"],
        _decode(row["parts"]) if row["parts"] is not None else row["content"],
        row["content_hash"],
        row["input_tokens"],
        row["output_tokens"],
        None if row["tool_calls"] is None else _decode(row["tool_calls"]),
        None if row["tool_results"] is None else _decode(row["tool_results"]),
        _decode(row["metadata"]),
        row["receipt_id"],
        time_text(row["created_us"]),
    )
