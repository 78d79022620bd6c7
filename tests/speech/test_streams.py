"""Streams of sound through the gateway: real books, a real scheduler, real engines, and one that misbehaves."""

import asyncio
import json
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from stentor.core.errors import Refused
from stentor.egress.sockets import EngineSockets
from stentor.flows.listening import attempt, feed, stream
from stentor.flows.listening.ask import ActivityAsk, WordsAsk
from stentor.flows.listening.stream import SoundStream
from stentor.flows.listening.wire import (
    BYTES_PER_S,
    RATE,
    Final,
    Over,
    Partial,
    Ready,
    SpeechEnded,
    SpeechPaused,
    SpeechStarted,
    Turn,
    WakeWord,
)
from stentor.runtime.offers import OFFERS
from tests.kinds.models import fetch
from tests.serving import model_table
from tests.speech import clips
from tests.speech.inside import Inside, inside
from tests.speech.lines import FRAME_S, pcm, quiet
from tests.speech.test_listening import COMMANDS
from tests.speech.words import plain_words

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("listening")]
SCRIPTED = Path(__file__).with_name("scripted_line.py")
LIVE = "/v1/realtime"
WAKING = "Okay Nabu, turn on the light."


@pytest.fixture(scope="module")
def models() -> None:
    for text in (*clips.SENTENCES[:3], *COMMANDS, WAKING):
        clips.speak(text)  # here, as fetching the voice wants a loop of its own
    for name in ("whisper-tiny.en", "listen"):
        fetch(OFFERS[name].source)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scripted") / "log"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _gate(models: None, log: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Inside]:
    command = [sys.executable, str(SCRIPTED), "${PORT}", str(log)]
    tables = (
        model_table(id="tiny", source="whisper-tiny.en", parallel=1, threads=2),
        model_table(id="ear", source="listen", threads=1),
        model_table(id="odd", engine="command", type="omni", command=command, parallel=2, canary=False),
    )
    async with inside(tmp_path_factory.mktemp("inside"), "\n".join(tables)) as held:
        yield held


@pytest_asyncio.fixture(loop_scope="module")
async def gate(_gate: Inside) -> AsyncIterator[Inside]:
    """The gateway; after each test it must be at rest."""
    yield _gate
    async with asyncio.timeout(60):
        while not _gate.is_at_rest():
            await asyncio.sleep(0.01)


def words(gate: Inside, model: str = "tiny", **more: Any) -> SoundStream:
    return gate.parts.listening.open(gate.principal, WordsAsk(LIVE, model, **more))


async def speak(line: SoundStream, sound: bytes, *, pace: float = 0.0) -> None:
    step = int(FRAME_S * BYTES_PER_S)
    began = time.monotonic()
    for number, at in enumerate(range(0, len(sound), step)):
        await line.send(sound[at : at + step])
        await asyncio.sleep(max(0.0, began + pace * FRAME_S * (number + 1) - time.monotonic()))


async def drain(line: SoundStream) -> None:
    async with asyncio.timeout(60):
        while await line.next() is not None:
            pass


async def refusal_of(line: SoundStream) -> Refused:
    with pytest.raises(Refused) as caught:
        await drain(line)
    return caught.value


async def pour(line: SoundStream) -> None:
    """Far more sound than lies anywhere."""
    for _ in range(4000):
        await line.send(bytes(BYTES_PER_S))
        if line.is_over:
            return


