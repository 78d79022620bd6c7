"""How long the gateway waits: for clients that stop reading or sending, and for engines that fall silent.

The gateway runs in the test's own process, so that its patience can be shortened.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from stentor.accounting.settings import AccountingSettings
from stentor.accounting.usage import UsageEvent, UsageFilter
from stentor.app import gateway as app_gateway
from stentor.app.gateway import GatewayParts
from stentor.audit.log import Actor
from stentor.control.books import LocalBooks
from stentor.control.management import Management
from stentor.control.nodes.shared import start_books
from stentor.control.wanted import KeyAsk, UserAsk
from stentor.control.workers.workers import bind, start_listening
from stentor.core.clock import SystemClock
from stentor.core.errors import Refused
from stentor.core.ids import InstanceId, KeyId, ModelId
from stentor.core.operator import OperatorAnswer, OperatorCall
from stentor.core.scheduler import InstanceCard, ModelCard
from stentor.egress.engines import EngineSettings
from stentor.flows import attempt as attempt_module
from stentor.http import connection as connection_module
from stentor.http.connection import Connection
from stentor.http.gateway import HttpSettings
from stentor.http.server import HttpServer
from stentor.http.surface import SURFACE
from stentor.runtime.place import Place
from stentor.runtime.spec import ServedModel
from stentor.store.database import Database
from stentor.store.settings import StoreSettings
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings
from stentor.telemetry.trace import NoTracer
from stentor.vault.keyring import Keyring
from stentor.vault.settings import VaultSettings
from tests.http.harness import CHAT, chat_body, price, raw_request
from tests.scripted_engine import EngineProcess, script

TESTER = Actor("tester", "cli")
ONE_MB = 1_000_000


class OneEngine:
    """Places without end on one scripted engine; and its catalogue, which nobody asks here."""

    def __init__(self, engine: EngineProcess) -> None:
        self.kind = "command"
        self.place = Place(InstanceId("one"), 1, engine.url, "", 0)
        self.taken = 0
        self.suspects = 0

    def resolve(self, name: str, allowed: frozenset[str]) -> ServedModel:
        return ServedModel(ModelId("scripted"), (), ("text",), 8192, self.kind, "scripted", 0)

    def try_acquire(self, model: ModelId, prefix_key: int) -> Place | None:
        self.taken += 1
        return self.place

    async def acquire(self, model: ModelId, *, key_id: KeyId, prefix_key: int, timeout_s: float | None) -> Place:
        raise AssertionError("there is always a place")

    def release(self, place_instance: InstanceId, generation: int, *, suspect: bool) -> None:
        self.taken -= 1
        self.suspects += suspect

    async def list_models(self) -> list[ModelCard]:
        return []

    async def find_model(self, name: str) -> ModelCard | None:
        return None

    async def list_instances(self) -> list[InstanceCard]:
        return []

    async def start(self, model: ModelId, instances: int = 1) -> None: ...

    async def stop(self, model: ModelId) -> None: ...


class Here:
    """A gateway in this process."""

    def __init__(self, parts: GatewayParts, books: LocalBooks, places: OneEngine, management: Management) -> None:
        self.parts = parts
        self.books = books
        self.places = places
        self.management = management
        self.port = 0
        self.key = ""

    def request(self, body: Any, path: str = CHAT, **headers: str) -> bytes:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        known = {"Host": "localhost", "Authorization": f"Bearer {self.key}", "Content-Length": str(len(data))}
        return raw_request("POST", path, {**known, **headers}, data)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**16)

    async def ask(self, body: Any) -> bytes:
        """Everything that comes back until the end of the connection."""
        reader, writer = await self.connect()
        writer.write(self.request(body, Connection="close"))
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def events(self, count: int = 1) -> list[UsageEvent]:
        """The usage events, once there are ``count``."""
        async with asyncio.timeout(30):
            while len(events := (await self.management.list_usage(UsageFilter())).events) < count:
                await asyncio.sleep(0.01)
        assert len(events) == count
        return sorted(events, key=lambda event: event.attempt)

    async def at_rest(self) -> None:
        async with asyncio.timeout(30):
            while self.books.running() or self.places.taken or len(self.parts.calls):
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    with EngineProcess() as process:
        yield process


async def no_handler(connection: Connection, principal: Any, params: Any) -> None:
    raise AssertionError("not part of these tests")


async def no_metrics() -> bytes:
    return b""


async def no_operations(call: OperatorCall) -> OperatorAnswer:
    raise AssertionError("not part of these tests")


class Nobody:
    """Nobody is signed in."""

    async def find_session(self, digest: bytes, kind: str) -> None:
        return None


@pytest.fixture
def stall_s() -> float:
    """For how long an engine may be silent: longer than any machine stands still, but where a test says otherwise."""
    return 60.0


@pytest.fixture
async def here(
    tmp_path: Path, engine: EngineProcess, monkeypatch: pytest.MonkeyPatch, stall_s: float
) -> AsyncIterator[Here]:
    monkeypatch.setattr(app_gateway, "EngineSettings", lambda: EngineSettings(stall_s=stall_s))
    clock, log = SystemClock(), Log(TelemetrySettings(log_level="ERROR"))
    database = Database.open(StoreSettings(data_dir=tmp_path / "data", durability="process", busy_timeout_s=0.2))
    vault = VaultSettings(key_file=tmp_path / "data" / "master.key")
    keyring = await database.write(lambda connection: Keyring.open(connection, vault, clock.now_us()))
    places = OneEngine(engine)
    books = await start_books(database, places, AccountingSettings(), clock)
    management = Management(database, books, keyring, clock)
    parts = GatewayParts(HttpSettings(), books, places, keyring.pepper(), NoTracer(), log)
    handlers = {route.handler: no_handler for route in SURFACE if route.managed}
    server = HttpServer(parts.app(handlers, no_metrics, no_operations, Nobody()))
    sock = start_listening(bind("127.0.0.1", 0, shared=False))
    here = Here(parts, books, places, management)
    here.port = sock.getsockname()[1]
    await server.begin(sock)
    await management.add_user(TESTER, UserAsk("ann", tier="admin"))
    here.key = (await management.add_key(TESTER, KeyAsk("ann"))).key
    yield here
    await here.at_rest()
    await server.end()
    await parts.close()
    management.close()
    database.close()
    log.close()


async def test_a_client_that_stops_reading_has_left(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CLIENT_STALL_S", 0.4)
    reader, writer = await here.connect()
    writer.write(here.request(chat_body(script(*[{"huge": ONE_MB}] * 60), stream=True)))
    await reader.readline()
    started = asyncio.get_running_loop().time()
    (event,) = await here.events()
    assert 0.3 < asyncio.get_running_loop().time() - started < 25
    assert (event.status, event.reason) == ("cancelled", "client_stalled")
    assert event.input_tokens > 0
    assert event.output_tokens > 0
    await here.at_rest()
    writer.transport.abort()


async def test_a_client_that_reads_slowly_has_not_left(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CLIENT_STALL_S", 2.0)
    reader, writer = await here.connect()
    writer.write(here.request(chat_body(script(*[{"huge": ONE_MB}] * 12), stream=True), Connection="close"))
    size, begun_s = 0, time.monotonic()
    while data := await reader.read(400_000):
        size += len(data)
        await asyncio.sleep(0.05 if time.monotonic() - begun_s < 2.2 else 0.0)
    assert size > 12 * ONE_MB
    (event,) = await here.events()
    assert event.status == "completed"
    writer.close()


async def test_silence_of_the_engine_is_not_the_clients_stall(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CLIENT_STALL_S", 0.15)
    answer = await here.ask(chat_body(script({"say": "a"}, {"sleep": 0.4}, {"say": "b"}), stream=True))
    assert b"data: [DONE]" in answer
    assert (await here.events())[0].status == "completed"


async def test_a_body_that_does_not_come_is_not_waited_for(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "BODY_TIMEOUT_S", 0.3)
    reader, writer = await here.connect()
    writer.write(here.request(b"", **{"Content-Length": "1000"}) + b'{"model"')
    status = await asyncio.wait_for(reader.readline(), 30)
    assert status.startswith(b"HTTP/1.1 400")
    writer.close()
    assert (await here.management.list_usage(UsageFilter())).events == []


@pytest.mark.parametrize("stall_s", [0.4])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("point", ["before_headers", "after_headers"])
async def test_an_engine_that_never_begins_is_hung(here: Here, point: str, stream: bool) -> None:
    answer = await here.ask(chat_body(script({"say": "x"}, at={point: "hang"}), stream=stream))
    assert answer.startswith(b"HTTP/1.1 502")
    assert b"it was silent for" in answer
    events = await here.events(2)
    assert {(event.status, event.cost_nano, event.billable) for event in events} == {("failed", 0, False)}
    assert here.places.suspects == 2


@pytest.mark.parametrize("stall_s", [1.5])
async def test_an_engine_that_falls_silent_is_hung(here: Here) -> None:
    answer = await here.ask(chat_body(script({"say": "so far"}, {"hang": True}), stream=True))
    assert b"engine_failed" in answer
    assert b"[DONE]" not in answer
    (event,) = await here.events()
    assert (event.status, event.reason, event.cost_nano) == ("failed", "engine_broke_off", price(0, 2))
    assert here.places.suspects == 1


@pytest.mark.parametrize("stall_s", [1.7])
async def test_an_engine_that_speaks_now_and_then_is_not_hung(here: Here) -> None:
    steps = [{"say": "a"}, {"sleep": 0.2}] * 10
    assert b"[DONE]" in await here.ask(chat_body(script(*steps), stream=True))
    (event,) = await here.events()
    assert event.status == "completed"


@pytest.mark.parametrize("stall_s", [1.5])
async def test_a_reader_that_is_behind_is_not_the_engines_fault(here: Here) -> None:
    """The engine could go on, but isn't read, since the client isn't reading."""
    reader, writer = await here.connect()
    writer.write(here.request(chat_body(script(*[{"huge": ONE_MB}] * 20), stream=True), Connection="close"))
    await reader.readline()
    await asyncio.sleep(2.0)
    assert b"[DONE]" in (await reader.read())[-200:]
    (event,) = await here.events()
    assert event.status == "completed"
    writer.close()


async def test_books_that_do_not_answer_are_not_waited_for(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_module, "SETTLE_TIMEOUT_S", 0.3)
    close, waiting = here.books.close, asyncio.Event()

    async def slow(end: Any) -> Any:
        await waiting.wait()
        return await close(end)

    monkeypatch.setattr(here.books, "close", slow)
    streamed = await here.ask(chat_body(script({"say": "x"}), stream=True))
    assert b"store_unavailable" in streamed
    assert b"[DONE]" not in streamed
    whole = await here.ask(chat_body(script({"say": "x"})))
    assert whole.startswith(b"HTTP/1.1 503")
    monkeypatch.undo()
    for ident, running in list(here.books._running.items()):
        await here.books.close(attempt_module.Close(*ident, "failed", attempt_module.Usage(), billable=False))
        assert running.place is not None


async def test_a_defect_leaves_no_place_taken(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(attempt_module, "FrameSplitter", broken)
    answer = await here.ask(chat_body(script({"say": "x"}), stream=True))
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"internal_error" in answer
    (event,) = await here.events()
    assert (event.status, event.reason, event.cost_nano) == ("failed", "internal_error", 0)
    await here.at_rest()


async def test_leaving_while_a_failed_attempt_is_booked_starts_no_other(
    here: Here, engine: EngineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    close, closing = here.books.close, asyncio.Event()
    before = len(engine.log())

    async def slow(end: Any) -> Any:
        closing.set()
        await asyncio.sleep(0.3)
        return await close(end)

    monkeypatch.setattr(here.books, "close", slow)
    _, writer = await here.connect()
    writer.write(here.request(chat_body(script(status=500))))
    await closing.wait()
    writer.transport.abort()
    await here.at_rest()
    assert len(engine.log()) == before + 1
    (event,) = await here.events()
    assert (event.status, event.cost_nano) == ("failed", 0)


async def test_a_drained_gateway_ends_what_runs_too_long(here: Here) -> None:
    reader, writer = await here.connect()
    text = script({"say": "so far"}, {"hang": True})
    writer.write(here.request(chat_body(text, stream=True), Connection="close"))
    begun = await reader.readuntil(b'"far"')
    await here.parts.drain(0.05)
    answer = begun + await reader.read()
    writer.close()
    assert b"server_shutdown" in answer
    assert b"[DONE]" not in answer
    (event,) = await here.events()
    assert (event.status, event.reason, event.cost_nano) == ("failed", "server_shutdown", price(0, 2))


async def test_a_lost_authority_lets_nothing_be_booked(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def lost(end: Any) -> Any:
        raise Refused("server_restarting", "The server is restarting.", retry_after_s=2.0)

    text = script({"say": "so far"}, {"until": str(tmp_path / "go")})
    asking = asyncio.create_task(here.ask(chat_body(text, stream=True)))
    while not here.places.taken:
        await asyncio.sleep(0.01)
    monkeypatch.setattr(here.books, "close", lost)
    (tmp_path / "go").touch()
    answer = await asking
    assert b"server_restarting" in answer
    assert b'"finish_reason":"stop"' not in answer
    assert b"[DONE]" not in answer
    monkeypatch.undo()
    here.books.abandon("")


def counted(number: int, text: str) -> dict[str, str]:
    """A frame of our own engine: with its count so far."""
    timings = {"cache_n": 2, "prompt_n": 9, "predicted_n": number}
    choice = {"finish_reason": None, "index": 0, "delta": {"content": text}}
    return {"raw": f"data: {json.dumps({'choices': [choice], 'timings': timings}, separators=(',', ':'))}\n\n"}


PROGRESS = {"raw": 'data: {"choices":[],"prompt_progress":{"total":11,"cache":2,"processed":11,"time_ms":1}}\n\n'}


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_of_ours_counts_for_one_who_leaves(here: Here, engine: EngineProcess, stream: bool) -> None:
    here.places.kind = "llama"
    before = len(engine.log())
    steps = [PROGRESS, counted(1, "a"), counted(3, "b c"), {"heard": True}, {"hang": True}]
    reader, writer = await here.connect()
    writer.write(here.request(chat_body(script(*steps), stream=stream)))
    if stream:
        relayed = await reader.readuntil(b"b c")
        assert b"timings" not in relayed
        assert b"prompt_progress" not in relayed
    else:
        async with asyncio.timeout(30):
            while not [entry for entry in (await asyncio.to_thread(engine.log))[before:] if entry["heard"]]:
                await asyncio.sleep(0.01)
    writer.close()
    (event,) = await here.events()
    assert (event.status, event.estimated) == ("cancelled", False)
    assert (event.input_tokens, event.cached_tokens, event.output_tokens) == (11, 2, 3)
    body = (await asyncio.to_thread(engine.wait_log, before))["body"]
    assert (body["timings_per_token"], body["return_progress"]) == (True, True)


async def test_leaving_what_is_free_costs_nothing(here: Here) -> None:
    """Whoever doesn't wait for a count pays no more for it than who does."""

    async def see_the_client_off(engine: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        client.transport.abort()
        await engine.read()
        answer.close()

    silent = await asyncio.start_server(see_the_client_off, "127.0.0.1", 0)
    async with silent:
        url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        here.places.place = Place(InstanceId("one"), 1, url, "", 0)
        _, client = await here.connect()
        client.write(here.request(chat_body("how many are these?"), path="/v1/messages/count_tokens"))
        (event,) = await here.events()
    assert (event.status, event.reason) == ("cancelled", "client_left")
    assert (event.cost_nano, event.billable) == (0, False)


async def test_an_engine_of_ours_that_breaks_off_counted_what_was_relayed(here: Here) -> None:
    here.places.kind = "llama"
    steps = [PROGRESS, counted(1, "a"), counted(3, "b c"), {"heard": True}, {"close": True}]
    assert b"engine_failed" in await here.ask(chat_body(script(*steps), stream=True))
    (event,) = await here.events()
    assert (event.status, event.estimated, event.input_tokens) == ("failed", False, 0)
    assert (event.output_tokens, event.cost_nano) == (3, price(0, 3))


@pytest.mark.parametrize("name", ["id_slot", "unknown_to_us"])
async def test_an_engine_of_ours_gets_known_fields_alone(here: Here, engine: EngineProcess, name: str) -> None:
    here.places.kind = "llama"
    before = len(engine.log())
    answer = await here.ask(chat_body("hello", **{name: 1}, top_k=5))
    if name == "id_slot":
        assert b"unsupported_parameter" in answer
        return
    assert answer.startswith(b"HTTP/1.1 200")
    body = (await asyncio.to_thread(engine.wait_log, before))["body"]
    assert name not in body
    assert body["top_k"] == 5
