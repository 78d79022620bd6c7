"""What the tests themselves promise: nothing outlives pytest, and what is shared is started once."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.serving import ROOT

STARTER = """
import subprocess, sys, threading, time
from tests.keeper import keep
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
started = []
thread = threading.Thread(target=lambda: started.append(keep(subprocess.Popen(sleeper))))
thread.start()
thread.join()
print(started[0].pid, flush=True)
time.sleep(600)
"""


def test_what_tests_started_ends_with_them_even_when_they_are_killed() -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER], cwd=ROOT, stdout=subprocess.PIPE)
    assert starter.stdout is not None
    sleeper = psutil.Process(int(starter.stdout.readline()))
    assert sleeper.is_running()
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait(60)
    starter.stdout.close()
    sleeper.wait(60)


@pytest.mark.xdist_group("one-worker")
@pytest.mark.parametrize("number", range(8))
def test_a_group_runs_on_one_worker(
    number: int, worker_id: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if getattr(request.config.option, "loadgroup", False):
        seen = tmp_path_factory.getbasetemp().parent / "one-worker"
        seen.mkdir(exist_ok=True)
        (seen / worker_id).touch()
        assert [path.name for path in seen.iterdir()] == [worker_id]
