"""The tables behind receipts, conversations, client-logged usage and the registry."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from stentor.store.metadata import Serial, metadata

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("public", LargeBinary, nullable=False),
    Column("data_key_id", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("from_us", BigInteger, nullable=False),
    Column("until_us", BigInteger),
    CheckConstraint("purpose IN ('receipt', 'checkpoint')", name="signing_keys_purpose"),
)

# One row an origin; the newest grows. ``leader`` is the node that numbers its leaves, empty where there is but one;
# ``epoch`` fences a sequencer that doesn't know yet that it was replaced.
merkle_logs = Table(
    "merkle_logs",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("origin", Text, nullable=False, unique=True),
    Column("size", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("event_mark", BigInteger, nullable=False),
    Column("previous", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("leader", Text, nullable=False),
)

merkle_tiles = Table(
    "merkle_tiles",
    metadata,
    Column("log_id", BigInteger, primary_key=True),
    Column("level", BigInteger, primary_key=True),
    Column("tile_index", BigInteger, primary_key=True),
    Column("hashes", LargeBinary, nullable=False),
)

# Events with consecutive numbers that are consecutive leaves: what is numbered together is one row, not hundreds.
usage_runs = Table(
    "usage_runs",
    metadata,
    Column("log_id", BigInteger, primary_key=True),
    Column("first_leaf", BigInteger, primary_key=True),
    Column("first_usage", BigInteger, nullable=False),
    Column("leaves", BigInteger, nullable=False),
    UniqueConstraint("first_usage", name="usage_runs_usage"),
    CheckConstraint("leaves > 0", name="usage_runs_leaves"),
    sqlite_with_rowid=False,
)

# ``log_id`` NULL: to be taken into the log; 0: kept for its owner and no entry of its own.
receipts = Table(
    "receipts",
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("shape", Text, nullable=False),
    Column("receipt_type", Text, nullable=False),
    Column("metered_by", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("log_id", BigInteger),
    Column("leaf_index", BigInteger),
    Column("created_us", BigInteger, nullable=False),
    Index("receipts_leaf", "log_id", "leaf_index"),
    Index("receipts_time", "project_id", "created_us"),
)

receipt_items = Table(
    "receipt_items",
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("item_id", Text, primary_key=True),
    Column("receipt_id", Text, primary_key=True),
    Column("certified_us", BigInteger, nullable=False),
    Index("receipt_items_receipt", "project_id", "receipt_id"),
)

client_logs = Table(
    "client_logs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("alias", Text),
    Column("profile", Text),
    Column("origin", Text),
    Column("id_at_origin", Text),
    Column("conversation_id", Text),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("latency_ms", BigInteger),
    Column("metadata", Text),
    Column("created_us", BigInteger, nullable=False),
    Index("client_logs_time", "project_id", "created_us", "id"),
    Index("client_logs_conversation", "conversation_id"),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("project_label", Text),
    Column("title", Text),
    Column("system_prompt", Text),
    Column("model_alias", Text, nullable=False),
    Column("temperature", Double, nullable=False),
    Column("max_tokens", BigInteger),
    Column("message_count", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("last_message_us", BigInteger),
    Index("conversations_time", "project_id", "updated_us", "id"),
)

messages = Table(
    "messages",
    metadata,
    Column("number", Serial, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("conversation_id", Text, ForeignKey("conversations.id"), nullable=False),
    Column("role", Text, nullable=False),
    Column("content", Text),
    Column("parts", Text),
    Column("content_hash", Text),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("tool_calls", Text),
    Column("tool_results", Text),
    Column("metadata", Text, nullable=False),
    Column("receipt_id", Text),
    Column("cost_nano", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    CheckConstraint("role IN ('system', 'user', 'assistant', 'tool')", name="messages_role"),
    Index("messages_conversation", "conversation_id", "number"),
    Index("messages_time", "created_us"),
    sqlite_autoincrement=True,
)

conversation_templates = Table(
    "conversation_templates",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("project_label", Text),
    Column("name", Text, nullable=False),
    Column("description", Text),
    Column("system_prompt", Text),
    Column("model", Text, nullable=False),
    Column("temperature", Double, nullable=False),
    Column("max_tokens", BigInteger),
    Column("tool_config", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("usage_count", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("last_used_us", BigInteger),
    Index("conversation_templates_time", "project_id", "created_us"),
)

registry_documents = Table(
    "registry_documents",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("body", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

RING_TABLES = (
    signing_keys, merkle_logs, merkle_tiles, usage_runs, receipts, receipt_items,
    client_logs, conversations, messages, conversation_templates, registry_documents,
)  # fmt: skip
