"""What the store has to be told."""

from pathlib import Path
from typing import Literal

import msgspec

Durability = Literal["power", "process"]


class StoreSettings(msgspec.Struct, frozen=True):
    """Where the database lies and how durable a commit is.

    ``url`` is empty (``{data_dir}/stentor.db``), a path, or ``sqlite://PATH`` read as sqlx does (``sqlite://a.db`` is
    relative, ``sqlite:///srv/a.db`` absolute). ``durability`` ``power`` survives a power cut (fsync at every group
    commit), ``process`` a crash of the server alone. ``busy_timeout_s`` is how long the writer waits for a foreign
    process that holds the database before it reports a problem.

    With ``postgresql://…`` tables lie in ``schema``; ``pool_size`` connections are kept for reading and
    ``pool_overflow`` more made when needed, beside the writer's own; ``answer_timeout_s`` is how long the writer waits
    for the database before it reports a problem.
    """

    data_dir: Path
    url: str = ""
    durability: Durability = "power"
    busy_timeout_s: float = 1.0
    readers: int = 2
    schema: str = "stentor"
    pool_size: int = 20
    pool_overflow: int = 10
    answer_timeout_s: float = 5.0

    @property
    def is_postgres(self) -> bool:
        """Whether the books are kept in PostgreSQL."""
        return self.url.startswith(("postgresql://", "postgres://"))
