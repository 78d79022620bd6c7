"""Tables of the first schema that the console needs: sessions, sign-ups, folded usage, uptime."""

import sqlalchemy as sa
from alembic import op


def make_console_tables() -> None:
    """Make them; users and tiers are there."""
    _sessions()
    _signups()
    _usage_days()
    _uptime()


def _sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.CheckConstraint("kind IN ('admin', 'user')", name="sessions_kind"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"]),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    op.create_index("sessions_user", "sessions", ["user_id", "id"], unique=False)


def _signups() -> None:
    op.create_table(
        "signups",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("tier_id", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("decided_us", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'approved', 'rejected')", name="signups_state_known"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("signups_state", "signups", ["state", "id"], unique=False)
    op.create_index("signups_email", "signups", ["email", "state"], unique=False)
    op.create_table(
        "signup_keys",
        sa.Column("signup_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["signup_id"], ["signups.id"]),
        sa.PrimaryKeyConstraint("signup_id"),
    )


def _usage_days() -> None:
    keys = ("user_id", "project_id", "key_id", "model")
    sums = ("events", "input_tokens", "cached_tokens", "output_tokens", "billable_tokens")
    money = ("cost_nano", "charged_nano", "absorbed_nano")
    op.create_table(
        "usage_days",
        sa.Column("day_us", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in keys),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in (*sums, *money)),
        sa.PrimaryKeyConstraint("day_us", *keys),
    )


def _uptime() -> None:
    op.create_table(
        "uptime",
        sa.Column("day_us", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("checks", "good", "latency_us", "models")),
        sa.PrimaryKeyConstraint("day_us"),
    )
