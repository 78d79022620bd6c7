"""The tables of usage summed up over many blocks."""

import sqlalchemy as sa
from alembic import op


def make_span_tables() -> None:
    """Make them."""
    op.create_table(
        "usage_spans",
        sa.Column("span", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("first_us", sa.BigInteger(), nullable=False),
        sa.Column("last_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("span"),
    )
    op.create_table(
        "span_sums",
        sa.Column("told", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("other", sa.Text(), nullable=False),
        sa.Column("day_us", sa.BigInteger(), nullable=False),
        sa.Column("span", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("billable_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("charged_nano", sa.BigInteger(), nullable=False),
        sa.Column("absorbed_nano", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("told", "subject", "other", "day_us", "span"),
    )
    op.create_index("span_sums_span", "span_sums", ["span"])
