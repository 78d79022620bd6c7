"""Two engines of one model: requests go to both, and who loses one loses its own requests alone."""

import http.client
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stentor.runtime.offers import OFFERS
from tests.http.harness import Stream, until
from tests.kinds.models import fetch
from tests.serving import model_table
from tests.speech import clips
from tests.speech.conftest import TRANSCRIPTIONS, Hearing, form, start

SPEECH = "/v1/audio/speech"
SENTENCE = "This is a sentence that goes on for a while before it ends. "


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hearing]:
    """A server with two voices and two recognizers, each with one place."""
    for name in ("whisper-tiny.en", "piper-joe"):
        fetch(OFFERS[name].source)
    same = {"instances": 2, "parallel": 1, "threads": 1, "preload": True}
    config = "\n".join(
        [model_table(id="joe", source="piper-joe", **same), model_table(id="tiny", source="whisper-tiny.en", **same)]
    )
    yield from start(tmp_path_factory.mktemp("pairs"), config)


def begin_speech(gate: Hearing, sentences: int) -> Stream:
    return gate.begin({"model": "joe", "input": SENTENCE * sentences, "response_format": "wav"}, path=SPEECH)


def begin_hearing(gate: Hearing, times: int) -> Stream:
    sound = clips.wav(clips.join(clips.SENTENCES * times, 0.3))
    body, kind = form(sound, model="tiny", language="en", stream="true")
    connection: http.client.HTTPConnection = gate.server.connect(110)
    connection.request("POST", TRANSCRIPTIONS, body, {"Authorization": f"Bearer {gate.key}", "Content-Type": kind})
    return Stream(connection, connection.getresponse())


def loaded(gate: Hearing, model: str) -> list[dict[str, Any]]:
    slots = gate.admin("GET", "/slots")["data"]
    return [slot for slot in slots if slot["model"] == model and slot["status"] == "loaded"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("model", "begin"), [("joe", begin_speech), ("tiny", begin_hearing)])
def test_one_of_two_is_killed_and_the_other_goes_on(
    pairs: Hearing, model: str, begin: Callable[[Hearing, int], Stream]
) -> None:
    until(lambda: loaded(pairs, model), lambda slots: len(slots) == 2, 110)
    long = begin(pairs, 1000 if model == "joe" else 12)
    busy = until(lambda: [slot for slot in loaded(pairs, model) if slot["running"]], bool, 60)
    short = begin(pairs, 3 if model == "joe" else 1)
    assert {long.status, short.status} == {200}
    assert long.headers["x-stentor-instance"] != short.headers["x-stentor-instance"]
    os.kill(busy[0]["pid"], signal.SIGKILL)
    long.rest()
    assert long.broken or b"transcript.text.done" not in long.body
    short.rest()
    assert not short.broken
    assert pairs.event(short.request_id)["status"] == "completed"
    events = until(lambda: pairs.find_events(long.request_id), timeout_s=60)
    assert [event["status"] for event in events] == ["failed"]
    pids = until(lambda: {slot["pid"] for slot in loaded(pairs, model)}, lambda found: len(found) == 2, 110)
    assert busy[0]["pid"] not in pids
    again = begin(pairs, 1)
    again.rest()
    assert (again.status, again.broken) == (200, False)
    until(pairs.running, lambda count: count == 0, 60)
