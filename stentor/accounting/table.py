"""All SQL of accounting: buckets, events, ledger, prices."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, case, delete, func, insert, select, update

from stentor.store.bulk import BulkInsert
from stentor.store.driver import raw_of
from stentor.store.schema import bucket, ledger, prices, usage_days, usage_events
from stentor.store.upsert import upsert

AnyRow = Row[*tuple[Any, ...]]

EVENT_COLUMNS = tuple(column.name for column in usage_events.columns if column.name != "id")
_BUCKET_COLUMNS = tuple(column.name for column in bucket.columns)

_insert_events = BulkInsert(
    usage_events, EVENT_COLUMNS, "ON CONFLICT (request_id, attempt) DO NOTHING", ("request_id", "attempt")
)
_add_to_buckets = BulkInsert(
    bucket,
    _BUCKET_COLUMNS,
    'ON CONFLICT (kind, subject, "window", window_start) DO UPDATE SET used = bucket.used + excluded.used',
)

BucketKey = tuple[str, str, str, int]  # kind, subject, window, window_start


def add_events(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> list[bool]:
    """Append events in the order of :data:`EVENT_COLUMNS`; says for each whether it is new."""
    if connection.dialect.name == "postgresql":
        new = {tuple(record) for record in _insert_events.run_returning(connection, rows)}
        return [_take(new, (row[0], row[1])) for row in rows]
    written = _insert_events.run(connection, rows)
    if written == len(rows):
        return [True] * written
    # Some were there before. Ids grow by one with each row written, and nobody else writes.
    newest = connection.execute(select(func.max(usage_events.c.id))).scalar_one()
    seen: set[int] = set()
    fresh = []
    for row in rows:
        query = select(usage_events.c.id).where(usage_events.c.request_id == row[0], usage_events.c.attempt == row[1])
        event_id = connection.execute(query).scalar_one()
        fresh.append(event_id > newest - written and event_id not in seen)
        seen.add(event_id)
    return fresh


def _take(names: set[tuple[Any, ...]], name: tuple[Any, ...]) -> bool:
    """Whether ``name`` was among them; it is taken out."""
    held = name in names
    names.discard(name)
    return held


def charge_buckets(connection: Connection, amounts: dict[BucketKey, int]) -> None:
    """Add to what is used of each bucket, making those that are missing."""
    if amounts:
        # In order, so that two nodes never wait for each other.
        _add_to_buckets.run(connection, [(*key, None, amount, 0) for key, amount in sorted(amounts.items())])


_POST_SHARED = """
WITH post AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
    AS post (kind, subject, "window", window_start, used, leased)
), counted AS (
    INSERT INTO bucket (kind, subject, "window", window_start, capacity, used, leased)
    SELECT kind, subject, "window", window_start, NULL, used, leased FROM post
    ON CONFLICT (kind, subject, "window", window_start)
    DO UPDATE SET used = bucket.used + excluded.used, leased = bucket.leased + excluded.leased
)
INSERT INTO leases (kind, subject, "window", window_start, node_id, amount)
SELECT kind, subject, "window", window_start, $7::text, leased FROM post WHERE leased <> 0
ON CONFLICT (kind, subject, "window", window_start, node_id) DO UPDATE SET amount = leases.amount + excluded.amount
"""


def post_shared(connection: Connection, node_id: str, posts: Mapping[BucketKey, Sequence[int]]) -> None:
    """Add to what is used and to what this node has leased of each bucket (PostgreSQL)."""
    rows = sorted((*key, *post) for key, post in posts.items() if any(post))
    if rows:
        raw_of(connection).link.fetch(_POST_SHARED, (*zip(*rows, strict=True), node_id))


_LIST_LEASES = """
SELECT kind, subject, "window", window_start, amount FROM leases
WHERE node_id = $5 AND amount <> 0 AND (kind, subject, "window", window_start) IN
    (SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]))
"""


def list_leases(connection: Connection, node_id: str, keys: Sequence[BucketKey]) -> dict[BucketKey, int]:
    """What a node has borrowed of these buckets."""
    columns = tuple(zip(*sorted(keys), strict=True))
    rows = raw_of(connection).link.fetch(_LIST_LEASES, (*columns, node_id))[1]
    return {tuple(row[:4]): row[4] for row in rows}


_LOCK_SHARED = """
SELECT kind, subject, "window", window_start, capacity, used, leased FROM bucket
WHERE (kind, subject, "window", window_start) IN
    (SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]))
