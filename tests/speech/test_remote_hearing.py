"""Models that hear elsewhere: what an upstream is sent, what its answers become, and what is booked."""

import io
import threading
from collections.abc import Iterator

import av
import psutil
import pytest

from stentor.runtime.offers import OFFERS
from tests.http.harness import until
from tests.kinds.models import fetch
from tests.serving import Server, model_table
from tests.speech import clips
from tests.speech.conftest import TRANSCRIPTIONS, TRANSLATIONS, Hearing, form, start
from tests.speech.test_sharing import MIB, most_resident
from tests.speech.upstream import HearingUpstream
from tests.speech.words import plain_words

TOKEN = "canary-hearing-token-55bd02"
SECOND_NANO = 2000
SOUND = clips.wav(clips.silence(2.5))
SEGMENTS = [
    {"id": 0, "start": 0.0, "end": 1.5, "text": " Hello there.", "tokens": [1, 2], "avg_logprob": None},
    {"id": 1, "start": 1.5, "end": 2.5, "text": " Good day.", "words": None},
]
VERBOSE = {"task": "transcribe", "language": "english", "duration": "2.5", "text": "Hello there. Good day.",
           "segments": SEGMENTS, "words": [{"word": "Hello", "start": 0.0, "end": 0.5}]}  # fmt: skip


@pytest.fixture(scope="module")
def upstream() -> Iterator[HearingUpstream]:
    with HearingUpstream() as made:
        yield made


@pytest.fixture(scope="module")
def _far(tmp_path_factory: pytest.TempPathFactory, upstream: HearingUpstream) -> Iterator[Hearing]:
    remote = f"[models.remote]\nprice = {{audio_second = {SECOND_NANO / 10**9:.6f}}}\nhealth_s = 0\n"
    config = "\n".join(
        [
            model_table(id="far", type="audio", upstream_model="whisper-1") + remote + 'provider = "elsewhere"\n',
            model_table(source="hf-inference:org/ears", type="audio") + remote,
        ]
    )
    settings = {
        "EGRESS_ALLOW": "127.0.0.1",
        "HF_INFERENCE_URL": upstream.url,
        "AUDIO_MAX_MB": "60",
        "AUDIO_MAX_S": "900",
        "GATEWAY_WORKERS": "1",
    }
    for gate in start(tmp_path_factory.mktemp("far"), config, **settings):
        provider = {"name": "elsewhere", "kind": "openai", "base_url": f"{upstream.url}/v1", "credential": TOKEN}
        gate.admin("POST", "/providers", provider)
        gate.admin("POST", "/hf-tokens", {"name": "mine", "token": TOKEN})
        yield gate


@pytest.fixture
def far(_far: Hearing, upstream: HearingUpstream) -> Iterator[Hearing]:
    """A server whose models hear elsewhere."""
    upstream.behave((200, {"text": "hello"}))
    yield _far
    until(lambda: _far.metric("stentor_open_requests"), lambda count: count == 0, 60)
    _far.check_spool()


# -- what is sent and answered


def test_the_file_is_passed_on_as_it_is_with_what_is_known_of_it(far: Hearing, upstream: HearingUpstream) -> None:
    upstream.behave((200, {"text": " hello\n", "usage": {"type": "duration", "seconds": 3}}))
    answer = far.hear(SOUND, model="far", prompt="names:\r\nBob", temperature="0.2", language="de")
    assert answer.json() == {"text": "hello", "usage": {"type": "duration", "seconds": 3}}
    asked = upstream.last
    assert (asked.path, asked.authorization) == ("/v1/audio/transcriptions", f"Bearer {TOKEN}")
    assert (asked.filename, asked.sound) == ("sound.wav", SOUND)
    assert asked.fields == [("model", "whisper-1"), ("response_format", "json"), ("language", "de"),
                            ("prompt", "names:\r\nBob"), ("temperature", "0.2")]  # fmt: skip
    event = far.event(answer.request_id)
    assert (event["status"], event["audio_ms"], event["cost_nano"]) == ("completed", 3000, 3 * SECOND_NANO)
    assert event["engine"] == "openai"


