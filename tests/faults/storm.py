"""A load of chat requests that remembers what each client was told, and the comparison with the books afterwards."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from stentor.app.authority import Authority
from stentor.audit.log import Actor
from stentor.control.wanted import KeyAsk, UserAsk
from stentor.core.ids import TierId
from stentor.people.values import Tier
from stentor.settings import Settings, load_settings
from stentor.store.database import Database
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings
from tests.faults.subject import Subject
from tests.scripted_engine import script

CLIENTS = 16
CONCURRENCY = 40  # of the prepaid user; what is left over is used to look for places that were never given back
TOP_UP_NANO = 2_000_000_000
NANO_PER_INPUT, NANO_PER_OUTPUT = 100, 200
# What a client may be told while something is being killed; anything else is a defect.
EXCUSES = {
    "engine_failed",
    "model_unavailable",
    "server_restarting",
    "server_shutdown",
    "server_starting",
    "store_unavailable",
}


class Told:
    """What one client asked, and what it was told."""

    def __init__(self, nonce: str, stream: bool, tokens: int, include_usage: bool) -> None:
        self.nonce = nonce
        self.stream = stream
        self.tokens = tokens
        self.include_usage = include_usage
        self.status = 0
        self.request_id = ""
        self.whole = False
        self.text = ""
        self.usage: dict[str, Any] | None = None
        self.code = ""
        self.problem = ""

    def __repr__(self) -> str:
        return f"Told({vars(self)})"

    def body(self, model: str) -> dict[str, Any]:
        content = script({"tokens": self.tokens, "delay_s": 0.012}, nonce=self.nonce)
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 512}
        if self.stream:
            body["stream"] = True
        if self.include_usage:
            body["stream_options"] = {"include_usage": True}
        return body

    def take_stream(self, data: bytes) -> None:
        """Read what came of a stream, which may end anywhere."""
        for line in data.split(b"\n\n"):
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                self.whole = True
                continue
            try:
                frame = json.loads(line[6:])
            except ValueError:
                return
            if "error" in frame:
                self.code = frame["error"]["code"]
            self.usage = frame.get("usage") or self.usage
            for choice in frame.get("choices", ()):
                self.text += choice["delta"].get("content") or ""

    def take_whole(self, data: bytes) -> None:
        """Read an answer that came to its end."""
        answer = json.loads(data)
        if self.status != 200:
            self.code = answer["error"]["code"]
            return
        self.whole = True
        self.usage = answer["usage"]
        self.text = answer["choices"][0]["message"]["content"]


async def ask(session: aiohttp.ClientSession, url: str, told: Told) -> None:
    """Send one request and note how it ended; never raises for what a dying server does."""
    data = b""
    try:
        async with session.post(
            f"{url}/chat/completions", json=told.body("scripted"), headers={"x-client-request-id": told.nonce}
        ) as response:
            told.status = response.status
            told.request_id = response.headers["x-request-id"]
            async for chunk in response.content.iter_any():
                data += chunk
            if not (told.stream and response.status == 200):
                told.take_whole(data)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        told.problem = repr(error)
    if told.stream and told.status == 200:
        told.take_stream(data)


class Storm:
    """Clients that ask without a pause, until they are told to hold."""

    def __init__(self, subject: Subject, key: str, seed: int) -> None:
        self.subject = subject
        self.key = key
        self.told: list[Told] = []
        self._random = random.Random(seed)
        self._tasks: list[asyncio.Task[None]] = []
        self._holding = False

    async def begin(self) -> None:
        self._holding = False
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(CLIENTS)]

    async def hold(self) -> None:
        """Ask nothing more, and wait until what was asked is over."""
        self._holding = True
        async with asyncio.timeout(30):
            await asyncio.gather(*self._tasks)

    async def _run(self, number: int) -> None:
        # Every other client takes a new connection each time, and so meets all workers.
        connector = aiohttp.TCPConnector(force_close=number % 2 == 0)
        headers = {"Authorization": f"Bearer {self.key}"}
        timeout = aiohttp.ClientTimeout(total=25)
        async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
            while not self._holding:
                told = self.make()
                await ask(session, self.subject.ready["base_url"], told)
                if not told.whole:
                    await asyncio.sleep(0.25)

    def make(self) -> Told:
        """The next request, at random."""
        rng = self._random
        stream = rng.random() < 0.6
        told = Told(f"n{len(self.told)}", stream, rng.randint(3, 40), stream and rng.random() < 0.7)
        self.told.append(told)
        return told

    @property
    def whole(self) -> list[Told]:
        return [told for told in self.told if told.whole]

    def check_clients(self) -> None:
        """What was told makes sense by itself."""
        for told in self.told:
            if told.whole:
                assert told.status == 200, told
                assert told.text == "".join(f"t{n} " for n in range(told.tokens)), told
                assert (told.usage is not None) == (told.include_usage or not told.stream), told
                assert told.usage is None or told.usage["completion_tokens"] == told.tokens, told
            elif told.code:
                assert told.code in EXCUSES, told
            else:
                assert told.problem, told


def compare(storm: Storm, finished: Path, events: list[dict[str, Any]]) -> Counter[str]:
    """Hold the clients' memory against the usage events. Raises AssertionError; returns how many of each there were."""
    storm.check_clients()
    by_nonce = {told.nonce: told for told in storm.told}
    done = set(finished.read_text().split())
    completed: dict[str, dict[str, Any]] = {}
    for event in events:
        check_event(event)
        if event["status"] != "completed":
            continue
        assert event["request_id"] not in completed, f"completed twice: {event}"
        completed[event["request_id"]] = event
        told = by_nonce[event["client_request_id"]]
        assert told.nonce in done, f"completed, but the engine never finished it: {event}"
        assert event["output_tokens"] == told.tokens, (event, told)
        assert not event["estimated"], event
        assert not told.request_id or told.request_id == event["request_id"], (event, told)
    per_client = Counter(event["client_request_id"] for event in completed.values())
    assert all(count == 1 for count in per_client.values()), per_client.most_common(1)
    attempts = Counter((event["request_id"], event["attempt"]) for event in events)
    assert all(count == 1 for count in attempts.values()), attempts.most_common(1)
    for told in storm.whole:
        assert told.request_id in completed, f"a whole answer without an event: {told}"
        if told.usage is not None:
            check_usage(told.usage, completed[told.request_id])
    return Counter(f"{event['status']} {event['reason']}".strip() for event in events)


