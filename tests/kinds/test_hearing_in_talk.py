"""Uploads written down by models that hear in conversations: a real one with random weights, and a scripted one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import media
from tests.http.harness import CHAT, Engine, Gate, Stream
from tests.serving import Answer
from tests.speech.conftest import TRANSCRIPTIONS, TRANSLATIONS, form

SOUND = media.wav(1.5)


def hear(gate: Gate, model: str, content: bytes = SOUND, path: str = TRANSCRIPTIONS, **fields: Any) -> Answer:
    body, kind = form(content, model=model, **fields)
    return gate.ask("POST", path, body, Content_Type=kind)


@pytest.fixture
def scribe(gate: Gate) -> Iterator[Engine]:
    """The scripted one, running."""
    assert gate.chat(model="scribe").status == 200
    yield gate.engine("scribe")
    gate.engine("scribe").control(default={})


@pytest.mark.parametrize("model", ["ears", "recorder"])
def test_a_model_with_ears_hears_an_upload(gate: Gate, model: str) -> None:
    answer = hear(gate, model)
    assert answer.status == 200, answer.body
    assert isinstance(answer.json()["text"], str)
    event = gate.event(answer.request_id)
    assert (event["endpoint"], event["audio_ms"], event["status"]) == (TRANSCRIPTIONS, 1500, "completed")
    # Half a minute of sound is 150 tokens to this one.
    assert event["input_tokens"] > 150
    assert not event["estimated"]


def test_it_is_told_what_to_do_and_its_words_are_the_text(gate: Gate, scribe: Engine) -> None:
    said = {"say": "  The train leaves\nat seven. "}
    scribe.control(default={"do": [said], "usage": {"prompt_tokens": 70, "completion_tokens": 8}})
    answer = hear(gate, "scribe", language="de", prompt="Sankt-Anna-Straße", temperature="0.4")
    assert answer.json() == {"text": "The train leaves\nat seven.", "usage": {"type": "duration", "seconds": 2}}
    event = gate.event(answer.request_id)
    assert (event["input_tokens"], event["output_tokens"], event["audio_ms"]) == (70, 8, 1500)
    asked = json.loads(scribe.log()[-1]["body_text"])
    instruction, sound = asked["messages"][0]["content"]
    assert "Write down what is said" in instruction["text"]
    assert "German" in instruction["text"]
    assert "Sankt-Anna-Straße" in instruction["text"]
    assert sound == media.audio_part(SOUND)
    assert (asked["temperature"], asked["stream"]) == (0.4, True)
    assert 0 < asked["max_tokens"] < 100


def test_its_words_are_streamed_as_they_come(gate: Gate, scribe: Engine, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    scribe.control(default={"do": [{"say": "one two"}, {"until": str(heard)}, {"say": " three"}]})
    body, kind = form(SOUND, model="scribe", stream="true")
    connection = gate.server.connect(60)
    connection.request("POST", TRANSCRIPTIONS, body, {"Authorization": f"Bearer {gate.key}", "Content-Type": kind})
    stream = Stream(connection, connection.getresponse())
    assert json.loads(stream.frame()[6:])["type"] == "transcript.text.delta"
    heard.touch()
    stream.rest()
    *deltas, done = [json.loads(line[6:]) for line in stream.body.splitlines() if line]
    assert "".join(event["delta"] for event in deltas) == "one two three" == done["text"]
    assert done["type"] == "transcript.text.done"


def test_what_isnt_counted_is_estimated_and_what_breaks_off_costs_what_was_relayed(gate: Gate, scribe: Engine) -> None:
    scribe.control(default={"do": [{"say": "one two three"}], "usage": False})
    event = gate.event(hear(gate, "scribe").request_id)
    assert (event["output_tokens"], event["estimated"]) == (3, True)
    scribe.control(default={"do": [{"say": "one two "}, {"close": True}], "usage": False})
    cut = hear(gate, "scribe", stream="true")
    assert b"transcript.text.done" not in cut.body
    event = gate.event(cut.request_id)
    assert (event["status"], event["output_tokens"], event["audio_ms"]) == ("failed", 2, 1500)


def test_its_price_counts_for_prompt_sound_and_words(gate: Gate, scribe: Engine) -> None:
    scribe.control(default={"do": [{"say": "hi"}], "usage": {"prompt_tokens": 50, "completion_tokens": 2}})
    price = {"model": "scribe", "input_nano": 10**6, "output_nano": 10**7, "audio_second_nano": 10**9}
    gate.admin("POST", "/pricing", price)
    try:
        user = gate.make_user(tier="payg", balance_nano=5_000)
        key = gate.make_key(user["name"])["key"]
        body, kind = form(SOUND, model="scribe")
        # A whole context is reserved: nobody knows how many tokens a sound is to a model.
        refused = gate.ask("POST", TRANSCRIPTIONS, body, key=key, Content_Type=kind)
        assert (refused.status, refused.json()["error"]["code"]) == (402, "insufficient_balance")
        answer = hear(gate, "scribe")
        assert gate.event(answer.request_id)["cost_nano"] == 50 + 2 * 10 + 1_500
    finally:
        gate.admin("POST", "/pricing", {"model": "scribe", "input_nano": 0, "output_nano": 0})


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": "srt"}, "response_format", "says no times"),
        ({"response_format": "verbose_json"}, "response_format", "says no times"),
        ({"content": b"OggS" + bytes(100)}, "file", "not ogg"),
        ({"content": b"what is this?"}, "file", "no sound"),
        ({"content": media.wav(0.0)}, "file", "0 s"),
        ({"content": media.flac_head(2**34)}, "file", "s of sound"),
        ({"content": media.wav(40.0, rate=8000)}, "file", "at most 30 s"),
        ({"content": bytes(2**20)}, "file", "no sound"),
        ({"model": "eyes"}, "model", "'transcription'"),
        ({"path": TRANSLATIONS}, "model", "'translation'"),
    ],
    ids=lambda value: str(value)[:50],  # not a megabyte of sound
)
def test_what_it_cant_do_is_named(gate: Gate, fields: dict[str, Any], param: str, words: str) -> None:
    answer = hear(gate, **{"model": "ears", **fields})
    assert answer.status == 400, answer.body
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert all(event["cost_nano"] == 0 for event in gate.find_events(answer.request_id))


def test_one_that_is_declared_to_write_down_does_nothing_else(gate: Gate) -> None:
    card = gate.ask("GET", "/v1/models/recorder").json()
    assert (card["type"], card["abilities"]) == ("audio", ["transcription"])
    answer = gate.ask("POST", CHAT, {"model": "recorder", "messages": [{"role": "user", "content": "hi"}]})
    assert answer.json()["error"]["code"] == "missing_ability"
