"""The recognizer that hears while somebody speaks: a real engine, its WebSocket, real speech."""

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import numpy
import pytest

from stentor.engines.hearing.sound import RATE
from stentor.engines.hearing.streaming import Listener, Utterance, count_common
from stentor.engines.hearing.windows import FRAME
from stentor.runtime.offers import OFFERS
from tests.kinds.models import fetch
from tests.speech import clips
from tests.speech.lines import line_to, pcm, running
from tests.speech.words import plain_words

COMMANDS = ("Turn on the light.", "Stop the music.", "What time is it?", "Open the window.", "Call my sister.")


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """A running engine with Whisper tiny; its address."""
    for text in (*clips.SENTENCES[:7], *COMMANDS):
        clips.speak(text)  # here, as fetching the voice wants a loop of its own
    with running("whisper", fetch(OFFERS["whisper-tiny.en"].source)) as url:
        yield url


async def test_text_grows_while_somebody_speaks_and_what_is_settled_stays(engine: str) -> None:
    sentence = clips.SENTENCES[0]
    async with line_to(engine) as line:
        await line.say(type="begin", language="en")
        await line.speak(pcm(sentence), pace=1.0)
        line.partials.append(await line.next())  # before the end, however slow it is
        await line.say(type="end")
        final = await line.final()
    assert final["event"] == "final"
    assert {each["event"] for each in line.partials} == {"partial"}
    words = plain_words(final["text"].replace("7", "seven"))
    assert words == plain_words(sentence)
    assert final["audio_ms"] == pytest.approx(len(pcm(sentence)) / 2 / RATE * 1000, abs=2)
    assert final["output_tokens"] > 8
    settled = ""
    for partial in line.partials:
        assert partial["text"].startswith(settled)
        assert partial["stable"] >= len(settled)
        settled = partial["text"][: partial["stable"]]


async def test_utterances_follow_each_other_and_can_be_dropped(engine: str) -> None:
    async with line_to(engine) as line:
        await line.say(type="begin", language="en")
        for sentence in clips.SENTENCES[1:3]:
            await line.speak(pcm(sentence))
            await line.say(type="end")
            assert plain_words((await line.final())["text"])[:4] == plain_words(sentence)[:4]
        await line.speak(pcm(clips.SENTENCES[5]))
        await line.say(type="drop")
        await line.speak(pcm(clips.SENTENCES[6]))
        await line.say(type="end")
        assert plain_words((await line.final())["text"])[:3] == plain_words(clips.SENTENCES[6])[:3]


async def test_silence_is_no_text_and_asks_nobody(engine: str) -> None:
    async with line_to(engine) as line:
        await line.say(type="begin")
        await line.speak(bytes(2 * RATE * 10))
        await line.say(type="end")
        assert await line.final() == {"event": "final", "text": "", "audio_ms": 10_000, "output_tokens": 0}
        assert line.partials == []


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "invalid_request"),
        ('{"type":"sing"}', "invalid_request"),
        ('{"type":"begin","language":"de"}', "invalid_language"),
        ('{"type":"begin","prompt":' + "[" * 9000, "invalid_request"),
        (b"odd", "invalid_request"),
    ],
)
async def test_what_makes_no_sense_is_told(engine: str, message: str | bytes, code: str) -> None:
    async with line_to(engine) as line:
        await (line.socket.send_bytes(message) if isinstance(message, bytes) else line.socket.send_str(message))
        event = await line.final()
        assert (event["event"], event["code"]) == ("error", code)
        assert (await line.socket.receive(timeout=30)).type == aiohttp.WSMsgType.CLOSE


async def test_an_endless_utterance_is_ended(engine: str) -> None:
    async with line_to(engine) as line:
        await line.say(type="begin", max_s=3.0)
        await line.speak(pcm(clips.SENTENCES[0]))
        assert (await line.final())["code"] == "too_long"


async def test_the_token_is_needed(engine: str) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
        async with line_to(engine, token="wrong"):
            pass
    assert refusal.value.status == 401


@pytest.mark.soak
@pytest.mark.timeout(400)
async def test_the_final_is_there_soon_after_a_short_command(engine: str) -> None:
    waits = []
    async with line_to(engine) as line:
        await line.say(type="begin", language="en")
        for number in range(40):
            await line.speak(pcm(COMMANDS[number % 5], after_s=0.5), pace=1.0)
            ended = time.monotonic()
            await line.say(type="end")
            assert (await line.final())["text"]
            waits.append(1000 * (time.monotonic() - ended))
    waits.sort()
    print(f"final after {statistics.median(waits):.0f} ms (p50), {waits[37]:.0f} ms (p95)")
    assert statistics.median(waits) <= 300
    assert waits[37] <= 450


class _Loud:
    def hear(self, samples: Any) -> Any:
        return numpy.abs(samples.reshape(-1, FRAME)).max(axis=1)


def _stretch(seconds: float, loud: float) -> bytes:
    return numpy.full(int(seconds * RATE), int(loud * 32767), "<i2").tobytes()


async def test_a_pause_is_when_it_is_heard_out() -> None:
    utterance = Utterance(_Loud(), 28.0)
    utterance.feed(_stretch(0.5, 0.0))
    assert not utterance.is_due()
    utterance.feed(_stretch(0.3, 0.9))
    assert utterance.is_due()  # 0.8 s that nobody has heard
    utterance.note("turn", len(utterance.sound))
    utterance.feed(_stretch(0.2, 0.9))
    assert not utterance.is_due()
    utterance.feed(_stretch(0.2, 0.0))
    assert utterance.is_due()
    assert not utterance.is_heard_out()
    utterance.note("turn on", len(utterance.sound))
    utterance.feed(_stretch(1.0, 0.0))
    assert not utterance.is_due()
    assert utterance.is_heard_out()


async def test_long_silence_before_a_word_is_let_go() -> None:
    utterance = Utterance(_Loud(), 5.0)
    for _ in range(60):
        utterance.feed(_stretch(1.0, 0.0))
    assert len(utterance.sound) <= 3 * RATE
    utterance.feed(_stretch(1.0, 0.9))
    assert not utterance.is_silent


async def test_the_word_that_is_being_spoken_is_not_settled() -> None:
    assert count_common(["turn", "on", "the"], ["Turn", "on,", "the", "light"]) == 3
    assert count_common(["turn", "on"], ["turn", "on"]) == 1
    assert count_common([], ["turn"]) == 0


async def test_the_engine_goes_on_while_a_language_is_loaded() -> None:
    loop_thread, begun_in = threading.get_ident(), list[int]()

    class _Slow:
        def begin(self, _order: Any) -> None:
            begun_in.append(threading.get_ident())

    class _Said:
        """A connection on which one order comes."""

        def __init__(self) -> None:
            self.messages: list[str | None] = ['{"type":"begin","language":"ja"}', None]

        async def receive(self) -> str | None:
            return self.messages.pop(0)

        def has_more(self) -> bool:
            return False

        async def work(self, do: Callable[[], Any]) -> Any:
            return await asyncio.to_thread(do)

    await Listener(_Slow(), _Said()).run()  # type: ignore[arg-type]
    assert begun_in
    assert begun_in != [loop_thread]
