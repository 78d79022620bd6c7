"""What clients log of calls they made, here or anywhere else. Their numbers never touch a balance or a quota."""

from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection

from stentor.core.ids import new_uuid7
from stentor.history import table
from stentor.history.values import UsageLogRequest

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class ClientLog(NamedTuple):
    """One call; ``cached_tokens`` are part of the input. ``metadata`` is decoded JSON."""

    id: str
    project_id: str
    key_id: str
    model: str
    provider: str
    alias: str | None
    profile: str | None
    origin: str | None
    id_at_origin: str | None
    conversation_id: str | None
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_nano: int
    latency_ms: int | None
    metadata: dict[str, Any] | None
    created_us: int


class LogFilter(NamedTuple):
    """Which logs; None: all. ``until_us`` is excluded; ``uncertified``: those that no receipt certifies."""

    since_us: int | None = None
    until_us: int | None = None
    alias: str | None = None
    model: str | None = None
    origin: str | None = None
    conversation_id: str | None = None
    ids: tuple[str, ...] | None = None
    uncertified: bool | None = None


class UsageGroup(NamedTuple):
    """Sums of one day (days since 1970), model, origin and alias."""

    day: int
    model: str
    origin: str | None
    alias: str | None
    requests: int
    cost_nano: int
    input_tokens: int
    output_tokens: int


def add_log(
    connection: Connection, project_id: str, key_id: str, wanted: UsageLogRequest, cost_nano: int, now_us: int
) -> ClientLog:
    """Keep one call."""
    said = (wanted.metadata or {}).get("conversation_id")
    log = ClientLog(
        new_uuid7(),
        project_id,
        key_id,
        wanted.model,
        wanted.provider,
        wanted.alias,
        wanted.profile,
        wanted.origin,
        wanted.id_at_origin,
        said if isinstance(said, str) and len(said) <= 64 else None,
        wanted.input_tokens,
        wanted.output_tokens,
        min(wanted.cached_input_tokens, wanted.input_tokens),
        cost_nano,
        wanted.latency_ms,
        wanted.metadata,
        now_us,
    )
    encoded = None if wanted.metadata is None else _encode(wanted.metadata).decode()
    table.add_log(connection, {**log._asdict(), "metadata": encoded})
    return log


def list_logs(
    connection: Connection, project_id: str, where: LogFilter, limit: int, offset: int = 0
) -> list[ClientLog]:
    """The project's, newest first."""
    rows = table.list_logs(connection, project_id, where._asdict(), limit, offset)
    return [_log(row) for row in rows]


def count_logs(connection: Connection, project_id: str) -> int:
    """How many the project has."""
    return table.count_logs(connection, project_id)


def sum_logs(connection: Connection, project_id: str, since_us: int, until_us: int) -> list[UsageGroup]:
    """The project's sums."""
    rows = table.sum_logs(connection, project_id, since_us, until_us)
    return [UsageGroup(int(row[0]), *row[1:4], *(int(number) for number in row[4:])) for row in rows]


def _log(row: table.AnyRow) -> ClientLog:
    log = ClientLog._make(row)
    return log._replace(metadata=None if row.metadata is None else _decode(row.metadata))
