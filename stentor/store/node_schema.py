"""Tables of what servers on one PostgreSQL database have to settle among themselves."""

from sqlalchemy import BigInteger, Column, Table, Text

from stentor.store.metadata import metadata

# Which node does what a cluster needs done once. ``term`` counts how often such a job went from one life to another.
leaders = Table(
    "leaders",
    metadata,
    Column("job", Text, primary_key=True),
    Column("node_id", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("term", BigInteger, nullable=False),
    Column("until_us", BigInteger, nullable=False),
)
