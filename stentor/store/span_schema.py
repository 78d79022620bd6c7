"""Tables of usage summed up twice: over many blocks, by few things at a time, for reports that read few rows."""

from sqlalchemy import BigInteger, Column, Index, Table, Text

from stentor.store.metadata import metadata

# So many successive blocks that are all summed up; times are those of their events.
usage_spans = Table(
    "usage_spans",
    metadata,
    Column("span", BigInteger, primary_key=True, autoincrement=False),
    Column("first_us", BigInteger, nullable=False),
    Column("last_us", BigInteger, nullable=False),
)

# A span's sums by the columns that ``told`` names, with a comma in between: ``subject`` and ``other`` are the values of
# the first and the second text among them (else empty), ``day_us`` is that of the day (else -1).
span_sums = Table(
    "span_sums",
    metadata,
    Column("told", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("other", Text, primary_key=True),
    Column("day_us", BigInteger, primary_key=True),
    Column("span", BigInteger, primary_key=True, autoincrement=False),
    Column("events", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("billable_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("charged_nano", BigInteger, nullable=False),
    Column("absorbed_nano", BigInteger, nullable=False),
    Index("span_sums_span", "span"),
)