ORDER BY kind, subject, "window", window_start FOR UPDATE
"""
_MAKE_SHARED = """
INSERT INTO bucket (kind, subject, "window", window_start, capacity, used, leased)
SELECT *, NULL, 0, 0 FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) ON CONFLICT DO NOTHING
"""
_SUM_MINUTES = """
SELECT kind, subject, sum(used)::bigint AS used FROM bucket
WHERE (kind, subject) IN (SELECT * FROM unnest($1::text[], $2::text[]))
AND "window" = 'minute' AND window_start >= $3 GROUP BY kind, subject
"""
_DROP_MINUTES = """
DELETE FROM bucket WHERE (kind, subject) IN (SELECT * FROM unnest($1::text[], $2::text[]))
AND "window" = 'minute' AND window_start > 0 AND window_start < $3
"""


def lock_shared(connection: Connection, keys: Sequence[BucketKey]) -> dict[BucketKey, tuple[int | None, int, int]]:
    """Hold buckets until the end of the transaction, making those that are missing: capacity, used, leased."""
    link = raw_of(connection).link
    columns = tuple(zip(*sorted(keys), strict=True))
    rows = link.fetch(_LOCK_SHARED, columns)[1]
    if len(rows) < len(keys):
        link.fetch(_MAKE_SHARED, columns)
        rows = link.fetch(_LOCK_SHARED, columns)[1]
    return {tuple(row[:4]): tuple(row[4:]) for row in rows}


def sum_minutes(connection: Connection, names: Sequence[tuple[str, str]], since_s: int) -> dict[tuple[str, str], int]:
    """What was used of minute windows (kind, subject) since a second; older seconds are forgotten."""
    link = raw_of(connection).link
    columns = tuple(zip(*sorted(names), strict=True))
    link.fetch(_DROP_MINUTES, (*columns, since_s))
    return {(row[0], row[1]): row[2] for row in link.fetch(_SUM_MINUTES, (*columns, since_s))[1]}


def find_bucket(connection: Connection, key: BucketKey) -> tuple[int | None, int] | None:
    """Capacity and used of a bucket."""
    query = select(bucket.c.capacity, bucket.c.used).where(
        bucket.c.kind == key[0],
        bucket.c.subject == key[1],
        bucket.c.window == key[2],
        bucket.c.window_start == key[3],
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else (row[0], row[1])


def find_leased(connection: Connection, key: BucketKey) -> int:
    """What nodes have borrowed of a bucket."""
    query = select(bucket.c.leased).where(
        bucket.c.kind == key[0],
        bucket.c.subject == key[1],
        bucket.c.window == key[2],
        bucket.c.window_start == key[3],
    )
    return connection.execute(query).scalar_one_or_none() or 0


def set_bucket(connection: Connection, key: BucketKey, capacity: int | None, used: int) -> None:
    """Make or overwrite a bucket."""
    values = dict(zip(_BUCKET_COLUMNS, (*key, capacity, used, 0), strict=True))
    statement = upsert(bucket).values(**values)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[bucket.c.kind, bucket.c.subject, bucket.c.window, bucket.c.window_start],
            set_={"capacity": capacity, "used": used},
        )
    )


def delete_buckets(connection: Connection, kind: str, subject: str, window: str) -> None:
    """Forget a subject's buckets of one kind of window; what nodes have borrowed of them stays theirs to return."""
    mine = (bucket.c.kind == kind, bucket.c.subject == subject, bucket.c.window == window)
    connection.execute(delete(bucket).where(*mine, bucket.c.leased == 0))
    connection.execute(update(bucket).where(*mine).values(used=0, capacity=None))


def raise_capacity(connection: Connection, key: BucketKey, amount: int) -> tuple[int, int]:
    """Add to a bucket's capacity, making it if it is missing; returns its capacity and used."""
    values = dict(zip(_BUCKET_COLUMNS, (*key, amount, 0, 0), strict=True))
    statement = upsert(bucket).values(**values)
    capacity = func.coalesce(bucket.c.capacity, 0) + amount
    statement = statement.on_conflict_do_update(
        index_elements=[bucket.c.kind, bucket.c.subject, bucket.c.window, bucket.c.window_start],
        set_={"capacity": capacity},
    )
    row = connection.execute(statement.returning(bucket.c.capacity, bucket.c.used)).one()
    return row[0], row[1]


def list_buckets(connection: Connection, kind: str) -> list[AnyRow]:
    """All buckets of a kind: subject, window, window_start, capacity, used."""
    query = select(bucket.c.subject, bucket.c.window, bucket.c.window_start, bucket.c.capacity, bucket.c.used)
    return list(connection.execute(query.where(bucket.c.kind == kind).order_by(bucket.c.subject, bucket.c.window)))


