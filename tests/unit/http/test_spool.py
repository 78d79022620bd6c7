"""Uploads that nobody removes any more: their worker was killed."""

import subprocess
import sys
from pathlib import Path

from stentor.http.spool import Spool, sweep_dead


async def test_what_a_killed_worker_left_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    leave = (
        "import asyncio, os, sys, pathlib; from stentor.http.spool import Spool\n"
        "async def go():\n"
        "    async with Spool(pathlib.Path(sys.argv[1])).open() as upload:\n"
        "        await upload.write(b'sound'); await upload.flush(); os._exit(9)\n"
        "asyncio.run(go())"
    )
    assert subprocess.run([sys.executable, "-c", leave, str(tmp_path)], check=False).returncode == 9
    async with Spool(tmp_path).open() as upload:
        assert len(list(tmp_path.iterdir())) == 2
        sweep_dead(tmp_path)
        assert list(tmp_path.iterdir()) == [upload.path]
    assert list(tmp_path.iterdir()) == []
