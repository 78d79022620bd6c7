"""Tables of the first schema that several nodes need among themselves."""

import sqlalchemy as sa
from alembic import op


def make_node_tables() -> None:
    """Make them."""
    op.create_table(
        "leaders",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("until_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job"),
    )
