"""How well and how fast the recognizers hear: twenty sentences of a real voice, and their word error rate."""

import shutil
from array import array
from base64 import b64decode

import jiwer
import msgspec
import numpy
import pytest

from stentor.engines.kokoro import PACE, KokoroSynthesizer
from stentor.engines.speaking.sentences import split_sentences
from stentor.engines.speaking.synthesis import Speech, SpeechOrder
from stentor.runtime.offers import OFFERS
from tests.kinds.models import fetch
from tests.speech import clips
from tests.speech.conftest import Hearing
from tests.speech.words import NORMAL, error_rate


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("model", "most"), [("base", 0.05), ("tiny", 0.10)])
def test_twenty_sentences_are_understood(gate: Hearing, model: str, most: float) -> None:
    heard = [gate.hear(clips.speak(each).read_bytes(), model=model).json()["text"] for each in clips.SENTENCES]
    rate = error_rate(clips.SENTENCES, heard)
    wrong = [(said, text) for said, text in zip(clips.SENTENCES, heard, strict=True) if NORMAL(said) != NORMAL(text)]
    assert rate <= most, (rate, wrong)


# What is said in kana, and how Whisper writes it.
JAPANESE = [
    "わたしは あした ともだちと いっしょに えきまえの みせで おいしい ひるごはんを たべます。",
    "あたまが いたいので くすりを のんで はやく ねます。",
]
WRITTEN = ["私は明日友達と一緒に駅前の店で美味しい昼ご飯を食べます", "頭が痛いので薬を飲んで早く寝ます"]
ENGLISH = [
    "The small brown dog ran quickly over the old bridge this morning.",
    "Please turn on the living room lights and close the kitchen window.",
]


@pytest.fixture(scope="module")
def kokoro(tmp_path_factory: pytest.TempPathFactory) -> KokoroSynthesizer:
    """Kokoro, with a voice of its own that is called as one that speaks English."""
    files = fetch(OFFERS["kokoro"].source)
    folder = tmp_path_factory.mktemp("kokoro")
    (folder / "kokoro.onnx").symlink_to(files / "kokoro.onnx")
    shutil.copy(files / "voices.npz", folder)
    with numpy.load(files / "voices.npz") as voices:
        voices["jf_alpha"].astype("<f4").tofile(folder / "af_alpha.bin")
    return KokoroSynthesizer(folder, 2)


def spoken_by(kokoro: KokoroSynthesizer, text: str, voice: str) -> bytes:
    """A WAV file of a text, spoken in pieces as a stream has it."""
    frames = b"".join(Speech(kokoro, SpeechOrder(input=text, voice=voice, response_format="pcm")).events())
    events = [msgspec.json.decode(line[6:]) for line in frames.splitlines() if line]
    return clips.wav(array("h", b"".join(b64decode(event["audio"]) for event in events)), kokoro.rate_hz)


@pytest.mark.timeout(300)
def test_what_kokoro_says_in_pieces_is_understood(gate: Hearing, kokoro: KokoroSynthesizer) -> None:
    assert all(len(list(split_sentences(each, PACE))) > 1 for each in [*JAPANESE, *ENGLISH])
    said = [
        gate.hear(spoken_by(kokoro, each, "jf_alpha"), model="base", language="ja").json()["text"] for each in JAPANESE
    ]
    plain = ["".join(NORMAL(text).split()).replace("。", "").replace("、", "") for text in said]
    # Five of 43 signs, and some more or less from processor to processor; the shortest of the pieces has four.
    assert jiwer.cer(WRITTEN, plain) <= 0.2, said
    heard = [gate.hear(spoken_by(kokoro, each, "af_alpha"), model="base").json()["text"] for each in ENGLISH]
    # With its accent: a tenth of the words is heard wrong where the sentences are said whole, too.
    assert error_rate(ENGLISH, heard) <= 0.25, heard
