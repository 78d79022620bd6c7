"""Every table, for SQLite and PostgreSQL alike: 64-bit integers, UTC microseconds, nano-USD, ids as text.

The migrations are what makes a database; this module is what queries are written against. A test compares the two.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from stentor.store import alert_schema, node_schema, ring_schema, span_schema
from stentor.store.metadata import Serial as _Serial
from stentor.store.metadata import metadata

HEAD = "0001"
PRODUCT = "stentor"
RING_TABLES = ring_schema.RING_TABLES
leaders = node_schema.leaders
webhooks, alerts, deliveries = alert_schema.webhooks, alert_schema.alerts, alert_schema.deliveries
usage_spans, span_sums = span_schema.usage_spans, span_schema.span_sums

meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

# Servers that share a PostgreSQL database. ``epoch`` counts a node's lives: whoever commits under an older one is
# refused. ``group_no`` numbers its commits, so that one whose answer was lost can be found again.
nodes = Table(
    "nodes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("group_no", BigInteger, nullable=False),
    Column("address", Text, nullable=False),
    Column("models", Text, nullable=False, server_default="[]"),
    Column("started_us", BigInteger, nullable=False),
    Column("seen_us", BigInteger, nullable=False),
    Column("lease_until_us", BigInteger, nullable=False),
)

tiers = Table(
    "tiers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("concurrency", BigInteger),
    Column("prepaid", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("email", Text, unique=True),
    Column("role", Text, nullable=False),
    Column("tier_id", Text, ForeignKey("tiers.id"), nullable=False),
    Column("active", Boolean, nullable=False),
    Column("password_hash", Text),
    Column("password_temporary", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    CheckConstraint("role IN ('user', 'admin')", name="users_role"),
)

projects = Table(
    "projects",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("owner_id", Text, ForeignKey("users.id"), nullable=False),
    Column("personal", Boolean, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Index("projects_owner", "owner_id"),
)

project_budgets = Table(
    "project_budgets",
    metadata,
    Column("project_id", Text, ForeignKey("projects.id"), primary_key=True),
    Column("window", Text, primary_key=True, quote=True),
    Column("limit_nano", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    CheckConstraint("\"window\" IN ('none', 'day', 'month')", name="project_budgets_window"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("user_id", Text, ForeignKey("users.id"), nullable=False),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("models", Text, nullable=False),
    Column("endpoints", Text, nullable=False),
    Column("token_limit", BigInteger),
    Column("spending_limit_nano", BigInteger),
    Column("budget_day_nano", BigInteger),
    Column("budget_month_nano", BigInteger),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("concurrency", BigInteger),
    Column("expires_us", BigInteger),
    Column("rotated_from", Text, ForeignKey("api_keys.id")),
    Column("line_id", Text, nullable=False),
    Column("grace_until_us", BigInteger),
    Column("revoked_us", BigInteger),
    Column("created_us", BigInteger, nullable=False),
    Index("api_keys_user", "user_id", "created_us"),
    Index("api_keys_project", "project_id", "created_us"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("user_id", Text, ForeignKey("users.id"), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("seen_us", BigInteger, nullable=False),
    Column("address", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("key_id", Text, ForeignKey("api_keys.id")),
    Index("sessions_user", "user_id", "id"),
    CheckConstraint("kind IN ('admin', 'user')", name="sessions_kind"),
)

signups = Table(
    "signups",
    metadata,
    Column("id", Text, primary_key=True),
    Column("email", Text, nullable=False),
    Column("tier_id", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("user_id", Text, ForeignKey("users.id")),
    Column("decided_by", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("decided_us", BigInteger),
    Index("signups_state", "state", "id"),
    Index("signups_email", "email", "state"),
    CheckConstraint("state IN ('pending', 'approved', 'rejected')", name="signups_state_known"),
)

# Keys that were given out with a request for an account, and work from its approval on.
signup_keys = Table(
    "signup_keys",
    metadata,
    Column("signup_id", Text, ForeignKey("signups.id"), primary_key=True),
    Column("name", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
)

# What was folded away by RETENTION_DAYS, by day: reports and the check of the books go on from here.
usage_days = Table(
    "usage_days",
    metadata,
    Column("day_us", BigInteger, primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("project_id", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("events", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("billable_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("charged_nano", BigInteger, nullable=False),
    Column("absorbed_nano", BigInteger, nullable=False),
)

# One check a minute while it is young, one row a day for ninety days.
uptime = Table(
    "uptime",
    metadata,
    Column("day_us", BigInteger, primary_key=True),
    Column("checks", BigInteger, nullable=False),
    Column("good", BigInteger, nullable=False),
    Column("latency_us", BigInteger, nullable=False),
    Column("models", BigInteger, nullable=False),
)

# What is left of everything that is limited. Minute windows and concurrency of one machine live in memory alone; the
# rows here are what must outlive it: balances, quotas, spending limits, budgets.
bucket = Table(
    "bucket",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("window", Text, primary_key=True, quote=True),
    Column("window_start", BigInteger, primary_key=True),
    Column("capacity", BigInteger),
    Column("used", BigInteger, nullable=False),
    Column("leased", BigInteger, nullable=False),
    CheckConstraint("\"window\" IN ('none', 'minute', 'day', 'month')", name="bucket_window"),
)

# What each node has borrowed of a bucket, on PostgreSQL: the sum over the nodes is the bucket's ``leased``.
leases = Table(
    "leases",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("window", Text, primary_key=True, quote=True),
    Column("window_start", BigInteger, primary_key=True),
    Column("node_id", Text, ForeignKey("nodes.id"), primary_key=True),
    Column("amount", BigInteger, nullable=False),
    Index("leases_node", "node_id"),
)

usage_events = Table(
    "usage_events",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("request_id", Text, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("client_request_id", Text),
    Column("opened_us", BigInteger, nullable=False),
    Column("settled_us", BigInteger, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("audio_ms", BigInteger, nullable=False),
    Column("characters", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("queued_us", BigInteger, nullable=False),
    Column("latency_us", BigInteger, nullable=False),
    Column("first_token_us", BigInteger),
    Column("overhead_us", BigInteger),
    Column("cost_nano", BigInteger, nullable=False),
    Column("charged_nano", BigInteger, nullable=False),
    Column("absorbed_nano", BigInteger, nullable=False),
    Column("price_version", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("billable", Boolean, nullable=False),
    UniqueConstraint("request_id", "attempt", name="usage_events_request"),
    CheckConstraint("status IN ('completed', 'cancelled', 'failed')", name="usage_events_status"),
)

# What takes the place of indexes on the events: a settlement would pay for each of them. Events are summed up behind
# their writer's back, in blocks of successive ids from ``first_id`` until before ``end_id``. Times are the events' own.
usage_blocks = Table(
    "usage_blocks",
    metadata,
    Column("block", BigInteger, primary_key=True, autoincrement=False),
    Column("first_id", BigInteger, nullable=False),
    Column("end_id", BigInteger, nullable=False),
    Column("first_us", BigInteger, nullable=False),
    Column("last_us", BigInteger, nullable=False),
)

# The sums of a block's events that agree in all of these; ``day_us`` is the start of the UTC day they were settled on.
usage_sums = Table(
    "usage_sums",
    metadata,
    Column("block", BigInteger, ForeignKey("usage_blocks.block"), primary_key=True, autoincrement=False),
    Column("day_us", BigInteger, primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("project_id", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("status", Text, primary_key=True),
    Column("events", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("billable_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("charged_nano", BigInteger, nullable=False),
    Column("absorbed_nano", BigInteger, nullable=False),
)

ledger = Table(
    "ledger",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("user_id", Text, ForeignKey("users.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("reference", Text, unique=True),
    Column("note", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Index("ledger_user", "user_id", "created_us"),
    CheckConstraint("kind IN ('opening', 'top_up', 'adjustment', 'period_close')", name="ledger_kind"),
    sqlite_autoincrement=True,
)

prices = Table(
    "prices",
    metadata,
    Column("version", _Serial, primary_key=True, autoincrement=True),
    Column("model", Text, nullable=False),
    Column("effective_us", BigInteger, nullable=False),
    Column("input_nano", BigInteger, nullable=False),
    Column("cached_nano", BigInteger),
    Column("output_nano", BigInteger, nullable=False),
    Column("audio_second_nano", BigInteger, nullable=False),
    Column("character_nano", BigInteger, nullable=False),
    Column("request_nano", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    UniqueConstraint("model", "effective_us", name="prices_model"),
    sqlite_autoincrement=True,
)

registered_models = Table(
    "registered_models",
    metadata,
    Column("id", Text, primary_key=True),
    Column("node_id", Text, primary_key=True),
    Column("definition", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("created_us", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("address", Text, nullable=False, server_default=""),
    Column("action", Text, nullable=False),
    Column("subject_kind", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("before", Text),
    Column("after", Text),
    Index("audit_time", "created_us"),
    Index("audit_subject", "subject_kind", "subject_id", "created_us"),
    sqlite_autoincrement=True,
)

data_keys = Table(
    "data_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("master_key_id", Text, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("retired_us", BigInteger),
    Index("data_keys_purpose", "purpose", "created_us"),
)

providers = Table(
    "providers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("base_url", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    CheckConstraint("kind IN ('openai', 'anthropic')", name="providers_kind"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("data_key_id", Text, ForeignKey("data_keys.id"), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("hint", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    UniqueConstraint("kind", "name", name="secrets_name"),
)
