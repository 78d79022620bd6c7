"""A hub that lies: answers without end, sizes that can't be, addresses that are nobody's business."""

import asyncio
import gzip
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from stentor.core.errors import StentorError
from stentor.engines.hub_attempts import Problem
from stentor.engines.hub_doors import Doors
from stentor.runtime.hub import HubSettings
from stentor.runtime.sources import FetchError, Sources
from tests.hub import running_hub

REPO = "org/Tiny-GGUF"
DATA = b"GGUF" + bytes(5000)
METADATA = "http://169.254.169.254/latest/meta-data/"


@pytest.fixture
def hub():
    with running_hub() as hub:
        hub.add(REPO, {"t-Q4_0.gguf": DATA})
        yield hub


@pytest.fixture
def sources(hub, tmp_path) -> Sources:
    settings = HubSettings(endpoint=hub.url, stall_s=5.0, tries=2, backoff_first_s=0.02)
    return Sources(tmp_path / "cache", os.environ, hub=settings)


async def fetch(sources: Sources, source: str = f"hf:{REPO}") -> Path:
    async with asyncio.timeout(60):
        return await sources.fetch(source)


def revision(**fields: Any) -> dict[str, Any]:
    return {"json": {"id": REPO, "sha": "a" * 40, "gated": False, **fields}}


def tree(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"json": [{"type": "file", "oid": "e" * 40, "size": 1, **row} for row in rows]}


LIES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "an answer without end": ([{"endless": b" "}], "over 16777216 bytes"),
    "a packed answer": ([{"json": {}, "headers": {"Content-Encoding": "gzip"}}], "packed"),
    "a commit with a way out": ([revision(sha="../../x")], "no commit"),
    "a commit as long as a book": ([revision(sha="a" * 5000)], "no commit"),
    "no list of files": ([revision(), {"json": {"path": "x"}}], "no GGUF model"),
    "a size beyond all disks": ([revision(), tree({"path": "m.gguf", "size": 10**30})], "over .* bytes"),
    "a path as long as a book": ([revision(), tree({"path": "x" * 9000 + ".gguf"})], "9005 characters"),
    "a next page elsewhere": (
        [revision(), {"json": [], "headers": {"Link": '<http://169.254.169.254/x>; rel="next"'}}], "another host",
    ),
    "a redirect to the clouds' metadata": ([{"to": METADATA}], r"169\.254\.169\.254 \(link-local"),
    "a nested answer": ([{"html": "[" * 100_000, "type": "application/json"}], "where JSON was asked for"),
}  # fmt: skip


@pytest.mark.parametrize(("mishaps", "words"), LIES.values(), ids=LIES)
async def test_a_lie_is_said_to_be_one_and_leaves_nothing(hub, sources, tmp_path, mishaps, words) -> None:
    hub.api_mishaps += mishaps
    with pytest.raises(StentorError, match=words):
        await fetch(sources)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


@pytest.mark.parametrize(
    ("mishap", "words"),
    [({"to": METADATA}, "isn't public"), ({"status": 404, "headers": {"Content-Encoding": "gzip"}}, "packed"),
     ({"endless": b"GGUF"}, "longer than the 5004 bytes")],
)  # fmt: skip
async def test_a_files_own_lie_is_said_to_be_one(hub, sources, mishap, words) -> None:
    hub.mishaps.append(mishap)
    with pytest.raises(FetchError, match=words):
        await fetch(sources)
    assert (await fetch(sources)).read_bytes() == DATA


async def test_an_answer_is_never_unpacked(hub, sources) -> None:
    """A bomb would be: these bytes are a gigabyte of text once somebody unpacks them."""
    bomb = gzip.compress(gzip.compress(b" " * (1 << 24)))
    hub.api_mishaps.append({"json": json.loads(json.dumps({"x": len(bomb)})), "headers": {"Content-Encoding": "gzip"}})
    with pytest.raises(FetchError, match="packed"):
        await fetch(sources)


async def test_two_files_of_the_same_content_are_both_there(hub, sources) -> None:
    hub.add("org/Folder", {"config.json": b"{}", "sub/config.json": b"{}", "model.bin": b"weights"})
    folder = await fetch(sources, "hf:org/Folder#*")
    assert (folder / "config.json").read_bytes() == (folder / "sub" / "config.json").read_bytes() == b"{}"
    assert (folder / "model.bin").read_bytes() == b"weights"


# -- which addresses are connected to


def doors(endpoint: str, names: dict[str, list[str]], allow: tuple[str, ...] = (), **environ: str) -> Doors:
    def resolve(host: Any, port: Any, *_rest: Any, **_more: Any) -> list[Any]:
        text = host.decode() if isinstance(host, bytes) else host
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in names.get(text, [text])]

    return Doors(endpoint, allow, environ, resolve)


def found(its: Doors, host: str | bytes) -> list[str]:
    return [each[4][0] for each in its.resolve(host, 443)]


NAMES = {
    "hub.example": ["8.8.8.8"], "cdn.example": ["1.1.1.1"], "inside.example": ["10.0.0.7"],
    "lan.example": ["192.168.1.5"],
    "both.example": ["127.0.0.1", "1.1.1.1"], "clouds.example": ["169.254.169.254"], "proxy.example": ["10.0.0.8"],
}  # fmt: skip


def test_a_public_hub_sends_to_public_addresses_alone() -> None:
    its = doors("https://hub.example", NAMES)
    assert found(its, "hub.example") == ["8.8.8.8"]
    assert found(its, b"cdn.example") == found(its, "cdn.example") == ["1.1.1.1"]
    assert found(its, "both.example") == ["1.1.1.1"]
    for host in ("inside.example", "clouds.example", "127.0.0.1", "::1", "10.1.1.1", "0.0.0.0", "::ffff:10.0.0.1"):
        with pytest.raises(Problem, match=host.split(".")[0]) as refused:
            its.resolve(host, 80)
        assert refused.value.kind == "elsewhere"


def test_what_the_operator_allows_may_be_reached() -> None:
    its = doors("https://hub.example", NAMES, ("inside.example", "192.168.0.0/16"), HTTPS_PROXY="proxy.example:3128")
    for host, address in (
        ("inside.example", "10.0.0.7"),
        ("lan.example", "192.168.1.5"),
        ("proxy.example", "10.0.0.8"),
    ):
        assert found(its, host) == [address]
    with pytest.raises(Problem):
        its.resolve("clouds.example", 80)


def test_a_hub_in_the_house_sends_within_the_house() -> None:
    its = doors("http://lan.example:8080", NAMES)
    with pytest.raises(Problem):
        its.resolve("inside.example", 80)  # nobody knows yet where the hub is
    assert found(its, "lan.example") == ["192.168.1.5"]
    assert found(its, "inside.example") == ["10.0.0.7"]
    with pytest.raises(Problem):
        its.resolve("clouds.example", 80)
