"""Speech as OpenAI's client for Node.js asks for it."""

import base64
import json
from pathlib import Path

import pytest

from stentor.core.sound import SPEECH_FORMS
from tests.http.harness import Gate
from tests.speaking.sound import listen, loudness
from tests.speech.node import run_script

TEXT = "The quick brown fox jumps over the lazy dog near the river."
LONG = " ".join(f"This is sentence number {n}, and it goes on for a while before it ends." for n in range(1, 7))
SCRIPT = """
const [folder, formats, text, long] = [args[0], JSON.parse(args[1]), args[2], args[3]];
const say = (fields) => client.audio.speech.create({ model: 'joe', voice: 'joe', input: text, ...fields });
const found = { types: {}, pieces: {}, ids: {} };
for (const response_format of formats) {
  const answer = await say({ response_format });
  found.types[response_format] = answer.headers.get('content-type');
  fs.writeFileSync(`${folder}/whole.${response_format}`, Buffer.from(await answer.arrayBuffer()));
}
for (const response_format of ['mp3', 'pcm']) {
  const answer = await say({ response_format, input: long });
  found.ids[response_format] = answer.headers.get('x-request-id');
  const pieces = [];
  for await (const piece of answer.body) pieces.push(piece);
  found.pieces[response_format] = pieces.length;
  fs.writeFileSync(`${folder}/streamed.${response_format}`, Buffer.concat(pieces));
}
const answer = await say({ response_format: 'pcm', stream_format: 'sse' });
found.events = (await answer.text()).split('\\n').filter((line) => line.startsWith('data: '))
  .map((line) => JSON.parse(line.slice(6)));
try {
  await say({ voice: 'nobody' });
} catch (error) {
  found.error = { status: error.status, param: error.param, name: error.constructor.name };
}
console.log(JSON.stringify(found));
"""
TYPES = {
    "mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav",
    "pcm": "audio/pcm",
}  # fmt: skip


def test_each_form_and_the_streams(gate: Gate, node: Path, tmp_path: Path) -> None:
    base_url = gate.server.ready["base_url"]
    found = run_script(node, SCRIPT, base_url, gate.key, str(tmp_path), json.dumps(SPEECH_FORMS), TEXT, LONG)
    assert found["types"] == TYPES
    for form in SPEECH_FORMS:
        seconds, _, samples = listen((tmp_path / f"whole.{form}").read_bytes(), form)
        assert 2.0 < seconds < 8.0
        assert loudness(samples) > 300
    for form in ("mp3", "pcm"):
        seconds, _, _ = listen((tmp_path / f"streamed.{form}").read_bytes(), form)
        event = gate.event(found["ids"][form])
        assert event["characters"] == len(LONG)
        assert event["audio_ms"] == pytest.approx(seconds * 1000, abs=200)
        # It came as it was made.
        assert found["pieces"][form] > 1
        assert event["first_token_us"] < 0.9 * event["latency_us"]
    deltas, done = found["events"][:-1], found["events"][-1]
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert done["type"] == "speech.audio.done"
    assert 2.0 < listen(b"".join(base64.b64decode(event["audio"]) for event in deltas), "pcm")[0] < 8.0
    assert found["error"] == {"status": 400, "param": "voice", "name": "BadRequestError"}
