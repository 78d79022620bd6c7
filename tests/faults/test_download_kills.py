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

KILLS = 20
SIZE = 6_000_000


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


def _gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


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
        for _ in range(KILLS):
            process = _start(tmp_path, hub)
            # Zero bytes: somewhere between the start of the program and its first byte.
            _wait_for_bytes(process, hub, chance.choice([0, *[chance.randrange(total // KILLS) for _ in range(4)]]))
            time.sleep(chance.random() * 0.05)
            fetcher = _fetcher(process)
            if fetcher is not None and chance.random() < 0.3:
                fetcher.kill()
            process.send_signal(signal.SIGKILL)
            process.communicate()
            end = time.monotonic() + 60
            while fetcher is not None and not _gone(fetcher):
                assert time.monotonic() < end, "the download goes on without its owner"
                time.sleep(0.01)
            kept.append(_kept(tmp_path))
        assert kept == sorted(kept), "a restart lost bytes"
        assert not list(tmp_path.rglob("*.gguf")), "an unchecked file has its final name"
        hub.slow = 0
        process = _start(tmp_path, hub)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err.decode()
        answer = json.loads(out)
        folder = Path(answer["path"]).parent
        assert {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()} == {
            name: hashlib.sha256(data).digest() for name, data in files.items()
        }
        # What the hub sent beyond the model was under way when a process was killed, never fetched again.
        waste = hub.served["org/Tiny-GGUF"] - total
        print(f"{total} bytes, killed {KILLS} times, {kept[-1]} kept before the last run, {waste} bytes sent in vain")
        # Begun from zero each time it would be some 60 MB; what lies in sockets depends on who is slow.
        assert waste < KILLS * 1_000_000
        assert _kept(tmp_path) == 0
