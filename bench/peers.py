"""What is measured: the bare mock, nginx, LiteLLM, and Stentor with one and with two gateway workers."""

import getpass
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from bench.machine import LOAD_CORE, SERVER_CORE
from bench.mock import ConfigTemplate, mock_folder
from bench.process import Process, StartFailed, free_port, started, wait_for_line, wait_until_answers
from tests.postgres import Cluster

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CHAT = "/v1/chat/completions"
LITELLM_VENV = HERE / ".venv-litellm"
LITELLM_LOCK = HERE / "requirements" / "litellm.txt"
STENTOR = ROOT / ".venv" / "bin" / "stentor"
DURABILITY = "power"
READY_S = 60.0
LITELLM_READY_S = 180.0


class PeerMissing(Exception):
    """A peer isn't installed; the text says what to do."""


@dataclass(frozen=True)
class Endpoint:
    """Where and as whom to ask."""

    port: int
    model: str
    key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{CHAT}"


@dataclass
class Peer:
    """A running server. `pid` is None for the bare mock, which has no server before it."""

    name: str
    whole: Endpoint
    paced: Endpoint
    pid: int | None = None
    start_s: float | None = None
    data_dir: Path | None = None
    probes: int = 0


@dataclass(frozen=True)
class Upstream:
    """Ports of the shared mocks: whole JSON answers and frame-by-frame streams."""

    whole_port: int
    paced_port: int


def probe_body(model: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "ready?"}], "max_tokens": 16}


def nginx_path() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if not found:
        raise PeerMissing("nginx is not installed. Run: apt-get install nginx-light (and leave its service stopped)")
    return found


def wrk_path() -> str:
    found = shutil.which("wrk")
    if not found:
        raise PeerMissing("wrk is not installed. Run: apt-get install wrk")
    return found


def render(name: str, target: Path, **values: object) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(ConfigTemplate((HERE / "config" / name).read_text()).substitute(**values))
    return target


@contextmanager
def upstream(folder: Path) -> Iterator[Upstream]:
    """The two shared mocks on the load core."""
    nginx_path()
    mock = [sys.executable, str(HERE / "mock.py"), "--port"]
    whole_port, paced_port = free_port(), free_port()
    with (
        started([*mock, str(whole_port)], LOAD_CORE, folder / "mock-whole") as whole,
        started([*mock, str(paced_port), "--paced"], LOAD_CORE, folder / "mock-paced") as paced,
    ):
        wait_until_answers(whole, whole_port, CHAT, "none", probe_body("mock"), READY_S)
        wait_until_answers(paced, paced_port, CHAT, "none", probe_body("paced"), READY_S)
        yield Upstream(whole_port, paced_port)
    shutil.rmtree(mock_folder(whole_port), ignore_errors=True)


@contextmanager
def direct(up: Upstream, folder: Path) -> Iterator[Peer]:
    del folder
    yield Peer("direct", Endpoint(up.whole_port, "mock", "none"), Endpoint(up.paced_port, "paced", "none"))


@contextmanager
def nginx(up: Upstream, folder: Path) -> Iterator[Peer]:
    port, stream_port = free_port(), free_port()
    config = render(
        "proxy.nginx.conf",
        folder / "nginx" / "nginx.conf",
        folder=folder / "nginx",
        user=getpass.getuser(),
        affinity=format(1 << SERVER_CORE, "b"),
        port=port,
        stream_port=stream_port,
        whole_port=up.whole_port,
        paced_port=up.paced_port,
    )
    command = [nginx_path(), "-p", str(config.parent), "-c", str(config)]
    with started(command, SERVER_CORE, config.parent) as process:
        whole, paced = Endpoint(port, "mock", "none"), Endpoint(stream_port, "paced", "none")
        wait_both(process, whole, paced, READY_S)
        yield Peer("nginx", whole, paced, process.pid)


def wait_both(process: Process, whole: Endpoint, paced: Endpoint, limit_s: float) -> int:
    return sum(
        wait_until_answers(process, end.port, CHAT, end.key, probe_body(end.model), limit_s) for end in (whole, paced)
    )


