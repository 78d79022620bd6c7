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
    """

    data_dir: Path
    url: str = ""
    durability: Durability = "power"
    busy_timeout_s: float = 1.0
    readers: int = 2
