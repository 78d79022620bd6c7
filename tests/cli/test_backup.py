"""Backups: made while requests run, without the master key, and restored on another machine."""

import json
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stentor.cli.root import run
from tests.serving import Server, scripted_model

Stentor = Callable[..., Any]


@pytest.fixture
def stentor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stentor:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, status: int = 0) -> Any:
        capsys.readouterr()
        assert run(list(arguments)) == status
        out, err = capsys.readouterr()
        return err if status else (json.loads(out), err)

    return call


def test_a_backup_of_a_busy_server_is_restored_elsewhere(stentor: Stentor, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    target = tmp_path / "kept.tar.gz"
    with Server(here, scripted_model(), "--admin-key", DURABILITY="process") as server:
        stop = threading.Event()
        answered: list[int] = []

        def ask() -> None:
            while not stop.is_set():
                answered.append(server.chat("hello").status)

        asking = threading.Thread(target=ask)
        asking.start()
        made, said = stentor("backup", str(target), "--json", "--data-dir", str(server.data_dir))
        stop.set()
        asking.join()
        assert set(answered) == {200}
        assert "exists already" in stentor("backup", str(target), "--data-dir", str(server.data_dir), status=1)
        assert "server" in stentor("restore", str(target), "--data-dir", str(server.data_dir), status=1)
        key, secret = server.key, (server.data_dir / "master.key").read_bytes()
        assert server.stop() == 0
    with tarfile.open(target) as archive:
        names = archive.getnames()
        whole = b"".join(archive.extractfile(name).read() for name in names)  # type: ignore[union-attr]
    assert names == ["manifest.json", "stentor.db"]
    assert secret.strip() not in whole
    assert key.encode() not in whole
    assert target.stat().st_mode & 0o077 == 0

    restored, said = stentor("restore", str(target), "--json", "--data-dir", str(there / "data"))
    assert restored["missing"] == made["master_key_ids"] != []
    assert "master key" in said
    shutil.copy(here / "data" / "master.key", there / "data" / "master.key")
    with Server(there, scripted_model(), DURABILITY="process") as server:
        server.key = key
        assert server.chat("hello").status == 200
        assert json.loads(server.cli("doctor", "--json"))
        assert server.stop() == 0
    assert "--replace" in stentor("restore", str(target), "--data-dir", str(there / "data"), status=1)
    again, _ = stentor("restore", str(target), "--replace", "--json", "--data-dir", str(there / "data"))
    assert Path(again["kept"]).exists()
    assert again["missing"] == []


@pytest.mark.parametrize("damage", ["nonsense", "cut", "other names", "a damaged database"])
def test_what_is_no_backup_restores_nothing(stentor: Stentor, tmp_path: Path, damage: str) -> None:
    data, target = tmp_path / "data", tmp_path / "b.tar.gz"
    stentor("users", "list", "--json", "--data-dir", str(data))
    stentor("backup", str(target), "--json", "--data-dir", str(data))
    before = (data / "stentor.db").read_bytes()
    whole = target.read_bytes()
    if damage == "nonsense":
        target.write_bytes(b"nonsense")
    elif damage == "cut":
        target.write_bytes(whole[: len(whole) // 2])
    else:
        with tarfile.open(target) as archive:
            archive.extractall(tmp_path / "parts", filter="data")
        database = tmp_path / "parts" / "stentor.db"
        if damage == "a damaged database":
            pages = bytearray(database.read_bytes())
            pages[4096:40960] = b"\xff" * (40960 - 4096)
            database.write_bytes(pages)
        with tarfile.open(target, "w:gz") as archive:
            archive.add(tmp_path / "parts" / "manifest.json", "manifest.json")
            archive.add(database, "../../escaped.db" if damage == "other names" else "stentor.db")
    assert "stentor:" in stentor("restore", str(target), "--replace", "--data-dir", str(data), status=1)
    assert (data / "stentor.db").read_bytes() == before
    assert not list(tmp_path.rglob("escaped.db"))
    assert not list(data.glob("*.before-restore-*"))