async def test_what_is_said_is_told_while_it_is_said_and_booked(gate: Inside) -> None:
    sound = pcm(clips.SENTENCES[1])
    async with words(gate, language="en") as line:
        await line.wait_until_open()  # its engine may have to start
        await speak(line, sound, pace=1.0)
        first = await line.next()
        line.end()
        *partials, final = [first, *[event async for event in line]]
    assert all(isinstance(each, Partial) for each in partials)
    assert isinstance(final, Final)
    assert plain_words(final.text)[:4] == plain_words(clips.SENTENCES[1])[:4]
    (event,) = await gate.events(line)
    assert event.audio_ms == final.audio_ms == -(-len(sound) * 1000 // BYTES_PER_S)
    assert event.output_tokens == final.output_tokens > 5
    assert (event.status, event.endpoint, event.model, event.estimated) == ("completed", LIVE, "tiny", False)
    assert line.settled is not None
    assert line.settled.cost_nano == event.cost_nano == event.output_tokens * 200
    assert event.first_token_us is not None


async def test_who_speaks_when_is_told_by_samples(gate: Inside) -> None:
    sound = pcm(WAKING, 1.0, 1.0)
    ask = ActivityAsk(LIVE, "ear", wake_words=["okay_nabu"], silence_ms=400)
    async with gate.parts.listening.open(gate.principal, ask) as line:
        for at in range(0, len(sound), 1001):  # bytes, not samples
            await line.send(sound[at : at + 1001])
        line.end()
        told = [event async for event in line]
    assert isinstance(told[0], Ready)
    assert told[0].turns
    started = next(each for each in told if isinstance(each, SpeechStarted))
    ended = [each for each in told if isinstance(each, SpeechEnded)][-1]
    wake = next(each for each in told if isinstance(each, WakeWord))
    assert RATE * 0.9 < started.sample < RATE * 1.2
    assert started.sample < wake.sample < ended.sample < len(sound) // 2 - RATE * 0.8
    assert any(isinstance(each, SpeechPaused) for each in told)
    assert any(isinstance(each, Turn) and each.probability is not None for each in told)
    assert told[-1] == Over(len(sound) // 2)
    (event,) = await gate.events(line)
    assert (event.audio_ms, event.output_tokens) == (-(-len(sound) * 1000 // BYTES_PER_S), 0)
    assert (event.status, event.model) == ("completed", "ear")


async def test_orders_reach_the_engine_in_their_place(gate: Inside) -> None:
    async with gate.parts.listening.open(gate.principal, ActivityAsk(LIVE, "ear", turns=True)) as line:
        await line.send(quiet(0.5).tobytes())
        line.order('{"type":"turn"}')
        line.order('{"type":"turn_over"}')
        await line.send(quiet(0.5).tobytes())
        line.end()
        assert [event async for event in line][1:] == [Turn(None, RATE // 2), Over(RATE)]


async def test_who_leaves_pays_what_was_sent_and_holds_nothing(gate: Inside) -> None:
    async with words(gate) as line:
        await speak(line, pcm(clips.SENTENCES[0]), pace=1.0)
        assert isinstance(await line.next(), Partial)
    (event,) = await gate.events(line)
    assert (event.status, event.reason) == ("cancelled", "client_left")
    assert event.audio_ms == -(-len(pcm(clips.SENTENCES[0])) * 1000 // BYTES_PER_S)
    assert event.output_tokens > 0
    assert event.estimated
    assert gate.is_at_rest()
    assert [event async for event in line if not isinstance(event, Partial)] == []


async def test_who_leaves_before_a_sound_pays_nothing(gate: Inside) -> None:
    async with words(gate) as line:
        pass
    assert [each.cost_nano for each in await gate.events(line)] in ([], [0])
    async with words(gate) as line:
        await line.wait_until_open()
    assert all((each.cost_nano, each.audio_ms) == (0, 0) for each in await gate.events(line))


async def test_a_revoked_key_ends_its_streams(gate: Inside) -> None:
    async with words(gate) as line:
        await line.wait_until_open()
        await line.send(quiet(0.5).tobytes())
        gate.parts.calls.interrupt_key(gate.principal.key_id)
        assert (await refusal_of(line)).code == "invalid_api_key"


async def test_no_more_is_heard_than_can_be_paid(gate: Inside) -> None:
    poor = await gate.add_caller(f"poor-{uuid.uuid4().hex[:6]}", 80_000)  # half a minute's tokens, not a minute's
    async with gate.parts.listening.open(poor, WordsAsk(LIVE, "tiny")) as line:
        for _ in range(4):
            await line.send(quiet(10.0).tobytes())
        refusal = await refusal_of(line)
    assert refusal.code == "insufficient_balance"
    (event,) = await gate.events(line)
    assert (event.status, event.reason, event.cost_nano) == ("failed", "insufficient_balance", 0)


async def test_a_stream_that_cannot_open_says_why(gate: Inside) -> None:
    async with words(gate, "nobody") as line:
        with pytest.raises(Refused, match="nobody"):
            await line.wait_until_open()


async def test_what_a_model_cannot_do_is_said(gate: Inside) -> None:
    for ask, code in (
        (WordsAsk(LIVE, "ear"), "missing_ability"),
        (ActivityAsk(LIVE, "tiny"), "missing_ability"),
        (WordsAsk(LIVE, "nobody"), "model_not_found"),
        (WordsAsk(LIVE, "tiny", language="de"), "invalid_request"),
        (ActivityAsk(LIVE, "ear", wake_words=["hey_you"]), "invalid_request"),
        (ActivityAsk(LIVE, "ear", threshold=2), "invalid_request"),
    ):
        async with gate.parts.listening.open(gate.principal, ask) as line:
            assert (await refusal_of(line)).code == code


async def test_an_utterance_that_never_ends_is_ended(gate: Inside) -> None:
    async with words(gate) as line:
        for _ in range(12):
            await line.send(pcm(clips.SENTENCES[0], 0, 0))
        refusal = await refusal_of(line)
    assert (refusal.code, "28 s" in refusal.message) == ("invalid_request", True)


# -- an engine that misbehaves -----------------------------------------------------------------------------------------


async def noted(log: Path, prompt: str, streams: int) -> list[Any]:
    """What the engine got in the streams with this prompt, once it has noted so many."""
    async with asyncio.timeout(30):
        while True:
            # What follows the last line's end is being written.
            lines = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
            if len(found := [line for line in lines if line["prompt"] == prompt]) >= streams:
                return found
            await asyncio.sleep(0.01)


async def odd(gate: Inside, prompt: str, *, end: bool = True) -> SoundStream:
    """A stream to the engine that does what the prompt says, one second of sound in it."""
    line = words(gate, "odd", prompt=prompt)
    for _ in range(10):
        await line.send(bytes(BYTES_PER_S // 10))
    if end:
        line.end()
    return line


async def test_an_engine_that_dies_before_a_word_is_replaced_and_hears_all(gate: Inside, log: Path) -> None:
    prompt = f"die once {uuid.uuid4()}"
    line = await odd(gate, prompt)
    told = [event async for event in line]
    assert told == [Final("so it is", 1000, 3)]
    first, second = await gate.events(line)
    assert (first.status, first.cost_nano, second.status, second.attempt) == ("failed", 0, "completed", 2)
    assert second.audio_ms == 1000
    dead, whole = await noted(log, prompt, streams=2)
    assert dead["bytes"] < BYTES_PER_S
    assert (whole["bytes"], whole["orders"]) == (BYTES_PER_S, ["end"])


@pytest.mark.parametrize(
    ("prompt", "code", "reason"),
    [
        ("die", "engine_failed", "engine_broke_off"),
        ("partial die", "engine_failed", "engine_broke_off"),
        ("rubbish", "engine_failed", "engine_rubbish"),
        ("bytes", "engine_failed", "engine_broke_off"),
        ("large", "engine_failed", "engine_broke_off"),
        ("fails", "engine_failed", "engine_error"),
        ("refuses", "invalid_request", "engine_refused"),
        ("silent", "engine_failed", "engine_broke_off"),
        ("partial silent", "engine_failed", "engine_broke_off"),
    ],
)
async def test_what_goes_wrong_is_told_and_costs_what_was_told(
    gate: Inside, monkeypatch: pytest.MonkeyPatch, prompt: str, code: str, reason: str
) -> None:
    if "silent" in prompt:
        monkeypatch.setattr(attempt, "LAST_WORD_S", 0.3)
    line = await odd(gate, prompt, end=False)
    if "partial" in prompt:
        assert isinstance(await line.next(), Partial)
    line.end()
    refusal = await refusal_of(line)
    assert refusal.code == code
    events = await gate.events(line)
    assert {each.reason for each in events} == {reason}
    assert {each.status for each in events} == {"failed"}
    assert len(events) == (1 if "partial" in prompt or code == "invalid_request" else 2)
    assert all((each.cost_nano > 0) == ("partial" in prompt) for each in events)
    assert events[0].audio_ms <= 1000


async def test_an_engine_that_hangs_is_found_out(gate: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate.parts.engines, "sockets", EngineSockets(heartbeat_s=0.5))
    async with asyncio.timeout(60):
        while not await hang(gate):
            pass
    await gate.parts.engines.sockets.close()


async def hang(gate: Inside) -> bool:
    """Have an engine hang, which is to be found out; False: all of this machine was held up for longer than that."""
    async with words(gate, "odd", prompt="partial silent") as line:
        try:
            await line.wait_until_open()
            await line.send(bytes(BYTES_PER_S))
            assert isinstance(await line.next(), Partial)
        except Refused as refusal:
            if "No PONG" not in refusal.message:
                raise
            return False
        (process,) = [each for each in psutil.Process().children() if str(SCRIPTED) in each.cmdline()]
        process.suspend()
        try:
            assert "No PONG" in (await refusal_of(line)).message
        finally:
            process.resume()
    return True


async def test_tokens_that_no_engine_counts_are_counted(gate: Inside) -> None:
    line = await odd(gate, "uncounted")
    assert [event async for event in line] == [Final("so it is", 1000, None)]
    (event,) = await gate.events(line)
    assert (event.output_tokens, event.estimated) == (3, True)


async def test_sound_that_nobody_takes_is_bounded_and_told(gate: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_ROOM_S", 0.3)
    monkeypatch.setattr(attempt, "_REASON_S", 0.1)
    monkeypatch.setattr(gate.parts.engines, "sockets", EngineSockets(send_s=30.0))
    async with words(gate, "odd", prompt="deaf") as line:
        with pytest.raises(Refused, match="took no sound") as caught:
            await pour(line)
        assert caught.value.code == "engine_failed"
    await gate.parts.engines.sockets.close()


async def test_an_engine_that_takes_nothing_is_left(gate: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "_REASON_S", 0.1)
    monkeypatch.setattr(gate.parts.engines, "sockets", EngineSockets(send_s=0.3))
    async with words(gate, "odd", prompt="deaf") as line:
        await pour(line)
        assert "took nothing for 0.3 s" in (await refusal_of(line)).message
    await gate.parts.engines.sockets.close()


async def test_events_that_nobody_takes_are_bounded(gate: Inside) -> None:
    line = await odd(gate, "flood", end=False)
    async with asyncio.timeout(60):
        while not line.is_over:
            await asyncio.sleep(0.01)
    refusal = await refusal_of(line)
    assert "not taken" in refusal.message
    (event,) = await gate.events(line)
    assert (event.status, event.reason) == ("cancelled", "client_stalled")


async def test_what_is_kept_for_another_try_is_bounded() -> None:
    held = feed.Feed(keep=True)
    for _ in range(59):
        held.put(bytes(BYTES_PER_S))
        await held.take()
    assert held.rewind() == 0
    for _ in range(59):
        await held.take()
    for _ in range(2):
        held.put(bytes(BYTES_PER_S))
        await held.take()
    assert held.rewind() == 61 * RATE


# -- how quick it is ---------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize("silence_s", [0.5, 0.2])
async def test_the_final_is_there_soon_after_a_short_command(gate: Inside, silence_s: float) -> None:
    """``silence_s`` is what whoever decides that the command is over has waited for."""
    waits = []
    for number in range(41):
        async with words(gate, language="en") as line:
            await speak(line, pcm(COMMANDS[number % 5], after_s=silence_s), pace=1.0)
            ended = time.monotonic()
            line.end()
            told = [event async for event in line]
            assert isinstance(told[-1], Final)
            assert told[-1].text
            waits.append(1000 * (time.monotonic() - ended))
    del waits[0]  # the engine's start
    waits.sort()
    print(f"{silence_s} s of silence, final after {statistics.median(waits):.0f} ms (p50), {waits[37]:.0f} ms (p95)")
    assert statistics.median(waits) <= 300
    assert waits[37] <= 450
