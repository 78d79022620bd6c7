"""The built wheel, installed with the locked packages into an empty environment, runs without the repository."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.engine.tiny_gguf import write_tiny_gguf
from tests.faults.subject import Surroundings
from tests.keeper import keep
from tests.serving import ROOT, Server


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (made,) = folder.glob("*.whl")
    return made


def run(*words: str, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "stentor").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= held, "a file of the package is left out"
    assert any(name.startswith("stentor/store/migrations/versions/") for name in held)
    assert {name.split("/")[0].removesuffix(".dist-info").split("-")[0] for name in held} == {"stentor"}
    assert any(name.endswith("/licenses/LICENSE") for name in held)


class Installed(Server):
    """``stentor up`` from the environment's own script."""

    program = ""

    @property
    def environ(self) -> dict[str, str]:
        return {name: text for name, text in super().environ.items() if name != "PYTHONPATH"}

    def start(self) -> None:
        words = [self.program, "up", "--json", *self.arguments]
        pipe = subprocess.PIPE
        self.process = keep(
            subprocess.Popen(
                words, cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
            )
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, problem = self.process.communicate()
            raise AssertionError(problem.decode())
        self.ready = json.loads(line)
        self.key = self.ready["api_key"]


@pytest.mark.timeout(300)  # the packages may have to be fetched
def test_an_installed_wheel_serves_from_an_empty_folder(wheel: Path, place: Surroundings) -> None:
    environment = place.folder / "venv"
    python = str(environment / "bin" / "python")
    run(sys.executable, "-m", "venv", str(environment), cwd=place.folder)
    install = (python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-q", "--no-compile")
    run(*install, "--require-hashes", "-r", str(ROOT / "requirements" / "runtime.txt"), cwd=place.folder)
    run(*install, "--no-deps", str(wheel), cwd=place.folder)
    # What the package says it needs is what the lock has.
    run(python, "-m", "pip", "check", cwd=place.folder)

    weights = write_tiny_gguf(place.folder / "tiny.gguf")
    empty = place.folder / "empty"
    empty.mkdir()
    server = Installed(empty, "", "--model", f"file:{weights}", DEFAULT_CTX="256")
    server.config.unlink()
    place.ports |= {server.port, *range(server.slot_port, server.slot_port + server.slots)}
    server.program = str(environment / "bin" / "stentor")
    server.start()
    assert server.process is not None
    try:
        answer = server.chat("hello", max_tokens=4)
        assert answer.status == 200, answer.body
        usage = json.loads(run_as(server, "usage", "--json"))
        assert [event["request_id"] for event in usage] == [answer.request_id]
        assert usage[0]["output_tokens"] == answer.json()["usage"]["completion_tokens"]
        code = Path(run_as(server, "-c", "import stentor; print(stentor.__path__[0])", program=python).strip())
        assert environment in code.parents
    finally:
        server.process.send_signal(signal.SIGTERM)
        _, log = server.process.communicate(timeout=60)
    assert server.process.returncode == 0, log.decode()
    assert b"Traceback" not in log
    assert [path.name for path in empty.iterdir()] == ["data"]
    shutil.rmtree(environment)  # a few hundred MB that pytest would keep


def run_as(server: Installed, *words: str, program: str = "") -> str:
    done = subprocess.run(
        [program or server.program, *words],
        cwd=server.folder,
        env=server.environ | {"PATH": os.defpath},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
