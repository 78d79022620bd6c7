"""Transcriptions as OpenAI's client for Node.js asks for them."""

from pathlib import Path

from tests.speech import clips
from tests.speech.conftest import Hearing
from tests.speech.node import run_script
from tests.speech.words import plain_words

SCRIPT = """
const file = () => fs.createReadStream(args[0]);
const found = {};
for (const response_format of ['json', 'text', 'srt', 'vtt', 'verbose_json'])
  found[response_format] = await client.audio.transcriptions.create({
    model: 'tiny', file: file(), language: 'en', response_format });
found.events = [];
for await (const event of await client.audio.transcriptions.create({ model: 'tiny', file: file(), stream: true }))
  found.events.push(event);
found.translation = await client.audio.translations.create({ model: 'base', file: file() });
try {
  await client.audio.transcriptions.create({ model: 'tiny', file: fs.createReadStream(args[1]) });
} catch (error) {
  found.error = { status: error.status, param: error.param, name: error.constructor.name };
}
console.log(JSON.stringify(found));
"""


def test_each_form_and_the_stream(gate: Hearing, node: Path) -> None:
    sentence = clips.SENTENCES[1]
    path = clips.speak(sentence)
    base_url = gate.server.ready["base_url"]
    found = run_script(node, SCRIPT, base_url, gate.key, str(path), str(node / "package.json"))
    wanted = plain_words(sentence)
    assert plain_words(found["json"]["text"]) == wanted
    assert plain_words(found["text"]) == wanted
    assert found["srt"].startswith("1\n00:00:0")
    assert found["vtt"].startswith("WEBVTT\n\n00:00:0")
    assert found["verbose_json"]["language"] == "english"
    assert plain_words(found["verbose_json"]["segments"][0]["text"])[0] == wanted[0]
    kinds = [event["type"] for event in found["events"]]
    assert kinds == ["transcript.text.delta"] * (len(kinds) - 1) + ["transcript.text.done"]
    assert plain_words(found["events"][-1]["text"]) == wanted
    assert len(set(plain_words(found["translation"]["text"])) & set(wanted)) > 5
    assert found["error"] == {"status": 400, "param": "file", "name": "BadRequestError"}
