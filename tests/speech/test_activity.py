"""The engine that listens: real models, its WebSocket, real speech, and what isn't speech."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy
import onnxruntime
import psutil
import pytest
from faster_whisper.feature_extractor import FeatureExtractor

from stentor.engines.hearing.silero import Silero, knows
from stentor.engines.hearing.sound import RATE
from stentor.engines.hearing.windows import FRAME
from stentor.engines.listening.activity import Activity, Ended, Paused, Started
from stentor.engines.listening.mel import log_mel
from stentor.runtime.offers import OFFERS
from tests.kinds.models import fetch
from tests.serving import ROOT
from tests.speech import clips
from tests.speech.lines import Line, line_to, quiet, running, spoken

PATH = "/v1/activity"
OWN_EXPORT = "pypi:silero-vad==6.2.3#silero_vad/data/silero_vad.onnx"
WORDS = ["alexa", "hey_jarvis", "hey_mycroft", "okay_nabu"]
WAKING = {
    "Okay Nabu, turn on the light.": "okay_nabu",
    "Hey Jarvis, what time is it?": "hey_jarvis",
    "Hey Mycroft.": "hey_mycroft",
    "Alexa, stop.": "alexa",
}
NEAR = ("Okay, maybe.", "Hey service.", "Hey, Travis.", "A lecture.", "Hey, Charlie.", "Turn on the light.")


def tones(kind: str, seconds: float = 6.0) -> Any:
    """Sound that nobody speaks."""
    at = numpy.arange(int(seconds * RATE)) / RATE
    chance = numpy.random.default_rng(5)
    waves = {
        "silence": 0.0 * at,
        "noise": chance.normal(0, 0.1, len(at)),
        "hum": 0.3 * numpy.sin(2 * numpy.pi * 50 * at),
        "chords": sum(0.1 * numpy.sin(2 * numpy.pi * hertz * at) for hertz in (261.6, 329.6, 392.0)),
        "melody": 0.3 * numpy.sin(2 * numpy.pi * numpy.cumsum(220 * 2 ** (numpy.floor(at * 3) % 12 / 12)) / RATE),
        "clicks": (numpy.arange(len(at)) % 4000 < 20) * 0.8,
    }
    return (waves[kind] * 32767).astype("<i2")


@pytest.fixture(scope="module")
def model() -> Path:
    for text in (*clips.SENTENCES, *WAKING, *NEAR):
        clips.speak(text)  # here, as fetching the voice wants a loop of its own
    return fetch(OFFERS["listen"].source)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[str]:
    """A running engine; its address."""
    with running("listen", model, places=4) as url:
        yield url


@contextlib.asynccontextmanager
async def listening(engine: str, **how: Any) -> Any:
    async with line_to(engine, PATH) as line:
        await line.say(type="begin", **how)
        ready = await line.next()
        assert ready == {"event": "ready", "wake_words": WORDS, "turns": True}
        yield line


async def all_of(line: Line, sound: Any) -> list[Any]:
    """Everything that is told of this sound."""
    await line.speak(sound.tobytes())
    await line.say(type="turn")
    found = []
    while (event := await line.next())["event"] != "turn" or event["sample"] != len(sound):
        found.append(event)
    return [*found, event]


async def test_speech_is_marked_where_it_is(engine: str) -> None:
    for sentence in (clips.SENTENCES[1], clips.SENTENCES[6], clips.SENTENCES[11]):
        word = numpy.flatnonzero(numpy.abs(spoken(sentence, 0, 0)) > 300)
        sound = spoken(sentence, 1.0, 1.0)
        async with listening(engine) as line:
            found = await all_of(line, sound)
        started, paused, *_, ended, _ = found
        assert [each["event"] for each in found if each["event"] != "turn"] == [
            "speech_started", "speech_paused", "speech_ended",
        ]  # fmt: skip
        assert started["sample"] == pytest.approx(RATE + word[0], abs=0.1 * RATE)
        assert ended["sample"] == paused["sample"] == pytest.approx(RATE + word[-1], abs=0.1 * RATE)
        # Known as soon as it may be.
        assert started["heard"] - started["sample"] <= 0.13 * RATE
        assert paused["heard"] - paused["sample"] <= 0.25 * RATE
        assert ended["heard"] - ended["sample"] <= 0.55 * RATE


@pytest.mark.parametrize("kind", ["silence", "noise", "hum", "chords", "melody", "clicks"])
async def test_what_nobody_says_is_no_speech(engine: str, kind: str) -> None:
    async with listening(engine, wake_words=WORDS) as line:
        sound = tones(kind)
        assert await all_of(line, sound) == [{"event": "turn", "probability": None, "sample": len(sound)}]


@pytest.mark.parametrize("phrase", WAKING)
async def test_a_wake_word_is_heard_when_it_is_said_and_once(engine: str, phrase: str) -> None:
    async with listening(engine, wake_words=WORDS, turns=True) as line:
        sound = spoken(phrase, 1.0, 1.0)
        (word,) = [each for each in await all_of(line, sound) if each["event"] == "wake_word"]
    assert word["name"] == WAKING[phrase]
    assert word["probability"] > 0.8
    assert 1.3 * RATE < word["sample"] < 2.2 * RATE


async def test_words_that_are_near_wake_nobody(engine: str) -> None:
    for phrase in NEAR:
        async with listening(engine, wake_words=WORDS) as line:
            found = await all_of(line, spoken(phrase, 1.0, 1.0))
        assert [each for each in found if each["event"] == "wake_word"] == [], phrase


async def test_a_finished_sentence_sounds_more_complete_than_a_cut_one(engine: str) -> None:
    told: list[list[float]] = [[], []]
    for sentence in clips.SENTENCES[:8]:
        whole = spoken(sentence, 0, 0)
        for likely, sound in zip(told, (whole, whole[: int(0.8 * len(whole))]), strict=True):
            async with listening(engine) as line:
                found = await all_of(line, numpy.concatenate([quiet(0.3), sound, quiet(0.3)]))
            likely.append(next(each["probability"] for each in found if each["event"] == "turn"))
    finished, cut = told
    # Some of the cut ones are sentences, too.
    assert numpy.median(finished) > 0.9
    assert numpy.mean(finished) > numpy.mean(cut) + 0.2
    assert sum(one > two for one, two in zip(finished, cut, strict=True)) >= 7


async def test_a_turn_goes_on_until_it_is_said_to_be_over(engine: str) -> None:
    sentence = spoken(clips.SENTENCES[0], 0.5, 0.5)
    async with listening(engine) as line:
        (first, *_) = [each for each in await all_of(line, sentence) if each["event"] == "turn"]
        assert first["probability"] is not None
        await line.say(type="turn_over")
        await line.say(type="turn")
        assert (await line.next())["probability"] is None


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "invalid_request"),
        ('{"type":"sing"}', "invalid_request"),
        ('{"type":"begin","wake_words":' + "[" * 9000, "invalid_request"),
        ('{"type":"begin","wake_words":["hey_you"]}', "invalid_wake_word"),
        ('{"type":"begin","threshold":7}', "invalid_request"),
        ('{"type":"begin","wake_words":["a","b","c","d","e","f","g","h","i"]}', "invalid_request"),
        ('{"type":"turn"}', "invalid_request"),
        (b"\0\0", "invalid_request"),
    ],
)
async def test_what_makes_no_sense_is_told(engine: str, message: str | bytes, code: str) -> None:
    async with line_to(engine, PATH) as line:
        await (line.socket.send_bytes(message) if isinstance(message, bytes) else line.socket.send_str(message))
        event = await line.next()
        assert (event["event"], event["code"]) == ("error", code)
        assert (await line.end()).type == aiohttp.WSMsgType.CLOSE


async def test_half_a_sample_and_frames_without_end_are_refused(engine: str) -> None:
    async with listening(engine) as line:
        await line.socket.send_bytes(bytes(3))
        event = await line.next()
        assert event["code"] == "invalid_request"
        assert "3 bytes" in event["message"]
    async with listening(engine) as line:
        with contextlib.suppress(ConnectionError):
            await line.socket.send_bytes(bytes((1 << 20) + 2))
        assert (await line.end()).data == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
    async with listening(engine) as line:  # and it is there for the next
        await line.say(type="turn")
        assert (await line.next())["event"] == "turn"


async def test_however_long_it_listens_it_holds_no_more(engine: str) -> None:
    (process,) = [each for each in psutil.process_iter(["cmdline"]) if _serves(each, engine)]
    # What is sent at once while nobody reads, too: it waits in the sender's hands.
    sound = numpy.concatenate([spoken(clips.SENTENCES[2], 0.2, 0.7) for _ in range(6)]).tobytes()
    async with listening(engine, turns=False) as line:
        await line.socket.send_bytes(sound)  # it has what it needs for any sound
        await _hear_ends(line, 6)
        before, held = process.memory_info().rss, []
        for _ in range(12):
            for _ in range(3):
                await line.socket.send_bytes(sound)
            await line.say(type="turn_over")
            held.append(process.memory_info().rss)
        last = await _hear_ends(line, 12 * 3 * 6)
        held.append(process.memory_info().rss)
    samples = (1 + 12 * 3) * len(sound) // 2
    assert last["sample"] > samples - 3 * RATE
    assert max(held) - before < 16 << 20


async def _hear_ends(line: Line, count: int) -> Any:
    """The last of so many ends of speech."""
    while count:
        event = await line.next()
        count -= event["event"] == "speech_ended"
    return event


def _serves(process: psutil.Process, url: str) -> bool:
    port = int(url.rpartition(":")[2])
    if "stentor.engines.listen" not in (process.info["cmdline"] or ()):
        return False
    with contextlib.suppress(psutil.Error):  # somebody else's, which ends just now
        return any(each.laddr and each.laddr.port == port for each in process.net_connections("tcp"))
    return False


async def test_many_listen_at_once_and_leave_as_they_like(engine: str) -> None:
    async def listen(number: int) -> int:
        async with listening(engine, wake_words=WORDS) as line:
            sound = spoken(clips.SENTENCES[number], 0.3, 0.6)
            if number % 2:
                await line.speak(sound.tobytes())
                return 0  # hangs up while its sound is worked on
            return len([each for each in await all_of(line, sound) if each["event"] == "speech_ended"])

    counts = await asyncio.gather(*(listen(number) for number in range(8)))
    assert sum(counts) >= 4


async def test_the_project_s_own_export_hears_the_same_speech(model: Path) -> None:
    own = onnxruntime.InferenceSession(str(await asyncio.to_thread(fetch, OWN_EXPORT)))
    other = onnxruntime.InferenceSession(str(model / "silero_vad.onnx"))
    sound = spoken(clips.SENTENCES[0], 0.5, 0.9)
    sound = sound[: len(sound) // FRAME * FRAME].astype(numpy.float32) / 32768.0
    found = []
    for session in (own, other):
        assert knows(session)
        found.append(list(Activity(0.5, 200, 500).follow(map(float, Silero(session).hear(sound)))))
    for one, two in zip(*found, strict=True):
        assert type(one) is type(two)
        assert abs(one.sample - two.sample) <= 0.1 * RATE


def test_pieces_of_any_size_give_the_same(model: Path) -> None:
    session = onnxruntime.InferenceSession(str(model / "silero_vad.onnx"))
    sound = spoken(clips.SENTENCES[0], 0.5, 0.5)
    sound = sound[: len(sound) // FRAME * FRAME].astype(numpy.float32) / 32768.0
    whole, silero = Silero(session).hear(sound), Silero(session)
    pieces = numpy.concatenate([silero.hear(sound[at : at + FRAME]) for at in range(0, len(sound), FRAME)])
    assert numpy.abs(whole - pieces).max() < 1e-4


def test_sound_looks_as_whisper_sees_it() -> None:
    sound = spoken(clips.SENTENCES[0], 0, 0)[-2 * RATE :].astype(numpy.float32) / 32768.0
    theirs = FeatureExtractor(feature_size=80, chunk_length=2)(sound, padding=0)
    ours = log_mel(sound)
    assert ours.shape == (80, 200)
    assert numpy.abs(ours - theirs[:, :200]).max() < 1e-4


def test_a_click_is_no_speech_and_a_gap_is_no_end() -> None:
    def marks(likely: str, pause_ms: int = 200) -> list[Any]:
        return list(Activity(0.5, pause_ms, 500).follow({"_": 0.1, "?": 0.4, "#": 0.9}[each] for each in likely))

    assert marks("__##__#_##__") == []
    assert marks("__###" + "_" * 6 + "###" + "_" * 6) == [Started(2 * FRAME)]
    started, paused, ended = marks("###??" + "_" * 20)
    assert started == Started(0)
    assert paused.sample == ended.sample == 5 * FRAME
    assert isinstance(ended, Ended)
    assert len(marks("###" + "_" * 8 + "?" * 3 + "_" * 20)) == 3  # murmur doesn't begin it anew
    assert [type(each) for each in marks("###" + "_" * 20, 9000)] == [
        Started,
        Paused,
        Ended,
    ]


def test_a_folder_without_a_detector_is_told(tmp_path: Path) -> None:
    (tmp_path / "silero_vad.onnx").write_bytes(b"no model at all")
    for folder, problem in ((tmp_path, "can't be loaded"), (tmp_path / "none", "there is no silero")):
        folder.mkdir(exist_ok=True)
        code, said = _run(folder)
        assert code == 65
        assert problem in said
        assert "Traceback" not in said


def test_a_missing_extra_is_named_with_its_command(model: Path, tmp_path: Path) -> None:
    (tmp_path / "pymicro_wakeword.py").write_text("raise ImportError('No module named pymicro_wakeword')")
    code, said = _run(model, tmp_path)
    assert code == 65
    assert "pip install 'stentor[listen]'" in said


def _run(folder: Path, shadow: Path | None = None) -> tuple[int, str]:
    config = {"model_path": str(folder), "alias": "ear", "port": 1, "token": "t"}
    done = subprocess.run(
        [sys.executable, "-m", "stentor.engines.listen"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(each) for each in (shadow or folder, ROOT))},
        input=json.dumps(config) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr
