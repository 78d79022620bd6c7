"""Texts spoken aloud by real voices: every form, as it is made, and what is booked for it."""

import base64
import hashlib
import http.client
import json
import os
import signal
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from stentor.core.sound import SPEECH_FORMS
from tests.http.harness import Gate, Stream, until
from tests.speaking.conftest import SPEECH, VOICES
from tests.speaking.sound import listen, loudness

TEXT = "The quick brown fox jumps over the lazy dog near the river."
LONG = " ".join(f"This is sentence number {n}, and it goes on for a while before it ends." for n in range(1, 7))
TYPES = {
    "mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav",
    "pcm": "audio/pcm",
}  # fmt: skip
# Where a codec works at a rate of its own the voice's 22,050 Hz become the next that it knows.
RATES = {"mp3": 22_050, "opus": 48_000, "aac": 22_050, "flac": 22_050, "wav": 22_050, "pcm": 24_000}
Json = dict[str, Any]


def body(text: str = TEXT, **fields: Any) -> Json:
    return {"model": "joe", "input": text, "voice": "joe", **fields}


# -- the official client


@pytest.mark.parametrize("form", SPEECH_FORMS)
def test_the_client_gets_each_form(client: openai.OpenAI, gate: Gate, form: Any) -> None:
    answer = client.audio.speech.create(model="joe", voice="joe", input=TEXT, response_format=form)
    assert answer.response.headers["content-type"] == TYPES[form]
    seconds, rate, samples = listen(answer.content, form)
    assert 2.0 < seconds < 8.0
    assert rate == RATES[form]
    assert loudness(samples) > 300
    event = gate.event(answer.response.headers["x-request-id"])
    assert (event["characters"], event["status"]) == (len(TEXT), "completed")
    assert event["audio_ms"] == pytest.approx(seconds * 1000, abs=150)
    assert event["input_tokens"] == 13
    assert event["output_tokens"] == 0


@pytest.mark.parametrize("form", ["mp3", "pcm"])
def test_the_client_hears_the_beginning_before_the_end_is_made(client: openai.OpenAI, gate: Gate, form: Any) -> None:
    create = client.audio.speech.with_streaming_response.create
    with create(model="joe", voice="joe", input=LONG * 20, response_format=form) as answer:  # of eight minutes
        pieces = answer.iter_bytes(4096)  # kept: the client hangs up when nobody has it any more
        # Nothing is booked before it ends: it has not been spoken to its end, and yet there is sound.
        assert next(pieces)
        assert gate.find_events(answer.headers["x-request-id"]) == []
    with create(model="joe", voice="joe", input=LONG, response_format=form) as answer:
        request_id = answer.headers["x-request-id"]
        whole = b"".join(answer.iter_bytes(4096))
    seconds, _, _ = listen(whole, form)
    event = gate.event(request_id)
    assert event["characters"] == len(LONG)
    assert event["first_token_us"] < 0.9 * event["latency_us"]
    assert event["audio_ms"] == pytest.approx(seconds * 1000, abs=200)


def test_the_client_gets_events(client: openai.OpenAI, gate: Gate) -> None:
    create = client.audio.speech.with_streaming_response.create
    with create(model="joe", voice="joe", input=TEXT, response_format="pcm", stream_format="sse") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert [event["type"] for event in events[-1:]] == ["speech.audio.done"]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    assert set(events[0]) == {"type", "audio"}
    seconds, _, _ = listen(b"".join(base64.b64decode(event["audio"]) for event in events[:-1]), "pcm")
    assert 2.0 < seconds < 8.0
    assert events[-1]["usage"] == {"input_tokens": 13, "output_tokens": 0, "total_tokens": 13}


# -- shapes


def test_json_alone_is_answered_with_a_whole_wav(gate: Gate) -> None:
    answer = gate.ask("POST", SPEECH, body(response_format="mp3"), Accept="application/json")
    said = answer.json()
    assert said["mime_type"] == "audio/wav"
    wav = base64.b64decode(said["audio_base64"])
    assert struct.unpack("<I", wav[4:8]) == (len(wav) - 8,)
    assert struct.unpack("<I", wav[40:44]) == (len(wav) - 44,)
    assert 2.0 < listen(wav)[0] < 8.0
    assert float(answer.headers["x-stentor-cost"]) > 0