def test_each_form_is_made_here(far: Hearing, upstream: HearingUpstream) -> None:
    upstream.behave((200, VERBOSE))
    srt = far.hear(SOUND, model="far", response_format="srt")
    assert srt.body.decode().startswith("1\n00:00:00,000 --> 00:00:01,500\nHello there.\n\n2\n")
    assert ("response_format", "verbose_json") in upstream.last.fields
    assert far.hear(SOUND, model="far", response_format="vtt").body.startswith(b"WEBVTT\n\n00:00:00.000")
    assert far.hear(SOUND, model="far", response_format="text").body == b"Hello there. Good day.\n"
    wanted = ["word", "segment"]
    whole = far.hear(SOUND, model="far", response_format="verbose_json", **{"timestamp_granularities[]": wanted})
    assert sorted(value for name, value in upstream.last.fields if "granularities" in name) == sorted(wanted)
    body = whole.json()
    assert (body["language"], body["duration"], body["text"]) == ("english", 2.5, VERBOSE["text"])
    assert [segment["text"] for segment in body["segments"]] == [" Hello there.", " Good day."]
    assert body["words"] == VERBOSE["words"]
    assert far.event(whole.request_id)["audio_ms"] == 2500


def test_a_stream_has_it_all_at_once(far: Hearing) -> None:
    answer = far.hear(SOUND, model="far", stream="true")
    assert [event["type"] for event in answer.events()] == ["transcript.text.delta", "transcript.text.done"]
    assert answer.events()[-1]["text"] == "hello"


def test_translations_go_to_their_own_path(far: Hearing, upstream: HearingUpstream) -> None:
    assert far.hear(SOUND, model="far", path=TRANSLATIONS).json()["text"] == "hello"
    assert upstream.last.path == "/v1/audio/translations"


def test_the_hub_is_sent_the_sound_alone(far: Hearing, upstream: HearingUpstream) -> None:
    answer = far.hear(SOUND, model="ears", language="")
    assert answer.json()["text"] == "hello"
    asked = upstream.last
    assert (asked.path, asked.authorization, asked.media_type) == ("/models/org/ears", f"Bearer {TOKEN}", "audio/wav")
    assert asked.sound == SOUND
    assert far.event(answer.request_id)["audio_ms"] == 2500
    for wrong in ({"language": "en"}, {"language": "", "response_format": "srt"}):
        refused = far.hear(SOUND, model="ears", **wrong)
        assert (refused.status, refused.json()["error"]["param"]) == (400, list(wrong)[-1])


# -- what is booked


@pytest.mark.parametrize(
    ("usage", "audio_ms", "tokens", "estimated"),
    [
        # Nobody says how long it is: its own head does. Tokens that nobody counted are counted here.
        ({}, 2500, 1, True),
        ({"usage": {"type": "tokens", "input_tokens": 40, "output_tokens": 9}}, 2500, 9, False),
        ({"duration": 1.25, "usage": {"output_tokens": 2}}, 1250, 2, False),
        # It can't have been longer than the file, and so nobody pays for more than was reserved.
        ({"duration": 999.0, "usage": {"output_tokens": 10**6}}, 3000, 56, False),
    ],
)
def test_seconds_are_the_upstreams_or_the_files(
    far: Hearing, upstream: HearingUpstream, usage: dict[str, object], audio_ms: int, tokens: int, estimated: bool
) -> None:
    upstream.behave((200, {"text": "hello", **usage}))
    event = far.event(far.hear(SOUND, model="far").request_id)
    assert (event["audio_ms"], event["output_tokens"], event["estimated"]) == (audio_ms, tokens, estimated)
    assert event["cost_nano"] == audio_ms * SECOND_NANO // 1000


