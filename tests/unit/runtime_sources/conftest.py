"""Tiny wheels in a folder that pip is told to take them from, and nowhere else."""

import os
import zipfile
from pathlib import Path

import pytest

from stentor.runtime.sources import Sources


class Shelf:
    """A folder of wheels, and the environment in which pip sees only that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            "PATH": os.defpath,
            "HOME": str(folder),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(folder),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
        }

    def add(self, package: str, version: str, members: dict[str, bytes | zipfile.ZipInfo]) -> Path:
        """A wheel with these members; pip wants its metadata, so that is there too."""
        stem = f"{package.replace('-', '_')}-{version}"
        path = self.folder / f"{stem}-py3-none-any.whl"
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
            archive.writestr(f"{stem}.dist-info/METADATA", metadata)
            archive.writestr(f"{stem}.dist-info/WHEEL", wheel)
            archive.writestr(f"{stem}.dist-info/RECORD", "")
        return path


@pytest.fixture
def shelf(tmp_path):
    folder = tmp_path / "shelf"
    folder.mkdir()
    return Shelf(folder)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def sources(shelf, cache):
    return Sources(cache, shelf.environ, stall_s=60.0)


@pytest.fixture
def leftovers(cache):
    """What lies in the cache beside models and their records."""

    def look() -> list[str]:
        return sorted(
            str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() or path.name.startswith(".pull")
        )

    return look
