"""Models that speak elsewhere: a second Stentor, the hub's inference service, and upstreams that fail."""

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.harness import Gate, until
from tests.serving import Server, model_table
from tests.speaking.conftest import SPEECH, VOICES, start
from tests.speaking.sound import listen
from tests.speaking.upstream import TOKEN, VoiceUpstream, flac_of

TEXT = "hello world 2026"
OWN = [sys.executable, str(Path(__file__).with_name("own_program.py")), "${PORT}"]


@pytest.fixture(scope="module")
def upstream() -> Iterator[VoiceUpstream]:
    with VoiceUpstream() as made:
        yield made


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A second Stentor that speaks in tones."""
    folder = tmp_path_factory.mktemp("peer")
    with Server(folder, model_table(id="tone", engine="tone", preload=True), DURABILITY="process") as server:
        yield server


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory, upstream: VoiceUpstream, peer: Server) -> Iterator[Gate]:
    base = {"type": "tts", "engine": "remote"}
    remote = "[models.remote]\nprice = {characters = 2}\nfirst_byte_s = 20\nhealth_s = 0\n"
    config = "\n".join(
        [
            model_table(id="peer-voice", upstream_model="tone", **base) + remote + 'provider = "peer"\n',
            model_table(id="broken", **base) + remote + f'base_url = "{upstream.url}/v1"\n',
            model_table(source="hf-inference:org/voice") + remote,
            model_table(source="hf-inference:org/cold") + remote,
            model_table(id="own", type="tts", engine="command", command=OWN),
        ]
    )
    settings = {"HF_INFERENCE_URL": upstream.url, "EGRESS_ALLOW": "127.0.0.1"}
    for gate in start(tmp_path_factory.mktemp("far"), config, **settings):
        provider = {"name": "peer", "kind": "openai", "base_url": f"http://127.0.0.1:{peer.port}/v1"}
        gate.admin("POST", "/providers", {**provider, "credential": peer.key})
        gate.admin("POST", "/hf-tokens", {"name": "mine", "token": TOKEN})
        yield gate


@pytest.mark.parametrize("form", ["wav", "mp3", "pcm", "opus"])
def test_sound_of_another_server_is_passed_on_and_metered_here(far: Gate, peer: Server, form: str) -> None:
    body = {"model": "peer-voice", "input": TEXT, "response_format": form, "voice": "tone"}
    answer = far.ask("POST", SPEECH, body)
    own = peer.ask("POST", SPEECH, {**body, "model": "tone"})
    assert answer.headers["content-type"] == own.headers["content-type"]
    assert listen(answer.body, form)[0] == pytest.approx(0.18 * len(TEXT), abs=0.1)
    if form in ("wav", "pcm"):
        assert answer.body == own.body
    event = far.event(answer.request_id)
    assert (event["characters"], event["cost_nano"]) == (len(TEXT), 2000 * len(TEXT))
    assert event["engine"] == "openai"


def test_events_and_json_are_made_of_sound_from_elsewhere(far: Gate) -> None:
    events = far.ask("POST", SPEECH, {"model": "peer-voice", "input": TEXT, "stream_format": "sse"}).events()
    assert events[-1]["type"] == "speech.audio.done"
    answer = far.ask("POST", SPEECH, {"model": "peer-voice", "input": TEXT}, Accept="application/json")
    assert answer.json()["mime_type"] == "audio/wav"


def test_the_hub_is_asked_with_the_token_from_the_vault(far: Gate, upstream: VoiceUpstream) -> None:
    # A client that writes out what it leaves open asks for no form.
    answer = far.ask("POST", SPEECH, {"model": "voice", "input": TEXT, "response_format": None})
    assert answer.headers["content-type"] == "audio/flac"
    assert answer.body == flac_of(TEXT)
    assert upstream.seen[-1] == ("/models/org/voice", f"Bearer {TOKEN}", {"inputs": TEXT})
    event = far.event(answer.request_id)
    assert (event["engine"], event["characters"], event["cost_nano"]) == ("hf-inference", 16, 2000 * 16)


def test_the_hubs_sound_goes_into_json_in_its_own_form(far: Gate) -> None:
    answer = far.ask("POST", SPEECH, {"model": "voice", "input": TEXT}, Accept="application/json").json()
    assert answer["mime_type"] == "audio/flac"
    assert base64.b64decode(answer["audio_base64"]) == flac_of(TEXT)


def test_a_program_of_the_operators_own_speaks_as_openai_does(far: Gate) -> None:
    answer = far.ask("POST", SPEECH, {"model": "own", "input": TEXT, "response_format": "wav"})
    assert (answer.status, answer.headers["content-type"]) == (200, "audio/wav")
    asked = {"model": "own", "input": TEXT, "response_format": "wav", "speed": 1.0}
    assert json.loads(answer.body) == asked  # a voice that nobody named isn't sent
    event = far.event(answer.request_id)
    assert (event["status"], event["characters"], event["audio_ms"]) == ("completed", len(TEXT), 0)
    words = far.ask("POST", SPEECH, {"model": "own", "input": TEXT, "voice": "words"})
    assert (words.status, words.json()["error"]["code"]) == (502, "engine_failed")


@pytest.mark.parametrize(
    ("fields", "param"), [({"response_format": "mp3"}, "response_format"), ({"speed": 2}, "speed")]
)
def test_what_the_hub_can_not_do_is_said(far: Gate, fields: dict[str, object], param: str) -> None:
    answer = far.ask("POST", SPEECH, {"model": "voice", "input": TEXT, **fields})
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)
    assert far.event(answer.request_id)["cost_nano"] == 0


def test_a_model_of_the_hub_that_is_not_ready_is_unavailable(far: Gate) -> None:
    answer = far.ask("POST", SPEECH, {"model": "cold", "input": TEXT})
    assert answer.status in (502, 503)
    assert all(event["cost_nano"] == 0 for event in far.find_events(answer.request_id))


def test_an_upstream_that_breaks_off_is_seen_to(far: Gate, upstream: VoiceUpstream) -> None:
    stream = far.begin({"model": "broken", "input": TEXT, "voice": "breaks"}, path=SPEECH)
    assert stream.status == 200
    upstream.break_off()
    stream.rest()
    assert stream.broken
    event = until(lambda: far.find_events(stream.request_id), timeout_s=60)[0]
    assert (event["status"], event["cost_nano"]) == ("failed", 0)


def test_words_in_place_of_sound_are_a_failure_and_a_refusal_is_passed_on(far: Gate) -> None:
    answer = far.ask("POST", SPEECH, {"model": "broken", "input": TEXT, "voice": "words"})
    assert answer.status == 502
    refused = far.ask("POST", SPEECH, {"model": "broken", "input": TEXT, "voice": "nobody"})
    assert refused.status == 400
    assert "no such voice" in refused.json()["error"]["message"]


def test_models_elsewhere_list_no_voices(far: Gate) -> None:
    assert far.ask("GET", VOICES).json()["data"] == []