def test_what_nobody_measured_is_marked_as_an_estimate(far: Hearing, upstream: HearingUpstream) -> None:
    upstream.behave((200, {"text": "hello", "usage": {"output_tokens": 1}}))
    sound = clips.encode(clips.join(clips.SENTENCES[:2]), "mp3")
    event = far.event(far.hear(sound, model="far").request_id)
    assert event["estimated"] is True
    with av.open(io.BytesIO(sound)) as file:
        assert event["audio_ms"] == pytest.approx((file.duration or 0) / 1000, abs=60)


def test_what_says_that_it_is_too_long_is_not_sent(far: Hearing, upstream: HearingUpstream) -> None:
    sound, before = clips.encode(clips.silence(1.0), "flac"), len(upstream.server.seen)
    packed = int.from_bytes(sound[18:26], "big") >> 36 << 36 | 901 * clips.SPOKEN_RATE  # the samples that it claims
    refused = far.hear(sound[:18] + packed.to_bytes(8, "big") + sound[26:], model="far")
    assert (refused.status, refused.json()["error"]["param"]) == (400, "file")
    assert "901.0 s" in refused.json()["error"]["message"]
    assert len(upstream.server.seen) == before


def test_what_says_less_than_it_holds_is_paid_for_what_was_heard(far: Hearing, upstream: HearingUpstream) -> None:
    upstream.behave((200, {"text": "hello", "duration": 950.0, "usage": {"output_tokens": 1}}))
    sound = clips.encode(clips.silence(1.0), "mp3") + bytes(600_000)
    event = far.event(far.hear(sound, model="far").request_id)
    assert (event["audio_ms"], event["cost_nano"]) == (950_000, 950 * SECOND_NANO)


def test_more_than_the_balance_is_not_sent(far: Hearing, upstream: HearingUpstream) -> None:
    user = far.make_user(tier="payg", balance_nano=2 * SECOND_NANO)
    key = far.make_key(user["id"])["key"]
    before = len(upstream.server.seen)
    refused = far.hear(SOUND, model="far", key=key)
    assert (refused.status, refused.json()["error"]["code"]) == (402, "insufficient_balance")
    assert len(upstream.server.seen) == before
    assert far.hear(clips.wav(clips.silence(1.5)), model="far", key=key).status == 200
    assert far.balance(user["id"]) == 2 * SECOND_NANO - 3 * SECOND_NANO // 2


# -- bad ends


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no sound at all" * 9, "no sound that is known"),
        (clips.wav([]), "0.0 s"),
        (SOUND[:30], "without samples"),
        (clips.wav(clips.silence(0.1))[:40] + b"\xff\xff\xff\xff" + bytes(45 * MIB), "at most 900 s"),
    ],
)
def test_what_is_no_sound_is_not_sent(far: Hearing, upstream: HearingUpstream, content: bytes, words: str) -> None:
    before = len(upstream.server.seen)
    answer = far.hear(content, model="far")
    assert (answer.status, answer.json()["error"]["param"]) == (400, "file")
    assert words in answer.json()["error"]["message"]
    assert len(upstream.server.seen) == before
    assert far.event(answer.request_id)["cost_nano"] == 0


@pytest.mark.parametrize(
    ("status", "body", "answered"),
    [
        (400, {"error": {"message": "the sound is odd", "type": "invalid_request_error"}}, 400),
        (200, {"words": "none"}, 502),
        (200, {"text": "x", "segments": [{"start": "soon"}]}, 502),
        (200, [], 502),
        (500, {"error": "oh"}, 502),
    ],
)
def test_failures_cost_nothing(
    far: Hearing, upstream: HearingUpstream, status: int, body: object, answered: int
) -> None:
    upstream.behave((status, body))
    answer = far.hear(SOUND, model="far")
    assert answer.status == answered, answer.body
    assert TOKEN.encode() not in answer.body
    assert all(event["cost_nano"] == 0 for event in far.find_events(answer.request_id))
    # One that failed is looked at again before long.
    upstream.behave((200, {"text": "hello"}))
    until(lambda: far.hear(SOUND, model="far").status, lambda code: code == 200, 60)


