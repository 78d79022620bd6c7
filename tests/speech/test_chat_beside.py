"""Chat on a machine that speaks and listens meanwhile: a real voice, a real recognizer and a real language model."""

import http.client
import threading
from collections.abc import Callable, Iterator

import pytest

from stentor.runtime.offers import OFFERS
from stentor.settings.models import STARTER_SOURCE
from tests.http.harness import Gate, Stream, until
from tests.kinds.models import fetch
from tests.serving import model_table
from tests.speech import clips
from tests.speech.conftest import TRANSCRIPTIONS, Hearing, form, start

SENTENCE = "This is a sentence that goes on for a while before it ends. "
QUESTIONS = ("Name the capital of France.", "What is two and two?", "Say a colour.")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hearing]:
    """A server with one model of each kind, each with one thread."""
    for source in (OFFERS["whisper-tiny.en"].source, OFFERS["piper-joe"].source, STARTER_SOURCE):
        fetch(source)
    config = "\n".join(
        [
            model_table(id="joe", source="piper-joe", threads=1, preload=True),
            model_table(id="tiny", source="whisper-tiny.en", threads=1, parallel=2, preload=True),
            model_table(id="starter", source=STARTER_SOURCE, threads=1, parallel=1, preload=True),
        ]
    )
    yield from start(tmp_path_factory.mktemp("shared"), config)


class Reader:
    """Reads an answer to its end in a thread of its own; ``size`` is how many bytes have come."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.size = 0
        self._response = connection.getresponse()
        self._stream = Stream(connection, self._response)
        assert self._stream.status == 200
        self._thread = threading.Thread(target=self._read)
        self._leave = threading.Event()
        self._thread.start()

    @property
    def request_id(self) -> str:
        return self._stream.request_id

    def _read(self) -> None:
        while not self._leave.is_set() and (piece := self._response.read1(65536)):
            self.size += len(piece)
        self._stream.leave()

    def leave(self) -> None:
        """Hang up."""
        self._leave.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


def begin_speech(gate: Hearing) -> Reader:
    text = SENTENCE * (65_000 // len(SENTENCE))  # an hour of sound
    return Reader(
        gate.send({"model": "joe", "voice": "joe", "input": text, "response_format": "wav"}, path="/v1/audio/speech")
    )


def begin_transcription(gate: Hearing) -> Reader:
    sound = clips.join(clips.SENTENCES * 12, 0.3)  # a quarter of an hour
    body, kind = form(clips.wav(sound), model="tiny", language="en", stream="true")
    connection = gate.server.connect(110)
    connection.request("POST", TRANSCRIPTIONS, body, {"Authorization": f"Bearer {gate.key}", "Content-Type": kind})
    return Reader(connection)


def ask_chat(gate: Gate, question: str) -> None:
    answer = gate.chat(question, model="starter", max_tokens=12, temperature=0)
    assert answer.status == 200
    assert answer.json()["choices"][0]["message"]["content"].strip()


@pytest.mark.parametrize("begin", [begin_speech, begin_transcription])
def test_chat_is_answered_while_sound_is_worked_on(shared: Hearing, begin: Callable[[Hearing], Reader]) -> None:
    other = begin(shared)
    try:
        for question in QUESTIONS:
            ask_chat(shared, question)
            # It was not waited for, and it isn't kept from its work either.
            assert shared.find_events(other.request_id) == []
        had = other.size
        until(lambda: other.size, lambda size: size > had, 60)
    finally:
        other.leave()
    event = until(lambda: shared.find_events(other.request_id), timeout_s=60)[0]
    assert (event["status"], event["reason"]) == ("cancelled", "client_left")
    if begin is begin_transcription:  # all of the sound is paid, and the words that were told
        assert event["audio_ms"] > 600_000
        assert event["output_tokens"] > 5
    until(shared.running, lambda count: count == 0, 60)
    shared.check_spool()


def test_speech_transcription_and_chat_at_a_time(shared: Hearing) -> None:
    others = [begin_speech(shared), begin_transcription(shared)]
    try:
        ask_chat(shared, QUESTIONS[0])
        assert shared.hear(clips.speak(clips.SENTENCES[0]).read_bytes()).status == 200
        # Neither the chat nor the short sound waited for the long ones.
        assert [shared.find_events(other.request_id) for other in others] == [[], []]
        assert shared.running() == 2
    finally:
        for other in others:
            other.leave()
    until(shared.running, lambda count: count == 0, 60)
