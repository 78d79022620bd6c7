"""Several servers on one database, each with models of its own."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.http.harness import Gate
from tests.serving import Server

PATIENCE_S = 60.0
COMMON = {"DURABILITY": "process", "DATABASE_POOL_SIZE": "2", "DATABASE_TIMEOUT_S": "5", "EGRESS_ALLOW": "127.0.0.1"}


class Node(Server):
    """A server that the others are told of."""

    def __init__(self, folder: Path, config: str, master: Path, **settings: str) -> None:
        super().__init__(folder, config, "--admin-key", **settings)
        self.settings |= {"NODE_URL": f"http://127.0.0.1:{self.port}"}
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if master.exists():
            (self.data_dir / "master.key").write_bytes(master.read_bytes())
            (self.data_dir / "master.key").chmod(0o600)


@contextlib.contextmanager
def cluster(folder: Path, url: str, *configs: str, workers: str = "1") -> Iterator[list[Gate]]:
    """Servers on a schema of their own, each with its models; all have the first one's key."""
    settings = {**COMMON, "DATABASE_URL": url, "DATABASE_SCHEMA": "nb_" + uuid.uuid4().hex[:12]}
    with contextlib.ExitStack() as stack:
        nodes: list[Node] = []
        for number, config in enumerate(configs):
            place = folder / str(number)
            place.mkdir()
            master = folder / "0" / "data" / "master.key"
            node = stack.enter_context(Node(place, config, master, GATEWAY_WORKERS=workers, **settings))
            node.key = node.key or nodes[0].key
            nodes.append(node)
        yield [Gate(node) for node in nodes]
    for node in nodes:
        assert b"request_crashed" not in node.log, node.log.decode(errors="replace")


def names(gate: Gate) -> set[str]:
    return {model["id"] for model in gate.ask("GET", "/v1/models").json()["data"]}
