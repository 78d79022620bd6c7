"""Uploads on the disk: theirs alone, bounded by what must stay free, gone at the end."""

import asyncio
import os
import stat
import threading
from pathlib import Path

import pytest

from stentor.core.errors import Refused
from stentor.http import spool as module
from stentor.http.spool import Spool, sweep


async def test_an_upload_is_its_owners_alone_and_gone_at_the_end(tmp_path: Path) -> None:
    async with Spool(tmp_path / "tmp").open() as upload:
        await upload.write(b"a" * 3_000_000)
        await upload.flush()
        assert upload.path.stat().st_size == 3_000_000
        assert stat.S_IMODE(upload.path.stat().st_mode) == 0o600
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_uploads_leave_room_for_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FREE_MIN_BYTES", 1 << 60)
    async with Spool(tmp_path).open() as upload:
        with pytest.raises(Refused) as refused:
            await upload.write(b"a" * (2 << 20))
        assert refused.value.code == "overloaded"
        assert upload.path.stat().st_size == 0
    assert list(tmp_path.iterdir()) == []


async def test_a_file_stays_open_as_long_as_a_thread_writes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is cancelled meanwhile closes nothing under its hands: the number might be the database's by then."""
    going, go_on = threading.Event(), threading.Event()

    def write(handle: int, data: bytes) -> bool:
        going.set()
        assert go_on.wait(60)
        return os.write(handle, data) == len(data)

    monkeypatch.setattr(module, "_write_all", write)

    async def receive() -> int:
        async with Spool(tmp_path).open() as upload:
            handles.append(upload._handle)
            await upload.write(b"a" * (2 << 20))
        return 0

    handles: list[int] = []
    receiving = asyncio.create_task(receive())
    await asyncio.to_thread(going.wait, 60)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert list(tmp_path.iterdir()) == []
    os.fstat(handles[0])
    go_on.set()
    async with asyncio.timeout(60):
        while _is_open(handles[0]):
            await asyncio.sleep(0.01)


def _is_open(handle: int) -> bool:
    try:
        os.fstat(handle)
    except OSError:
        return False
    return True


def test_what_a_killed_server_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / f"{module.PREFIX}x").write_bytes(b"a")
    (tmp_path / "other").write_bytes(b"b")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
