"""Uploads on the disk: theirs alone, bounded by what must stay free, gone at the end."""

import stat
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


def test_what_a_killed_server_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / f"{module.PREFIX}x").write_bytes(b"a")
    (tmp_path / "other").write_bytes(b"b")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