def test_a_speech_too_long_for_one_json_answer_is_refused(gate: Gate) -> None:
    order = {"model": "tone", "input": "a" + "-" * 3_199}  # 9.6 minutes, of which silence is soon made
    answer = gate.ask("POST", SPEECH, order, Accept="application/json")
    assert answer.status == 400, len(answer.body)
    error = answer.json()["error"]
    assert error["param"] == "input"
    assert "16 MiB" in error["message"]
    assert "'Accept: application/json'" in error["message"]
    assert gate.event(answer.request_id)["cost_nano"] == 0


def test_a_streamed_wav_has_no_length(gate: Gate) -> None:
    wav = gate.ask("POST", SPEECH, body(response_format="wav"), Accept="*/*").body
    assert wav[4:8] == wav[40:44] == b"\xff\xff\xff\xff"


def test_speed_shortens_and_lengthens(gate: Gate) -> None:
    lengths = [
        listen(gate.ask("POST", SPEECH, body(response_format="wav", speed=speed)).body)[0] for speed in (0.5, 1, 2)
    ]
    assert lengths[0] > 1.5 * lengths[1] > 2.0 * lengths[2]


def test_tones_are_those_of_the_definition(gate: Gate) -> None:
    wav = gate.ask("POST", SPEECH, {"model": "tone", "input": "hello world 2026", "response_format": "wav"}).body
    digest = hashlib.sha256(wav[44:]).hexdigest()
    assert digest == "385855d3f3944d9b70b8abd9f77b20e788b9275d4e575c62f96452a560f2d512"


def test_kokoro_speaks_with_the_voice_that_is_asked_for(gate: Gate) -> None:
    heard = []
    for voice in ("jf_alpha", "jm_kumo"):
        order = {"model": "kokoro", "input": "こんにちは。", "voice": voice, "response_format": "wav"}
        seconds, rate, samples = listen(gate.ask("POST", SPEECH, order).body)
        assert rate == 24_000
        assert 0.4 < seconds < 6
        assert loudness(samples) > 100
        heard.append(samples)
    assert heard[0] != heard[1]


# -- voices


def test_voices_are_those_of_the_models_that_a_key_may_use(gate: Gate) -> None:
    # Its files are looked into when it is started.
    gate.admin("POST", "/models/kokoro/start", {"instances": 1})

    def found() -> set[tuple[str, str, str]]:
        return {(voice["model"], voice["id"], voice["language"]) for voice in gate.ask("GET", VOICES).json()["data"]}

    until(found, {("joe", "joe", "en-US"), ("tone", "tone", "und"), ("kokoro", "jf_alpha", "ja")}.issubset)
    narrow = gate.make_key(models=["tone"])["key"]
    mine = gate.ask("GET", VOICES, key=narrow).json()
    assert [voice["model"] for voice in mine["data"]] == ["tone"]
    assert mine["voices"] == [{"id": "tone", "name": "tone"}]
    assert gate.ask("GET", VOICES + "?model=joe", key=narrow).status == 404
    assert [voice["id"] for voice in gate.ask("GET", VOICES + "?model=joe").json()["data"]] == ["joe"]


def test_a_name_of_openais_speaks_with_the_voice_that_there_is(gate: Gate) -> None:
    assert gate.ask("POST", SPEECH, body(voice="alloy")).status == 200


@pytest.mark.parametrize("form", ["mp3", "opus", "aac", "flac", "wav"])
def test_what_nobody_can_say_is_silence_that_plays(gate: Gate, form: str) -> None:
    answer = gate.ask("POST", SPEECH, body(model="joe", input="...", response_format=form))
    assert answer.status == 200
    length_s, _, samples = listen(answer.body)
    assert length_s > 0
    assert loudness(samples) < 10


def test_control_characters_are_blanks(gate: Gate) -> None:
    spoken = gate.ask("POST", SPEECH, body(model="joe", input="good\0day", response_format="pcm"))
    assert (spoken.status, gate.event(spoken.request_id)["characters"]) == (200, 8)


