"""Transcriptions and translations with real models, asked as clients ask."""

import io
import json
import re

import openai
import pytest

from tests.speech import clips
from tests.speech.conftest import TRANSLATIONS, Hearing
from tests.speech.words import plain_words

SENTENCE = clips.SENTENCES[1]


def spoken() -> bytes:
    """The sentence as a WAV file."""
    return clips.speak(SENTENCE).read_bytes()


def test_json_is_text_and_seconds(client: openai.OpenAI) -> None:
    heard = client.audio.transcriptions.create(model="tiny", file=("a.wav", spoken()), language="en")
    assert plain_words(heard.text) == plain_words(SENTENCE)
    assert heard.usage is not None
    assert heard.usage.type == "duration"
    assert heard.usage.seconds == 4


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
def test_plain_forms(client: openai.OpenAI, form: str) -> None:
    heard = str(
        client.audio.transcriptions.create(
            model="tiny",
            file=("a.wav", spoken()),
            response_format=form,  # type: ignore[call-overload]
        )
    )
    if form == "text":
        assert plain_words(heard) == plain_words(SENTENCE)
        return
    point = "," if form == "srt" else "."
    cue = re.compile(rf"(\d\d:\d\d:\d\d\{point}\d{{3}}) --> (\d\d:\d\d:\d\d\{point}\d{{3}})\n(.+)\n\n")
    assert heard.startswith("1\n" if form == "srt" else "WEBVTT\n\n")
    found = cue.findall(heard)
    assert plain_words(" ".join(text for _, _, text in found)) == plain_words(SENTENCE)
    assert all(start < end for start, end, _ in found)


def test_verbose_json_has_segments_and_words(client: openai.OpenAI) -> None:
    heard = client.audio.transcriptions.create(
        model="base",
        file=("a.wav", spoken()),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert heard.language == "english"
    assert 3.0 < float(heard.duration) < 4.5
    assert heard.segments is not None
    assert heard.words is not None
    assert "".join(segment.text for segment in heard.segments).strip() == heard.text
    assert [word.word.strip(".,").lower() for word in heard.words] == plain_words(SENTENCE)
    times = [time for word in heard.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] <= float(heard.duration) + 0.1


def test_granularities_choose_what_is_told(gate: Hearing) -> None:
    words = gate.hear(spoken(), response_format="verbose_json", **{"timestamp_granularities[]": "word"}).json()
    assert words["words"]
    assert "segments" not in words
    segments = gate.hear(spoken(), response_format="verbose_json").json()
    assert segments["segments"]
    assert "words" not in segments


def test_a_stream_tells_the_text_piece_by_piece(client: openai.OpenAI) -> None:
    sound = clips.wav(clips.join(clips.SENTENCES[:10]))
    deltas, done = [], None
    stream = client.audio.transcriptions.create(model="tiny", file=("a.wav", sound), language="en", stream=True)
    for event in stream:
        if event.type == "transcript.text.delta":
            assert done is None
            deltas.append(event.delta)
        elif event.type == "transcript.text.done":
            done = event
    assert done is not None
    assert len(deltas) >= 2
    assert "".join(deltas).strip() == done.text
    assert done.usage is not None
    assert (done.usage.type, done.usage.input_tokens) == ("tokens", 0)
    assert done.usage.total_tokens == done.usage.output_tokens > 20
    found, wanted = set(plain_words(done.text)), set(plain_words(" ".join(clips.SENTENCES[:10])))
    assert len(found & wanted) > 0.85 * len(wanted)


@pytest.mark.parametrize("form", sorted(clips.FORMATS))
def test_every_format_is_known_by_its_content(gate: Hearing, form: str) -> None:
    sound = clips.encode(clips.samples_of(clips.speak(SENTENCE)), form)
    answer = gate.hear(sound, filename="it.is.not.called.so.txt")
    assert answer.status == 200, answer.body
    assert plain_words(answer.json()["text"]) == plain_words(SENTENCE)


def test_silence_is_no_text(gate: Hearing) -> None:
    answer = gate.hear(clips.wav(clips.silence(20.0)))
    assert answer.status == 200
    assert answer.json() == {"text": "", "usage": {"type": "duration", "seconds": 20}}
    stream = gate.hear(clips.wav(clips.silence(2.0)), stream="true")
    assert [event["type"] for event in stream.events()] == ["transcript.text.done"]
    assert gate.hear(clips.wav(clips.silence(1.0)), response_format="vtt").body == b"WEBVTT\n\n"


def test_long_sound_is_cut_at_its_silences(gate: Hearing) -> None:
    """Over a minute, with a long pause in the middle: nothing is lost at the cuts, and times are those of the whole."""
    sentences = clips.SENTENCES[:14]
    first = clips.join(sentences[:7])
    whole = clips.numpy.concatenate([first, clips.silence(8.0), clips.join(sentences[7:])])
    answer = gate.hear(clips.wav(whole), response_format="verbose_json").json()
    pause_s = len(first) / clips.SPOKEN_RATE
    words = plain_words(answer["text"])
    wanted = plain_words(" ".join(sentences))
    assert abs(len(words) - len(wanted)) <= 5
    assert len(set(words) & set(wanted)) > 0.85 * len(set(wanted))
    assert answer["duration"] == pytest.approx(len(whole) / clips.SPOKEN_RATE, abs=0.1)
    starts = [segment["start"] for segment in answer["segments"]]
    assert starts == sorted(starts)
    after = [segment for segment in answer["segments"] if segment["start"] > pause_s + 7]
    assert plain_words(after[0]["text"])[0] == plain_words(sentences[7])[0]
    assert after[0]["start"] == pytest.approx(pause_s + 8, abs=1.0)


def test_translations_are_for_models_that_know_languages(gate: Hearing, client: openai.OpenAI) -> None:
    with pytest.warns(DeprecationWarning, match="."):  # OpenAI would have it done by other models
        heard = client.audio.translations.create(model="base", file=("a.wav", spoken()))
    assert len(set(plain_words(heard.text)) & set(plain_words(SENTENCE))) > 5
    refused = gate.hear(spoken(), path=TRANSLATIONS)
    assert refused.status == 400
    assert refused.json()["error"]["code"] == "missing_ability"
    assert "translation" in refused.json()["error"]["message"]


def test_a_prompt_spells_names(gate: Hearing) -> None:
    text = "Our colleague Katharyna Kowalsky will visit the office."
    sound = clips.speak(text).read_bytes()
    plain = gate.hear(sound, model="base").json()["text"]
    prompted = gate.hear(sound, model="base", prompt="Katharyna Kowalsky, Katharyna Kowalsky.").json()["text"]
    assert "Katharyna" in prompted
    assert "Katharyna" not in plain


def test_what_other_servers_clients_say_is_understood(gate: Hearing) -> None:
    said = {"timestamp_granularities": "word,segment", "response_format": "verbose_json", "language": "auto"}
    heard = gate.hear(spoken(), **said, **{"chunking_strategy[type]": "server_vad", "keywords[]": ["train", "station"]})
    assert heard.json()["words"]
    assert heard.json()["segments"]


def test_usage_is_seconds_and_tokens(gate: Hearing) -> None:
    answer = gate.hear(spoken(), client_request_id="x")
    event = gate.event(answer.request_id)
    assert (event["endpoint"], event["model"], event["status"]) == ("/v1/audio/transcriptions", "tiny", "completed")
    assert 3_000 < event["audio_ms"] < 4_500
    assert 10 < event["output_tokens"] < 20
    assert event["input_tokens"] == 0
    assert not event["estimated"]
    assert answer.headers["x-stentor-model"] == "tiny"
    assert "x-stentor-cost" in answer.headers


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "nobody"}, "model"),
        ({"response_format": "docx"}, "response_format"),
        ({"temperature": "2"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"language": "klingon"}, "language"),
        ({"language": "de"}, "language"),
        ({"stream": "perhaps"}, "stream"),
        ({"stream": "true", "response_format": "srt"}, "response_format"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities"),
        ({"timestamp_granularities[]": "letter", "response_format": "verbose_json"}, "timestamp_granularities"),
        ({"include[]": "logprobs"}, "include"),
        ({"known_speaker_names[]": "Ann"}, "known_speaker_names"),
        ({"chunking_strategy": "by_colour"}, "chunking_strategy"),
        ({"model": "base", "language": "yue"}, "language"),  # a newer Whisper's
        ({"prompt": "x" * 70_000}, "prompt"),
    ],
)
def test_wrong_fields_are_named(gate: Hearing, fields: dict[str, str], param: str) -> None:
    answer = gate.hear(spoken(), **fields)
    assert 400 <= answer.status < 500
    assert answer.json()["error"]["param"] == param