def check_usage(usage: dict[str, Any], event: dict[str, Any]) -> None:
    """The event has exactly the tokens that the client was told."""
    assert usage["prompt_tokens"] == event["input_tokens"], (usage, event)
    assert usage["completion_tokens"] == event["output_tokens"], (usage, event)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    assert cached == event["cached_tokens"], (usage, event)


def check_event(event: dict[str, Any]) -> None:
    """The event's cost follows from its tokens and its end."""
    if event["reason"] == "worker_lost":
        assert (event["status"], event["cost_nano"]) == ("failed", 0), event
    if event["status"] == "completed":
        price = event["input_tokens"] * NANO_PER_INPUT + event["output_tokens"] * NANO_PER_OUTPUT
        assert event["cost_nano"] == price, event
    if event["status"] == "failed":
        assert event["cost_nano"] <= event["output_tokens"] * NANO_PER_OUTPUT, event


async def with_authority(settings: Settings, work: Callable[[Authority], Any]) -> Any:
    """Open the books in this process, do ``work`` (a coroutine function) and close them again."""
    log = Log(TelemetrySettings(log_level="ERROR"))
    database = Database.open(settings.store)
    try:
        authority = await Authority.open(settings, database, log)
        try:
            return await work(authority)
        finally:
            authority.management.close()
            await authority.scheduler.shutdown(0.0)
    finally:
        database.close()
        log.close()


async def prepare_books(subject: Subject) -> str:
    """Before the first start: the admin with an admin key, and a prepaid user without rates. Returns the user's key."""
    settings, _ = load_settings({"config": str(subject.config)}, subject.environ, subject.folder)

    async def work(authority: Authority) -> str:
        first = await authority.first_run(admin_key=True)
        assert first is not None
        subject.key = first.api_key
        management, actor = authority.management, Actor("test", "test")
        tier = Tier(TierId("flood"), "flood", None, None, CONCURRENCY, True)
        await management.set_tier(actor, tier)
        await management.add_user(actor, UserAsk("payer", tier="flood"))
        await management.top_up(actor, "payer", TOP_UP_NANO)
        made = await management.add_key(actor, KeyAsk("payer"))
        return made.key

    key: str = await with_authority(settings, work)
    return key


def balance_of(subject: Subject, user: str) -> int:
    """What the user has left, as the admin API says."""
    return int(next(row["balance_nano"] for row in subject.rows("/users") if row["name"] == user))


def check_money(subject: Subject, events: list[dict[str, Any]]) -> None:
    """The balance is what was paid in minus what the events cost, and the books agree with themselves."""
    assert all(event["charged_nano"] == event["cost_nano"] and not event["absorbed_nano"] for event in events)
    spent = sum(event["charged_nano"] for event in events)
    assert balance_of(subject, "payer") == TOP_UP_NANO - spent
    findings = msgspec.convert(subject.admin("/doctor")["data"], list[dict[str, Any]])
    assert all(finding["ok"] for finding in findings), findings


async def check_nothing_reserved(subject: Subject, key: str) -> None:
    """As many requests at once as the user may have at most: one place or reservation kept back would refuse one."""
    assert subject.metric("stentor_open_requests") == 0
    assert subject.metric("stentor_running_requests") == 0
    body = {"model": "scripted", "messages": [{"role": "user", "content": script({"sleep": 0.3}, {"tokens": 2})}]}
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:

        async def one() -> int:
            async with session.post(f"{subject.ready['base_url']}/chat/completions", json=body) as response:
                await response.read()
                return response.status

        statuses = await asyncio.gather(*(one() for _ in range(CONCURRENCY)))
        assert set(statuses) == {200}, Counter(statuses)