def test_one_that_answers_before_it_has_listened(far: Hearing, upstream: HearingUpstream) -> None:
    upstream.behave((200, {}), refuse_early=True)
    assert far.hear(clips.wav(clips.silence(300)), model="far").status in (502, 503)
    upstream.behave((200, {"text": "hello"}))
    until(lambda: far.hear(SOUND, model="far").status, lambda code: code == 200, 60)


def test_who_leaves_pays_for_the_sound(far: Hearing, upstream: HearingUpstream) -> None:
    upstream.behave((200, {"text": "hello"}), waits=True)
    key = far.make_key()
    body, kind = form(SOUND, model="far")
    connection = far.server.connect(60)
    connection.request("POST", TRANSCRIPTIONS, body, {"Authorization": f"Bearer {key['key']}", "Content-Type": kind})
    assert upstream.server.arrived.wait(60)
    connection.close()
    event = until(lambda: far.events_of_key(key["id"]), timeout_s=60)[0]
    assert (event["status"], event["reason"], event["audio_ms"]) == ("cancelled", "client_left", 2500)
    assert event["cost_nano"] == 5 * SECOND_NANO // 2


def test_an_upload_is_never_whole_in_memory(far: Hearing, upstream: HearingUpstream) -> None:
    upstream.behave((200, {"text": "hello"}), only_count=True)
    far.hear(SOUND, model="far")
    sound = clips.wav(clips.silence(890.0, 32_000), 32_000)
    assert len(sound) > 50 * MIB
    process, stop, most = psutil.Process(far.server.pid), threading.Event(), [0]
    before = process.memory_info().rss
    watching = threading.Thread(target=lambda: most.append(most_resident(process, stop)))
    watching.start()
    try:
        answer = far.hear(sound, model="far")
    finally:
        stop.set()
        watching.join()
    assert answer.status == 200
    assert far.event(answer.request_id)["audio_ms"] == 890_000
    grown = max(most) - before
    assert grown < 24 * MIB, f"{grown / MIB:.0f} MiB more"


# -- a real one


def test_another_stentor_hears(tmp_path_factory: pytest.TempPathFactory) -> None:
    fetch(OFFERS["whisper-tiny.en"].source)
    folder = tmp_path_factory.mktemp("peer")
    settings = {"DURABILITY": "process", "MODEL_CACHE": str(clips.CACHE), "HF_ENDPOINT": "http://127.0.0.1:9"}
    with Server(folder, model_table(id="tiny", source="whisper-tiny.en", threads=1), **settings) as peer:
        remote = f'[models.remote]\nprice = {{audio_second = 0.000001}}\nbase_url = "http://127.0.0.1:{peer.port}/v1"\n'
        config = model_table(id="far", type="audio", upstream_model="tiny") + remote + 'provider = "peer"\n'
        for gate in start(tmp_path_factory.mktemp("near"), config, EGRESS_ALLOW="127.0.0.1"):
            provider = {"name": "peer", "kind": "openai", "base_url": f"http://127.0.0.1:{peer.port}/v1"}
            gate.admin("POST", "/providers", {**provider, "credential": peer.key})
            path = clips.speak(clips.SENTENCES[1])
            answer = gate.hear(path.read_bytes(), model="far", response_format="verbose_json")
            assert plain_words(answer.json()["text"]) == plain_words(clips.SENTENCES[1])
            assert answer.json()["segments"]
            seconds = len(clips.samples_of(path)) / clips.SPOKEN_RATE
            assert gate.event(answer.request_id)["audio_ms"] == pytest.approx(seconds * 1000, abs=20)