def install_litellm() -> None:
    """Makes the LiteLLM environment from the hash-locked list, if it isn't there."""
    if (LITELLM_VENV / "bin" / "litellm").exists():
        return
    print(f"installing LiteLLM into {LITELLM_VENV} (once, about a minute) …", file=sys.stderr)
    pip = [
        str(LITELLM_VENV / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-input",
    ]
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(LITELLM_VENV)],
        [*pip, "--require-hashes", "-r", str(LITELLM_LOCK)],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, timeout=1800, check=False)
        if done.returncode:
            shutil.rmtree(LITELLM_VENV, ignore_errors=True)
            raise PeerMissing(f"LiteLLM could not be installed: {' '.join(step)}\n{done.stderr[-800:]}")


def litellm_version() -> str:
    for line in LITELLM_LOCK.read_text().splitlines():
        if line.startswith("litellm=="):
            return line.split("==")[1].split()[0]
    return "unknown"


@contextmanager
def litellm(up: Upstream, folder: Path) -> Iterator[Peer]:
    install_litellm()
    key, port = "sk-bench-master", free_port()
    config = render(
        "litellm.yaml",
        folder / "litellm" / "config.yaml",
        master_key=key,
        whole_port=up.whole_port,
        paced_port=up.paced_port,
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(config.parent),
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "DISABLE_ADMIN_UI": "True",
        "NO_DOCS": "True",
    }
    command = [str(LITELLM_VENV / "bin" / "litellm"), "--config", str(config), "--telemetry", "False"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    command += ["--log_config", str(HERE / "config" / "litellm-log.json")]
    with started(command, SERVER_CORE, config.parent, environment) as process:
        whole, paced = Endpoint(port, "mock", key), Endpoint(port, "paced", key)
        wait_both(process, whole, paced, LITELLM_READY_S)
        yield Peer("litellm", whole, paced, process.pid)


def stentor_version() -> str:
    try:
        return version("stentor")
    except PackageNotFoundError:
        return "not installed"


@contextmanager
def stentor(folder: Path, workers: int = 1, database_url: str = "") -> Iterator[Peer]:
    """One Stentor with its own mocks as engines; its data lies under `folder`, kept if it is there already."""
    if not STENTOR.exists():
        raise PeerMissing(f"{STENTOR} is missing. Run: make dev")
    name = "stentor-postgres" if database_url else "stentor" if workers == 1 else f"stentor-{workers}"
    home = folder / name
    config = render("stentor.toml", home / "stentor.toml", python=sys.executable, mock=HERE / "mock.py", core=LOAD_CORE)
    data_dir = home / "data"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "STENTOR_DATA_DIR": str(data_dir),
        "STENTOR_PORT": str(free_port()),
        "STENTOR_GATEWAY_WORKERS": str(workers),
        "STENTOR_DURABILITY": DURABILITY,
        **({"STENTOR_DATABASE_URL": database_url} if database_url else {}),
    }
    command = [str(STENTOR), "up", "--json", "--config", str(config)]
    with started(command, SERVER_CORE, home, environment) as process:
        line, start_s = wait_for_line(process, READY_S)
        port, key = read_ready(line, home / "api_key")
        whole, paced = Endpoint(port, "mock", key), Endpoint(port, "paced", key)
        probes = wait_both(process, whole, paced, READY_S)
        yield Peer(name, whole, paced, process.pid, start_s, None if database_url else data_dir, probes)


@contextmanager
def stentor_on_postgres(folder: Path) -> Iterator[Peer]:
    """The same with its books in a PostgreSQL of its own, which runs on the load core and isn't counted."""
    try:
        cluster = Cluster()
    except (AssertionError, OSError, RuntimeError) as error:
        raise PeerMissing(f"PostgreSQL can't be started: {error}. Run: make dev") from error
    try:
        with stentor(folder, database_url=cluster.url) as peer:
            yield peer
    finally:
        cluster.remove()


def read_ready(line: str, kept: Path) -> tuple[int, str]:
    """Port and key of the announcement. The key is said by the first start only, so it is kept beside the data."""
    try:
        ready = json.loads(line)
        port, key = int(urlsplit(ready["base_url"]).port or 80), ready["api_key"]
    except (ValueError, KeyError, TypeError) as error:
        raise StartFailed(f"stentor's first line isn't the announced JSON: {error!r} in {line[:300]!r}") from error
    if key:
        kept.write_text(str(key))
    return port, kept.read_text()