def test_a_model_for_text_hears_nothing(gate: Hearing) -> None:
    answer = gate.ask("POST", "/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "x"}]})
    assert answer.status == 400
    assert answer.json()["error"]["code"] == "missing_ability"


def test_keys_scopes_and_models_hold_here_too(gate: Hearing) -> None:
    assert gate.hear(spoken(), key="sk-wrong").status == 401
    other = gate.make_key(models=["base"])["key"]
    assert gate.hear(spoken(), key=other).status == 404
    assert gate.hear(spoken(), key=other, model="base").status == 200


def test_the_models_say_what_they_can(gate: Hearing) -> None:
    rows = {row["id"]: row for row in gate.ask("GET", "/v1/models").json()["data"]}
    assert rows["tiny"]["type"] == "audio"
    assert rows["tiny"]["abilities"] == ["transcription"]
    assert rows["base"]["abilities"] == ["transcription", "translation"]


def test_an_upload_of_any_name_is_read_from_a_stream(client: openai.OpenAI) -> None:
    class Slow(io.BytesIO):
        name = "voice.ogg"

        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size, 1000) if size and size > 0 else size)

    sound = Slow(clips.encode(clips.samples_of(clips.speak(SENTENCE)), "ogg"))
    heard = client.audio.transcriptions.create(model="tiny", file=sound)
    assert plain_words(heard.text) == plain_words(SENTENCE)


def test_the_document_has_the_form(gate: Hearing) -> None:
    operation = gate.contract.operation("POST", "/v1/audio/transcriptions")
    assert operation is not None
    assert list(operation["requestBody"]["content"]) == ["multipart/form-data"]
    assert json.dumps(operation).count("text/vtt") == 1
