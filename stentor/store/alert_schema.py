"""Tables of alerts: who is told, what there was to tell, and how far the telling has come."""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, ForeignKey, Index, Table, Text

from stentor.store.metadata import metadata

# Whom to tell. What signs the messages lies in the vault, as a secret of kind ``webhook`` under the same name.
webhooks = Table(
    "webhooks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("events", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

# What happened, once for each ``source``. ``standing``: its source doesn't pass with time, so neither does its row.
alerts = Table(
    "alerts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("source", Text, nullable=False, unique=True),
    Column("event", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("standing", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

# The outbox: a row for each alert and hook. ``next_us`` is when it is tried (again), while it is pending.
deliveries = Table(
    "deliveries",
    metadata,
    Column("alert_id", Text, ForeignKey("alerts.id"), primary_key=True),
    Column("webhook", Text, ForeignKey("webhooks.name"), primary_key=True),
    Column("state", Text, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("next_us", BigInteger, nullable=False),
    Column("http_status", BigInteger),
    Column("problem", Text, nullable=False),
    Column("tried_us", BigInteger),
    CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="deliveries_state"),
    Index("deliveries_due", "state", "next_us"),
    Index("deliveries_webhook", "webhook", "tried_us"),
)