ODD = {
    "marks alone": "?!… «»—–[]{}|_^~",
    "marks that mean something to its speller": "[[h@]] <break/> $ %",
    "pictures": "🎉👨\u200d👩\u200d👧🏳️\u200d🌈👍🏽",
    "nothing that is seen": "\u200b\u200c\u2060\ufeff\u00ad",
    "digits": "½ ² ٣ 1e9",
    "scripts": "мир 世 あ של 한",
    "right to left": "\u202eol\u202c של\u200f",
    "marks on marks": "e" + "\u0301" * 200,
    "controls": "a\x01\x1b[31mb\x7f\x85\u2028c",
    "no characters": "\ue000\U0010ffff\ufdd0\u0378\ufffd",
    "one word": "ab" * 130,
}


@pytest.mark.parametrize("model", ["joe", "kokoro"])
def test_odd_texts_are_spoken_or_silence(gate: Gate, model: str) -> None:
    """No text is too odd for an engine, which stays up. For Kokoro those alone that are short to say."""
    texts = (
        ODD if model == "joe" else {name: ODD[name] for name in ("nothing that is seen", "no characters", "pictures")}
    )
    voice = {} if model == "kokoro" else {"voice": "joe"}
    for name, text in texts.items():
        answer = gate.ask("POST", SPEECH, {"model": model, "input": text, "response_format": "pcm", **voice})
        assert (answer.status, bool(answer.body)) == (200, True), name
        assert gate.event(answer.request_id)["characters"] == len(text), name
    assert gate.slot(model)["restarts"] == 0


# -- what is refused


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": " \n "}, "input", "empty"),
        ({"input": None}, "input", "missing"),
        ({"input": 7}, "input", "must be"),
        ({"input": "x" * 65_537}, "input", "65537"),
        ({"voice": "jo"}, "voice", "Near it: joe"),
        ({"voice": "metal"}, "voice", "It has joe"),
        ({"voice": "v" * 200}, "voice", "128"),
        ({"speed": 0.2}, "speed", "0.25"),
        ({"speed": 4.1}, "speed", "4"),
        ({"speed": "fast"}, "speed", "a number"),
        ({"response_format": "midi"}, "response_format", "'mp3'"),
        ({"stream_format": "morse"}, "stream_format", "'sse'"),
    ],
)
def test_what_is_wrong_is_named(gate: Gate, fields: Json, param: str, words: str) -> None:
    answer = gate.ask("POST", SPEECH, body() | fields)
    assert answer.status == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert all(event["cost_nano"] == 0 for event in gate.find_events(answer.request_id))


def test_models_that_speak_do_nothing_else(gate: Gate) -> None:
    chat = {"model": "tone", "messages": [{"role": "user", "content": "hi"}]}
    assert gate.ask("POST", "/v1/chat/completions", chat).json()["error"]["code"] == "missing_ability"
    assert gate.ask("POST", SPEECH, body(model="nobody")).status == 404


def test_keys_need_the_scope_and_the_model(gate: Gate) -> None:
    assert gate.ask("POST", SPEECH, body(), key=gate.make_key(scopes=["ring"])["key"]).status == 403
    assert gate.ask("POST", SPEECH, body(), key=gate.make_key(models=["tone"])["key"]).status == 404
    only_chat = gate.make_key(endpoints=["/v1/chat/completions"])["key"]
    assert gate.ask("POST", SPEECH, body(), key=only_chat).status == 403


# -- money


@pytest.fixture
def by_character(gate: Gate) -> Iterator[int]:
    """Characters of ``tone`` cost this many nano-USD each meanwhile."""
    gate.admin("POST", "/pricing", {"model": "tone", "input_nano": 0, "output_nano": 0, "character_nano": 5 * 10**6})
    yield 5
    gate.admin("POST", "/pricing", {"model": "tone", "input_nano": 0, "output_nano": 0})


def test_characters_are_reserved_and_charged(gate: Gate, by_character: int) -> None:
    user = gate.make_user(tier="payg", balance_nano=100)
    key = gate.make_key(user["name"])["key"]
    dear = gate.ask("POST", SPEECH, {"model": "tone", "input": "a" * 21}, key=key)
    assert (dear.status, dear.json()["error"]["code"]) == (402, "insufficient_balance")
    answer = gate.ask("POST", SPEECH, {"model": "tone", "input": "a" * 20, "speed": 4}, key=key)
    assert answer.status == 200
    assert gate.event(answer.request_id)["cost_nano"] == 20 * by_character
    assert gate.balance(user["id"]) == 0


