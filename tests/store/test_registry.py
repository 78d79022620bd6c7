"""The registry with a source: fetched, kept, stale while the source is down, versions for ever."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from stentor.app.ring import _fetch
from stentor.core.errors import Refused, StentorError
from stentor.egress.outbound import Outbound
from stentor.egress.settings import EgressSettings
from stentor.registry.registry import Registry
from stentor.registry.settings import RegistrySettings
from stentor.store.database import Database
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings
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

    def start(self, url: str) -> Registry:
        async def fetch(target: str) -> bytes:
            return await _fetch(self.outbound, target)

        async def list_own() -> dict[str, dict[str, Any]]:
            return {"stentor:own": {"provider": "stentor", "model_name": "own"}}

        settings = RegistrySettings(base_url=url, ttl_s=60)
        return Registry(self.database, settings, fetch if url else None, list_own, self.clock, self.log)


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