def add_ledger_row(connection: Connection, values: dict[str, Any]) -> int:
    """Append to the ledger; returns the row's id."""
    return int(connection.execute(insert(ledger).values(**values).returning(ledger.c.id)).scalar_one())


def find_ledger_reference(connection: Connection, reference: str) -> AnyRow | None:
    """The row with this reference: id, user_id, amount_nano."""
    query = select(ledger.c.id, ledger.c.user_id, ledger.c.amount_nano).where(ledger.c.reference == reference)
    return connection.execute(query).one_or_none()


def list_ledger(connection: Connection, user_id: str, before_id: int | None, limit: int) -> list[AnyRow]:
    """A user's ledger, newest first."""
    query = select(
        ledger.c.id,
        ledger.c.user_id,
        ledger.c.kind,
        ledger.c.amount_nano,
        ledger.c.reference,
        ledger.c.note,
        ledger.c.actor,
        ledger.c.created_us,
    ).where(ledger.c.user_id == user_id)
    if before_id is not None:
        query = query.where(ledger.c.id < before_id)
    return list(connection.execute(query.order_by(ledger.c.id.desc()).limit(limit)))


def sum_ledger(connection: Connection) -> dict[str, int]:
    """What was paid in, and closed off, by user."""
    query = select(ledger.c.user_id, func.sum(ledger.c.amount_nano)).group_by(ledger.c.user_id)
    return {row[0]: row[1] for row in connection.execute(query.order_by(ledger.c.user_id))}


def sum_events(connection: Connection, subject: str, amount: str, *, folded: bool = False) -> dict[str, int]:
    """Sums of an event column by another, over all events; ``amount`` ``tokens``: billable input and output.

    ``folded``: with what was folded away into days.
    """
    value = usage_events.c[amount] if amount != "tokens" else _billable_tokens()
    column = usage_events.c[subject]
    query = select(column, func.sum(value)).group_by(column).order_by(column)
    sums = {row[0]: int(row[1]) for row in connection.execute(query)}
    if folded:
        folded_amount = usage_days.c["billable_tokens" if amount == "tokens" else amount]
        days = select(usage_days.c[subject], func.sum(folded_amount)).group_by(usage_days.c[subject])
        for row in connection.execute(days.order_by(usage_days.c[subject])):
            sums[row[0]] = sums.get(row[0], 0) + int(row[1])
    return sums


def _billable_tokens() -> Any:
    total = usage_events.c.input_tokens + usage_events.c.output_tokens
    return case((usage_events.c.billable, total), else_=0)


_USAGE = (
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "audio_ms",
    "characters",
    "estimated",
)


def find_event(connection: Connection, request_id: str, attempt: int) -> AnyRow | None:
    """Cost, absorbed and usage (in the order of ``core.books.Usage``) of one event."""
    query = select(*(usage_events.c[name] for name in ("cost_nano", "absorbed_nano", *_USAGE)))
    query = query.where(usage_events.c.request_id == request_id, usage_events.c.attempt == attempt)
    return connection.execute(query).one_or_none()


def list_prices(connection: Connection) -> list[AnyRow]:
    """All prices by model and time."""
    query = select(
        prices.c.model,
        prices.c.effective_us,
        prices.c.version,
        prices.c.input_nano,
        prices.c.output_nano,
        prices.c.cached_nano,
        prices.c.audio_second_nano,
        prices.c.character_nano,
        prices.c.request_nano,
    ).order_by(prices.c.model, prices.c.effective_us)
    return list(connection.execute(query))


def add_price(connection: Connection, values: dict[str, Any]) -> int:
    """Append a price; returns its version."""
    return int(connection.execute(insert(prices).values(**values).returning(prices.c.version)).scalar_one())


def find_price(connection: Connection, model: str, effective_us: int) -> int | None:
    """The version of the price that a model has from exactly this moment on."""
    query = select(prices.c.version).where(prices.c.model == model, prices.c.effective_us == effective_us)
    return connection.execute(query).scalar_one_or_none()


def move_bucket(connection: Connection, key: BucketKey, amount: int) -> int:
    """Add ``amount`` to a bucket's capacity, which is returned, and to what is used of it: what is left stays."""
    here = (
        (bucket.c.kind == key[0])
        & (bucket.c.subject == key[1])
        & (bucket.c.window == key[2])
        & (bucket.c.window_start == key[3])
    )
    values = {"capacity": func.coalesce(bucket.c.capacity, 0) + amount, "used": bucket.c.used + amount}
    statement = update(bucket).where(here).values(**values).returning(bucket.c.capacity)
    return connection.execute(statement).scalar_one_or_none() or 0
