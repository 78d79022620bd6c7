"""Nothing outlives the server: not by SIGKILL, not half started, not over a restart; and nothing foreign dies."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_harness import fake, list_children, take, until

from stentor.runtime import procfs
from stentor.runtime.roster import TAG_VARIABLE, Roster, RosterEntry, choose_victims
from stentor.runtime.slots import is_port_free
from stentor.runtime.spec import ModelSpec
from tests.serving import free_ports

HOST = Path(__file__).with_name("orphan_host.py")


class Host:
    """A server process of its own, which tests may kill."""

    def __init__(self, data_dir: Path, models: tuple[ModelSpec, ...]) -> None:
        self.first_port = free_ports(7)
        arguments = (str(data_dir), str(self.first_port), msgspec.json.encode(models).decode())
        self.process = subprocess.Popen(
            [sys.executable, str(HOST), *arguments], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )

    def report(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def gone(pid: int) -> bool:
    stat = procfs.find_stat(pid)
    return stat is None or stat.state in "ZX"


def wait_until_gone(pids: list[int], timeout_s: float = 60.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if all(gone(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Any]:
    made: list[Host] = []

    def make(*models: ModelSpec) -> Host:
        made.append(Host(tmp_path / "data", models))
        return made[-1]

    yield make
    for host in made:
        if host.process.poll() is None:
            host.kill()


def test_engines_die_with_a_killed_server(hosts: Any, tiny: Path) -> None:
    llama = ModelSpec(id="tiny", source=f"file:{tiny}", ctx=256, parallel=1)
    host = hosts(fake(), fake("stubborn", "--ignore-term"), llama)
    pids = host.report()["pids"]
    assert len(pids) == 3
    assert not any(gone(pid) for pid in pids)
    host.kill()
    assert wait_until_gone(pids)
    # A zombie's other threads may hold its sockets for a moment.
    end = time.monotonic() + 60
    while not all(is_port_free(port) for port in range(host.first_port, host.first_port + 7)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_engine_that_still_starts_dies_with_a_killed_server(hosts: Any) -> None:
    host = hosts(fake("fake", "--hang", "start"))
    end = time.monotonic() + 60
    children: list[int] = []
    while not children and time.monotonic() < end:
        children = [stat.pid for stat in list_children(host.process.pid)]
        time.sleep(0.01)
    assert children
    host.kill()
    assert wait_until_gone(children)


def test_the_next_server_ends_what_engines_started_themselves(hosts: Any) -> None:
    first = hosts(fake("fake", "--grandchild"))
    leader = first.report()["pids"][0]
    end = time.monotonic() + 60
    while len(procfs.list_group(leader)) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    grandchildren = [stat.pid for stat in procfs.list_group(leader) if stat.pid != leader]
    assert len(grandchildren) == 1
    first.kill()
    assert wait_until_gone([leader])
    assert not gone(grandchildren[0])
    second = hosts(fake())
    assert second.report()["swept"] == [leader]
    assert wait_until_gone(grandchildren)


async def test_a_sweep_kills_an_orphan_but_no_stranger(tmp_path: Path) -> None:
    path = tmp_path / "run" / "engines.json"
    path.parent.mkdir()
    sleeper = (sys.executable, "-c", "import time; time.sleep(600)")
    tag = {"PATH": os.environ["PATH"], TAG_VARIABLE: "tag-of-ours"}
    ours = subprocess.Popen(sleeper, start_new_session=True, env=tag)
    stranger = subprocess.Popen(sleeper, start_new_session=True)
    try:
        entries = [_entry(ours.pid, "tag-of-ours"), _entry(stranger.pid, "tag-of-another", start_ticks=1)]
        path.write_bytes(msgspec.json.encode(entries))
        (path.parent / "model-4801.key").write_text("left behind")
        assert [entry.pid for entry in Roster(path).sweep()] == [ours.pid]
        assert ours.wait(5) == -signal.SIGKILL
        assert stranger.poll() is None
        assert msgspec.json.decode(path.read_bytes()) == []
        assert list(path.parent.iterdir()) == [path]
    finally:
        for process in (ours, stranger):
            process.kill()
            process.wait()


def _entry(pid: int, tag: str, start_ticks: int | None = None) -> RosterEntry:
    stat = procfs.find_stat(pid)
    assert stat is not None
    ticks = stat.start_ticks if start_ticks is None else start_ticks
    return RosterEntry("m#1", pid, pid, ticks, procfs.read_boot_id(), tag, 4801)


def test_nothing_is_killed_from_a_list_of_another_boot() -> None:
    own = procfs.find_stat(os.getpid())
    assert own is not None
    entry = RosterEntry("m#1", own.pid, own.pid, own.start_ticks, "another-boot", "t", 4801)
    assert choose_victims(entry, "this-boot", lambda _group: [own]) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"pid":"x"}]'])
def test_a_damaged_list_does_not_keep_the_server_down(tmp_path: Path, text: str) -> None:
    path = tmp_path / "engines.json"
    path.write_text(text)
    assert Roster(path).sweep() == []


async def test_the_list_names_every_running_engine(make_scheduler: Any, tmp_path: Path) -> None:
    scheduler = make_scheduler(fake("one"), fake("two"))
    await asyncio.gather(take(scheduler, "one"), take(scheduler, "two"))
    listed = json.loads((tmp_path / "data" / "run" / "engines.json").read_text())
    cards = await scheduler.list_instances()
    assert {entry["pid"] for entry in listed} == {card.pid for card in cards}
    assert all(procfs.find_stat(entry["pid"]).start_ticks == entry["start_ticks"] for entry in listed)
    await scheduler.shutdown(0.0)
    await until(lambda: json.loads((tmp_path / "data" / "run" / "engines.json").read_text()) == [])


def test_exec_refuses_when_its_parent_is_already_gone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stentor.engines.exec", "1", "--", "true"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 143
    assert "parent 1 is gone" in done.stderr


def test_exec_names_a_program_that_is_not_there() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stentor.engines.exec", str(os.getpid()), "--", "/no/such/program"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 127
    assert done.stderr.strip() == "error: cannot run /no/such/program: No such file or directory"


def test_exec_scrubs_engine_settings_and_leads_a_group() -> None:
    program = "import os; print(os.getpgrp() == os.getpid(), 'LLAMA_ARG_PORT' in os.environ)"
    done = subprocess.run(
        [sys.executable, "-m", "stentor.engines.exec", str(os.getpid()), "--", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "LLAMA_ARG_PORT": "1"},
        timeout=60,
    )
    assert done.stdout.split() == ["True", "False"]
