"""Fetching from a hub on loopback that can be as bad as a real one."""

import asyncio
import hashlib
import os
import random
import shutil
from pathlib import Path

import pytest

from stentor.runtime.hub import HubSettings, choose_environment
from stentor.runtime.sources import FetchError, Sources
from tests.hub import running_hub

REPO = "org/Tiny-GGUF"
SOURCE = f"hf:{REPO}:Q4_0"
HTML = "<!doctype html><html><body>Sign in to the network</body></html>"


def gguf(size_bytes: int = 300_000, seed: int = 1) -> bytes:
    return b"GGUF" + random.Random(seed).randbytes(size_bytes - 4)


DATA = gguf()


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture
def fetch(hub, tmp_path):
    """A function that fetches with quick retries; each call is a server of its own, on the same cache."""

    def sources(token="", **settings) -> Sources:
        quick = {"stall_s": 0.5, "tries": 4, "backoff_first_s": 0.02, **settings}
        return Sources(tmp_path / "cache", os.environ, hub=HubSettings(endpoint=hub.url, token=token or None, **quick))

    async def run(source=SOURCE, progress=None, token="", **settings) -> Path:
        async with asyncio.timeout(60):
            return await sources(token, **settings).fetch(source, progress)

    run.sources = sources
    return run


def kept(tmp_path) -> list[str]:
    root = tmp_path / "cache" / "hf"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_a_model_comes_with_its_projector_at_a_recorded_commit(hub, fetch, tmp_path):
    files = {
        "Tiny-Q4_0.gguf": DATA,
        "Tiny-Q8_0.gguf": gguf(1000),
        "mmproj-Tiny-f16.gguf": gguf(5000, 2),
        "mmproj-Tiny-f32.gguf": gguf(9000, 3),
        "README.md": b"# Tiny",
    }
    commit = hub.add(REPO, files).commits[0][0]
    seen = []
    path = await fetch(progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "cache" / "hf" / "org--Tiny-GGUF" / commit / "Tiny-Q4_0.gguf"
    assert path.read_bytes() == DATA
    total = len(DATA) + 5000
    assert seen[0] == (0, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    sources = fetch.sources()
    assert sources.find(SOURCE) == path
    assert path.with_name("mmproj-Tiny-f16.gguf").is_file()
    (snapshot,) = sources.snapshots.list_all()
    assert (snapshot.commit, snapshot.quant, snapshot.size_bytes) == (commit, "Q4_0", total)
    before = len(hub.calls)
    assert await fetch() == path
    assert len(hub.calls) == before


async def test_all_shards_come_and_the_first_is_the_model(hub, fetch):
    shards = {f"big/Big-Q4_K_M-0000{number}-of-00003.gguf": gguf(2000, number) for number in (1, 2, 3)}
    hub.add(REPO, {**shards, "big/Big-Q4_K_S-00001-of-00002.gguf": gguf(10)})
    path = await fetch(f"hf:{REPO}")
    assert path.name == "Big-Q4_K_M-00001-of-00003.gguf"
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == {
        name.rpartition("/")[2]: data for name, data in shards.items()
    }
    with pytest.raises(FetchError.__mro__[1], match="lists 1 of the 2 parts"):
        await fetch(f"hf:{REPO}:Q4_K_S")


async def test_a_missing_quantization_is_answered_with_those_there(hub, fetch):
    hub.add(REPO, {"t-Q8_0.gguf": DATA, "t-Q4_K_M.gguf": DATA, "t.gguf.txt": b""})
    with pytest.raises(Exception, match=r"has no 'Q4_K'. It has: Q4_K_M, Q8_0."):
        await fetch(f"hf:{REPO}:Q4_K")


async def test_a_file_is_taken_by_its_name_and_a_small_one_is_checked_by_its_git_name(hub, fetch):
    hub.add(REPO, {}).commit({"a.gguf": gguf(500, 1), "b.gguf": gguf(500, 2)}, plain=("b.gguf",))
    assert (await fetch(f"hf:{REPO}#b.gguf")).read_bytes() == gguf(500, 2)
    with pytest.raises(
        Exception, match=r"more than one such model: a.gguf, b.gguf. Name one as hf:org/Tiny-GGUF#a.gguf"
    ):
        await fetch(f"hf:{REPO}")


@pytest.mark.parametrize(
    "mishap",
    [
        {"cut": 100_000},
        {"stall": 100_000, "seconds": 2.0},
        {"status": 503},
        {"status": 429, "headers": {"Retry-After": "1"}},
        {"status": 500},
    ],
    ids=lambda mishap: next(iter(mishap)) + str(mishap.get("status", "")),
)
async def test_what_passes_is_tried_again_and_gone_on_with(hub, fetch, mishap):
    hub.add(REPO, {"t-Q4_0.gguf": DATA})
    hub.mishaps += [mishap, dict(mishap)]
    assert (await fetch()).read_bytes() == DATA
    assert hub.served[REPO] == len(DATA), "bytes came twice"
    if "status" not in mishap:
        assert hub.ranges() == ["", "bytes=100000-", "bytes=200000-"]


async def test_a_hub_that_ignores_ranges_is_fetched_from_the_start(hub, fetch):
    hub.add(REPO, {"t-Q4_0.gguf": DATA})
    hub.mishaps += [{"cut": 100_000}, {"ignore_range": True}]
    assert (await fetch()).read_bytes() == DATA


async def test_giving_up_keeps_what_came_and_the_next_goes_on(hub, fetch):
    hub.add(REPO, {"t-Q4_0.gguf": DATA})
    hub.mishaps += [{"cut": 200_000}, *[{"status": 502}] * 9]
    with pytest.raises(FetchError, match=r"doesn't answer properly \(status 502\). What was fetched is kept"):
        await fetch()
    hub.mishaps.clear()
    assert (await fetch()).read_bytes() == DATA
    assert hub.ranges()[-1] == "bytes=200000-"


@pytest.mark.parametrize("where", ["file", "api"])
async def test_a_page_in_place_of_the_hub_is_told_from_it(hub, fetch, tmp_path, where):
    hub.add(REPO, {"t-Q4_0.gguf": DATA})
    (hub.mishaps if where == "file" else hub.api_mishaps).append({"html": HTML})
    with pytest.raises(FetchError, match=r"isn't the hub.*sign-in page"):
        await fetch()
    assert not any(path.endswith(".gguf") for path in kept(tmp_path))
    assert (await fetch()).read_bytes() == DATA


async def test_a_page_under_a_harmless_type_does_not_spoil_what_came(hub, fetch):
    hub.add(REPO, {"t-Q4_0.gguf": DATA})
    page = "x" * (len(DATA))
    hub.mishaps += [{"cut": 150_000}, {"html": HTML, "type": "application/octet-stream"}]
    with pytest.raises(FetchError, match="came with 63 bytes in place of 300000"):
        await fetch()
    hub.mishaps += [{"html": page, "type": "application/octet-stream"}]
    with pytest.raises(FetchError, match="which is no GGUF file"):
        await fetch()
    assert (await fetch()).read_bytes() == DATA


async def test_what_was_damaged_on_the_way_is_fetched_once_more(hub, fetch):
    hub.add(REPO, {"t-Q4_0.gguf": DATA})
    hub.mishaps.append({"corrupt": True})
    assert (await fetch()).read_bytes() == DATA


async def test_a_wrong_checksum_twice_is_an_error_and_keeps_nothing(hub, fetch, tmp_path):
    hub.add(REPO, {"t-Q4_0.gguf": DATA})
    hub.mishaps += [{"corrupt": True}, {"corrupt": True}]
    with pytest.raises(FetchError, match="another checksum than the hub lists, twice"):
        await fetch()
    assert [path.stat().st_size for path in (tmp_path / "cache").rglob("sha256-*")] == [0]
    assert fetch.sources().find(SOURCE) is None


async def test_a_part_that_lost_its_content_is_noticed(hub, fetch, tmp_path):
    hub.add(REPO, {"t-Q4_0.gguf": DATA})
    hub.mishaps += [{"cut": 200_000}, *[{"status": 502}] * 9]
    with pytest.raises(FetchError):
        await fetch()
    hub.mishaps.clear()
    (part,) = (tmp_path / "cache").rglob("sha256-*")
    part.write_bytes(b"\0" * 200_000)
    assert (await fetch()).read_bytes() == DATA


@pytest.mark.parametrize(
    ("options", "token", "words"),
    [
        ({"gated": True}, "", "is gated: its owner must let you in.*HF_TOKEN"),
        (
            {"gated": True},
            "hf_other",
            "is gated: its owner must let you in. Accept its terms on the hub's page of it.$",
        ),
        ({"private": True}, "", "has no repository org/Tiny-GGUF, or it is private.*HF_TOKEN"),
    ],
)
async def test_a_closed_repository_is_explained(hub, fetch, options, token, words):
    hub.add(REPO, {"t-Q4_0.gguf": DATA}, **options)
    with pytest.raises(FetchError, match=words):
        await fetch(token=token)
    assert (await fetch(token="hf_right")).read_bytes() == DATA


async def test_the_token_stays_with_the_hub(hub, fetch, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_implicit")
    home = tmp_path / "home" / ".cache" / "huggingface"
    home.mkdir(parents=True)
    (home / "token").write_text("hf_implicit")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    hub.add(REPO, {"t-Q4_0.gguf": DATA})
    await fetch()
    assert {headers.get("authorization") for _, _, headers in hub.calls} == {None}
    hub.calls.clear()
    await fetch("hf:org/Tiny-GGUF@main:Q4_0", token="hf_right")
    by_host = {(headers["host"].partition(":")[0], headers.get("authorization")) for _, _, headers in hub.calls}
    assert by_host <= {("127.0.0.1", "Bearer hf_right"), ("localhost", None)}


def test_the_hubs_library_reports_to_nobody(tmp_path):
    environ = {"HF_TOKEN": "x", "HUGGING_FACE_HUB_TOKEN": "x", "STENTOR_HF_TOKEN": "x", "https_proxy": "http://p:1"}
    made = choose_environment(HubSettings(), environ, tmp_path)
    assert "x" not in made.values()
    assert made["https_proxy"] == "http://p:1"
    assert {made[name] for name in made if "DISABLE" in name} == {"1"}
    assert {"HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_IMPLICIT_TOKEN"} <= set(made)
    assert "HF_ENDPOINT" not in made


async def test_nobody_there_is_an_error_with_advice(fetch, hub):
    hub.close()
    with pytest.raises(FetchError, match=r"can't be reached \(org/Tiny-GGUF\).*HF_ENDPOINT"):
        await fetch(tries=2)


async def test_a_full_disk_is_known_before_the_download(hub, fetch, monkeypatch):
    hub.add(REPO, {"t-Q4_0.gguf": DATA})
    full = shutil.disk_usage("/")._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: full)
    with pytest.raises(FetchError, match="disk is too full"):
        await fetch()
    assert not hub.ranges()


async def test_a_new_revision_comes_beside_the_old_and_shares_what_is_the_same(hub, fetch, tmp_path):
    files = {"t-Q4_0.gguf": DATA, "mmproj-f16.gguf": gguf(5000, 9)}
    repo = hub.add(REPO, files)
    old = await fetch()
    fresh = gguf(310_000, 7)
    repo.commit({**files, "t-Q4_0.gguf": fresh})
    sources = fetch.sources()
    before = sources.snapshots.list_all()[0]
    hub.served.clear()
    new = await sources.update(SOURCE)
    assert (new.read_bytes(), old.read_bytes()) == (fresh, DATA)
    assert hub.served[REPO] == len(fresh)
    assert sources.find(SOURCE) == new
    assert sources.snapshots.clean_old(before) == len(DATA)
    assert not old.exists()
    assert new.with_name("mmproj-f16.gguf").read_bytes() == files["mmproj-f16.gguf"]
    sources.remove(SOURCE)
    assert kept(tmp_path) == []


async def test_a_pinned_revision_stays(hub, fetch):
    repo = hub.add(REPO, {"t-Q4_0.gguf": DATA})
    repo.commit({"t-Q4_0.gguf": gguf(400, 5)})
    path = await fetch(f"hf:{REPO}@{repo.commits[0][0]}:Q4_0")
    assert path.read_bytes() == DATA
    with pytest.raises(FetchError, match="no such revision"):
        await fetch(f"hf:{REPO}@nowhere:Q4_0")


async def test_a_cancelled_fetch_ends_at_once_and_is_gone_on_with(hub, fetch, tmp_path):
    hub.add(REPO, {"t-Q4_0.gguf": DATA})
    hub.most = 30_000
    seen = asyncio.Event()
    task = asyncio.create_task(fetch(progress=lambda done, _total: seen.set() if done > 20_000 else None))
    await asyncio.wait_for(seen.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    (part,) = (tmp_path / "cache").rglob("sha256-*")
    assert 20_000 <= part.stat().st_size < len(DATA)
    hub.most = None
    assert hashlib.sha256((await fetch()).read_bytes()).digest() == hashlib.sha256(DATA).digest()
    assert hub.ranges()[-1] != ""


async def test_a_second_process_is_told_that_the_first_is_at_it(hub, fetch):
    hub.add(REPO, {"t-Q4_0.gguf": DATA})
    hub.slow = 5_000
    seen = asyncio.Event()
    task = asyncio.create_task(fetch(progress=lambda done, _total: seen.set() if done > 2_000 else None))
    await asyncio.wait_for(seen.wait(), 60)
    with pytest.raises(FetchError, match="is being fetched by another process"):
        await fetch()
    hub.slow = 0
    assert (await task).read_bytes() == DATA


async def test_search_finds_page_by_page(hub, fetch):
    for number in range(5):
        hub.add(f"org/Qwen-{number}-GGUF", {}, downloads=number)
    hub.add("org/other", {})
    client = fetch.sources().hub
    hub.api_mishaps.append({"status": 503})
    first = await client.search("qwen", 3)
    assert [repo.repo for repo in first.repos] == ["org/Qwen-4-GGUF", "org/Qwen-3-GGUF", "org/Qwen-2-GGUF"]
    assert first.repos[0].downloads == 4
    second = await client.search("qwen", 3, first.cursor)
    assert [repo.repo for repo in second.repos] == ["org/Qwen-1-GGUF", "org/Qwen-0-GGUF"]
    assert second.cursor == ""


@pytest.mark.parametrize("path", ["../out-Q4_0.gguf", "/abs-Q4_0.gguf", "a\\b-Q4_0.gguf"])
async def test_a_repository_that_lists_unsafe_paths_is_refused(hub, fetch, tmp_path, path):
    hub.add(REPO, {path: DATA})
    with pytest.raises(FetchError, match="unsafe path"):
        await fetch()
    assert not list(tmp_path.rglob("*.gguf"))
    assert not hub.ranges()


async def test_a_projector_of_another_folder_is_put_beside_its_model(hub, fetch, tmp_path):
    hub.add(REPO, {"q/t-Q4_0.gguf": DATA, "mmproj-f16.gguf": gguf(700, 4)})
    path = await fetch()
    assert (path.parent / "mmproj-f16.gguf").read_bytes() == gguf(700, 4)
    sources = fetch.sources()
    assert sources.find(SOURCE) == path
    sources.remove(SOURCE)
    assert kept(tmp_path) == []
