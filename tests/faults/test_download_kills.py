"""A download that is killed at random moments is gone on with, and what comes out is what the hub has."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.hub import Hub, running_hub
from tests.serving import gone_within

KILLS = 20
SIZE = 6_000_000
PIECE = 50_000  # of what the hub sends at a time


def _start(folder: Path, hub: Hub) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "STENTOR_DATA_DIR": str(folder), "STENTOR_HF_ENDPOINT": hub.url}
    command = [sys.executable, "-m", "stentor", "models", "pull", "hf:org/Tiny-GGUF:Q8_0", "--json"]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _fetcher(process: subprocess.Popen[bytes]) -> psutil.Process | None:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return next((child for child in children if "stentor.engines.hub" in child.cmdline()), None)
    except psutil.Error:
        return None


def _kept(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("sha256-*"))


def _wait_for_bytes(process: subprocess.Popen[bytes], hub: Hub, more: int) -> None:
    before, end = hub.served.get("org/Tiny-GGUF", 0), time.monotonic() + 120
    while hub.served.get("org/Tiny-GGUF", 0) - before < more and process.poll() is None:
        assert time.monotonic() < end, "the download doesn't go on"
        time.sleep(0.005)


def test_a_download_killed_at_twenty_random_points_resumes_and_verifies(tmp_path: Path) -> None:
    seed = int(os.environ.get("STENTOR_TEST_SEED", "20261"))
    print(f"STENTOR_TEST_SEED={seed}")
    chance = random.Random(seed)
    files = {
        "t-Q8_0-00001-of-00002.gguf": b"GGUF" + chance.randbytes(SIZE // 2),
        "t-Q8_0-00002-of-00002.gguf": b"GGUF" + chance.randbytes(SIZE // 4),
        "mmproj-f16.gguf": b"GGUF" + chance.randbytes(SIZE // 4),
    }
    total = sum(map(len, files.values()))
    with running_hub() as hub:
        hub.add("org/Tiny-GGUF", files)
        hub.slow = 2_500_000
        kept = []
        most = total // KILLS - PIECE  # of each try, so that none is the last one, however slow the killer is
        for _ in range(KILLS):
            hub.most_in_all = hub.served.get("org/Tiny-GGUF", 0) + most
            process = _start(tmp_path, hub)
            # Zero bytes: somewhere between the start of the program and its first byte.
            _wait_for_bytes(process, hub, chance.choice([0, *[chance.randrange(most - PIECE) for _ in range(4)]]))
            time.sleep(chance.random() * 0.05)
            fetcher = _fetcher(process)
            if fetcher is not None and chance.random() < 0.3:
                fetcher.kill()
            process.send_signal(signal.SIGKILL)
            process.communicate()
            with gone_within(60, [] if fetcher is None else [fetcher]):
                """The download doesn't go on without its owner."""
            kept.append(_kept(tmp_path))
        assert kept == sorted(kept), "a restart lost bytes"
        assert not list(tmp_path.rglob("*.gguf")), "an unchecked file has its final name"
        hub.slow, hub.most_in_all = 0, None
        sent_in_vain = hub.served["org/Tiny-GGUF"] - kept[-1]
        process = _start(tmp_path, hub)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err.decode()
        answer = json.loads(out)
        folder = Path(answer["path"]).parent
        assert {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()} == {
            name: hashlib.sha256(data).digest() for name, data in files.items()
        }
        # What the hub sent beyond the model was under way when a process was killed; what was kept is not sent again.
        waste = hub.served["org/Tiny-GGUF"] - total
        print(f"{total} bytes, killed {KILLS} times, {kept[-1]} kept before the last run, {waste} bytes sent in vain")
        assert waste == sent_in_vain
        assert kept[-1] > 0
        assert _kept(tmp_path) == 0