def test_seconds_of_sound_can_be_priced(gate: Gate) -> None:
    second = {"model": "tone", "input_nano": 0, "output_nano": 0, "audio_second_nano": 10**9}
    gate.admin("POST", "/pricing", second)
    try:
        answer = gate.ask("POST", SPEECH, {"model": "tone", "input": "a" * 50, "response_format": "wav"})
    finally:
        gate.admin("POST", "/pricing", {"model": "tone", "input_nano": 0, "output_nano": 0})
    assert gate.event(answer.request_id)["audio_ms"] == 9000
    assert gate.event(answer.request_id)["cost_nano"] == 9000


# -- bad ends


def begin(gate: Gate, **fields: Any) -> Stream:
    return gate.begin(body(**fields), path=SPEECH)


def read_some(stream: Stream, size: int = 2000) -> bytes:
    data = stream._response.read(size)
    assert len(data) == size
    return data


def test_a_client_that_leaves_ends_it_and_pays_for_what_was_spoken(gate: Gate) -> None:
    stream = begin(gate, text=LONG * 40, response_format="wav")
    read_some(stream)
    stream.leave()
    event = until(lambda: gate.find_events(stream.request_id), timeout_s=60)[0]
    assert (event["status"], event["reason"]) == ("cancelled", "client_left")
    assert 0 < event["characters"] < len(LONG) * 10
    assert event["audio_ms"] > 0
    assert event["input_tokens"] > 1000
    assert event["cost_nano"] > 0
    until(gate.running, lambda count: count == 0, 60)


def test_a_speech_that_breaks_off_is_seen_to_be_cut(gate: Gate) -> None:
    stream = begin(gate, text=LONG * 40, model="twice", voice="", response_format="wav")
    read_some(stream)
    busy = next(slot for slot in gate.admin("GET", "/slots")["data"] if slot["model"] == "twice" and slot["running"])
    os.kill(busy["pid"], signal.SIGKILL)
    stream.rest()
    assert stream.broken
    event = until(lambda: gate.find_events(stream.request_id), timeout_s=60)[0]
    assert (event["status"], event["billable"]) == ("failed", True)
    assert 0 < event["characters"] < len(LONG) * 10
    assert event["input_tokens"] == 0
    until(lambda: [s["status"] for s in gate.admin("GET", "/slots")["data"] if s["model"] == "twice"],
          lambda states: states.count("loaded") == 2, 60)  # fmt: skip


def test_events_that_break_off_say_so(gate: Gate) -> None:
    key = gate.make_key()
    connection = gate.send(body(LONG * 40, stream_format="sse", response_format="pcm"), path=SPEECH, key=key["key"])
    stream = Stream(connection, connection.getresponse())
    stream.frame()
    gate.admin("POST", f"/api-keys/{key['id']}/revoke")
    rest = stream.rest()
    assert stream.broken
    assert b'"code":"invalid_api_key"' in rest
    assert b"speech.audio.done" not in rest


# -- sharing


def test_two_instances_speak_at_a_time(gate: Gate) -> None:
    streams = [begin(gate, text=LONG * 20, model="twice", voice="", response_format="wav") for _ in range(2)]
    for stream in streams:
        read_some(stream)
    assert len({stream.headers["x-stentor-instance"] for stream in streams}) == 2
    for stream in streams:
        stream.leave()


def test_several_speeches_take_turns_on_one_engine(gate: Gate) -> None:
    long = begin(gate, text=LONG * 40, response_format="wav")
    read_some(long)
    short = gate.ask("POST", SPEECH, body("Hello there.", response_format="wav"))
    assert short.status == 200
    # The long one was not waited for.
    assert gate.find_events(long.request_id) == []
    long.leave()


def test_a_client_that_reads_slowly_holds_the_engine_back(gate: Gate) -> None:
    """What nobody reads isn't piled up: the engine waits."""
    connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=60)
    connection.request(
        "POST", SPEECH, json.dumps({"model": "tone", "input": "a" * 60_000, "speed": 4, "response_format": "wav"}),
        {"Authorization": f"Bearer {gate.key}"},
    )  # fmt: skip
    response = connection.getresponse()
    response.read(1000)
    request_id = response.headers["x-request-id"]
    assert gate.find_events(request_id) == []
    connection.sock.close()
    response.close()
    event = until(lambda: gate.find_events(request_id), timeout_s=60)[0]
    assert event["status"] == "cancelled"
    assert event["characters"] < 60_000
