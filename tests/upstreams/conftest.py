"""A server in front of upstreams that do what a test tells them: two OpenAI-shaped ones, an Anthropic-shaped one, and a
second Stentor."""

import json
import socket
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from tests.http.harness import Gate, until
from tests.scripted_engine import EngineProcess
from tests.serving import Server, model_table, scripted_model
from tests.upstreams.anthropic_upstream import AnthropicUpstream

TOKEN = "canary-upstream-token-5d1f00aa77"
FAR_USD, SPARE_USD = 1, 10  # per million tokens
FRESH = 80


def everything_said(server: Server) -> str:
    """Metrics, lists, the database's bytes and the process list, where no credential may be."""
    paths = ("/metrics", "/admin/api/providers", "/admin/api/models", "/admin/api/usage?limit=1000", "/admin/api/slots")
    said = [server.ask("GET", path).body.decode() for path in paths]
    said += [path.read_bytes().decode("latin-1") for path in server.data_dir.glob("stentor.db*")]
    for process in [psutil.Process(server.pid), *server.children()]:
        said.append(" ".join(process.cmdline()))
    return "\n".join(said)


def remote_model(model: str, url: str, **fields: object) -> str:
    """A ``[[models]]`` table of a remote model."""
    usd = fields.pop("usd", FAR_USD)
    remote = {
        "base_url": url,
        "price": {"input": usd, "output": usd},
        "health_s": 0,
        **fields.pop("remote", {}),  # type: ignore[dict-item]
    }
    lines = {"id": model, "ctx": 8192, "parallel": 8, **fields}
    return (
        model_table(**lines)
        + "[models.remote]\n"
        + "".join(f"{name} = {toml(value)}\n" for name, value in remote.items())
    )


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(each)}" for name, each in value.items()) + "}"
    return json.dumps(value)


class Wide(Gate):
    """The server, and what stands behind it."""

    far: EngineProcess
    spare: EngineProcess
    claude: AnthropicUpstream
    peer: Gate
    used: Counter[str] = Counter()  # noqa: RUF012  # of the test run

    def fresh(self, kind: str = "single") -> str:
        """A model that no other test has driven into its circuit breaker: ``single``, a ``chain`` of three, or a
        ``quick`` such chain, whose first may not be silent for long.
        """
        self.used[kind] += 1
        return f"{kind}-{self.used[kind]}"


@pytest.fixture(scope="session")
def claude() -> Iterator[AnthropicUpstream]:
    with AnthropicUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """A second Stentor."""
    folder = tmp_path_factory.mktemp("peer")
    with Server(folder, scripted_model(), "--admin-key", DURABILITY="process") as server:
        yield Gate(server)


def config(far: EngineProcess, spare: EngineProcess, claude: AnthropicUpstream, peer: Gate, gone_port: int) -> str:
    chain = ["spare", "local"]
    singles = [remote_model(f"single-{n}", far.url, remote={"provider": "acme"}) for n in range(1, FRESH)]
    chains = [
        remote_model(f"chain-{n}", far.url, remote={"provider": "acme"}, fallbacks=chain) for n in range(1, FRESH)
    ]
    patience = {"provider": "acme", "first_byte_s": 0.5, "stall_s": 0.5}
    chains += [remote_model(f"quick-{n}", far.url, remote=patience, fallbacks=chain) for n in range(1, 20)]
    peer_url = f"http://127.0.0.1:{peer.port}"
    anthropic = {"kind": "anthropic", "provider": "claude"}
    return "\n".join(
        [
            scripted_model("local"),
            remote_model("far", f"{far.url}/v1", remote={"provider": "acme"}, aliases=["remote-far"]),
            remote_model("spare", spare.url, usd=SPARE_USD),
            remote_model("narrow", far.url, remote={"provider": "acme"}, parallel=2),
            remote_model("watched", far.url, remote={"provider": "acme", "health_s": 1}),
            remote_model("gone", f"http://127.0.0.1:{gone_port}", fallbacks=chain),
            remote_model("claude", claude.url, remote=anthropic, type="vision"),
            remote_model("claude-chain", claude.url, remote=anthropic, fallbacks=["spare"]),
            remote_model("peer", peer_url, remote={"provider": "peer"}, upstream_model="scripted"),
            remote_model("inside", "", remote={"provider": "inside"}).replace('base_url = ""\n', ""),
            remote_model("vectors", claude.url, remote={"provider": "acme"}, type="embedding"),
            *singles,
            *chains,
        ]
    )


@pytest.fixture(scope="session", params=["2"])
def _wide(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, claude: AnthropicUpstream, peer: Gate
) -> Iterator[Wide]:
    with EngineProcess(token=TOKEN) as far, EngineProcess() as spare, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else will
        settings = {"DURABILITY": "process", "GATEWAY_WORKERS": request.param, "LOG_LEVEL": "DEBUG"}
        text = config(far, spare, claude, peer, int(taken.getsockname()[1]))
        with Server(tmp_path_factory.mktemp("wide"), text, "--admin-key", **settings) as server:
            gate = Wide(server)
            gate.far, gate.spare, gate.claude, gate.peer = far, spare, claude, peer
            for name, kind, credential in (
                ("acme", "openai", TOKEN),
                ("claude", "anthropic", TOKEN),
                ("peer", "openai", peer.key),
            ):
                ask = {"name": name, "kind": kind, "base_url": "https://a.example/v1", "credential": credential}
                gate.admin("POST", "/providers", ask)
            yield gate
            gate.check_books()
            said = everything_said(server)
            assert server.stop() == 0
        assert TOKEN not in said + server.log.decode(errors="replace"), "a credential came out"
        assert b"request_crashed" not in server.log, server.log.decode(errors="replace")


@pytest.fixture
def wide(_wide: Wide) -> Iterator[Wide]:
    """The server, at rest before and after."""
    yield _wide
    _wide.server.hang_up()
    for engine in (_wide.far, _wide.spare):
        engine.control()
    until(lambda: _wide.metric("stentor_open_requests"), lambda count: count == 0)
    assert _wide.metric("stentor_running_requests") == 0
